"""SID expansion: items that training did not have get codes from frozen codebooks, and a trained generator finds them.

The same small generator learns two tables of the other items: residual k-means codes of their text, and hashed ones,
which say nothing of it. Then the withheld items are added to either table, and requests whose targets are withheld are
answered from all items. The strength is how many training targets a prefix needs to have a vector of its own: with few,
what is popular is remembered and new items are seldom reached.

Dimensions: B requests · K items of a list · N items · E events.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.claims._cells import Cells, Run, Side, Values, cells_of
from benchmarks.claims._generator import generator
from tesserec.config import fresh
from tesserec.data.splits import split
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.evaluation.evaluate import ask
from tesserec.evaluation.intervals import estimate
from tesserec.evaluation.metrics import rank_relevant, recall
from tesserec.pipeline import first_items
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.expansion import expand
from tesserec.semantic_ids.hashed import HashedCodes
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.types import (
    Catalog,
    FitContext,
    Holdout,
    Interactions,
    Quantizer,
    Ragged,
    SemanticIds,
    SideInformation,
    Vocabulary,
)

FIGURES = ("claims.expansion.*", "claims.expansion.cells.*.*")
NEEDS_DATA = True

LEAST_EVENTS = (5, 50, 500)
"""Training targets that a prefix needs to have a vector of its own."""
MAIN = 50
QUANTIZERS: Mapping[str, Quantizer] = {"codes": ResidualKMeans(), "hashed": HashedCodes()}
"""Kind of codes → what makes them."""
COLD_SHARE, NUM_REQUESTS, NUM_ANSWERS = 0.05, 3000, 50
PROTOCOL = (
    "cold_items, a twentieth of the items withheld; recall at 50 of withheld targets among all items; "
    "TIGER (arXiv 2305.05065) is better than content neighbours where a tenth of its answers or more may be cold"
)


@dataclass(frozen=True)
class Shop:
    """What every cell reads; the withheld items come last."""

    train: Interactions
    """With the items before the withheld ones as its vocabulary."""
    catalog: Catalog
    holdout: Holdout


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not done, and record the figures of those that are."""
    cells = cells_of("expansion", __doc__, arguments)
    shop = withheld_last(cells)
    variants: dict[str, tuple[object, Run]] = {}
    for least in LEAST_EVENTS:
        for kind, quantizer in QUANTIZERS.items():
            settings = (generator(least), quantizer, COLD_SHARE, NUM_REQUESTS, NUM_ANSWERS)
            variants[f"{kind}_{least}"] = (settings, partial(cell, shop, quantizer, least))
    save(cells, cells.run(variants, "recall50"))
    return 0


def withheld_last(cells: Cells) -> Shop:
    """The data with the items that the split withholds moved to the end."""
    parts = split(cells.interactions, cells.split_config("cold_items", cold_share=COLD_SHARE))
    cold_N = parts.refit.positives().item_counts() == 0
    order = torch.cat([(~cold_N).nonzero().squeeze(1), cold_N.nonzero().squeeze(1)])
    place_N = torch.argsort(order)
    ids = Vocabulary.of(cells.catalog.items.to_ids(order))
    catalog = Catalog(ids, cells.catalog.frame[order.tolist()])
    warm = first_items(catalog, int((~cold_N).sum()))
    item_E = place_N[parts.refit.item_E.long()].to(parts.refit.item_E.dtype)
    some = torch.linspace(0, len(parts.test) - 1, min(NUM_REQUESTS, len(parts.test))).long()
    asked = parts.test.take(some)
    history = dataclasses.replace(asked.requests.history, items=place_N[asked.requests.history.items])
    requests = dataclasses.replace(asked.requests, history=history)
    relevant = Ragged(asked.relevant.offsets, place_N[asked.relevant.values])
    train = dataclasses.replace(parts.refit, items=warm.items, item_E=item_E)
    return Shop(train, catalog, Holdout(requests, relevant))


def cell(shop: Shop, quantizer: Quantizer, least: int, seed: int) -> Values:
    """How often the generator finds the withheld items with one kind of codes."""
    num_warm = len(shop.train.items)
    warm = first_items(shop.catalog, num_warm)
    table, grown = tables(shop, warm, fresh(quantizer), seed)
    retriever = generator(least)
    retriever.fit(shop.train, warm, FitContext(semantic_ids=table, seed=seed))
    retriever.add_items(shop.catalog, FitContext(semantic_ids=grown, seed=seed))
    answers, _ = ask(retriever, shop.holdout, NUM_ANSWERS)
    ranks = rank_relevant(answers, shop.holdout.relevant)
    cold_BK = (answers.items_BK >= num_warm).double()
    return {"recall50": recall(ranks, 50), "recall10": recall(ranks, 10), "cold_share": cold_BK[:, :10].mean(1)}


def tables(shop: Shop, warm: Catalog, quantizer: Quantizer, seed: int) -> tuple[SemanticIds, SemanticIds]:
    """The table of the items that train, and the same with the withheld ones at its end."""
    events, embedder = shop.train.positives(), TfidfSVD()
    embeddings = embedder.embed(warm)
    side = SideInformation(seed=seed, train=events, catalog=warm)
    table = fit_semantic_ids(quantizer, warm, embeddings, side, popularity_N=events.item_counts())
    later = Catalog(Vocabulary(shop.catalog.items.ids[len(warm) :]), shop.catalog.frame[len(warm) :])
    return table, expand(table, quantizer, embedder.embed_new(later).vectors_ND)


def save(cells: Cells, found: Mapping[str, Side]) -> None:
    """At each strength: how often withheld items are found, by text codes against hashed ones."""
    for least in LEAST_EVENTS:
        codes, hashed = found[f"codes_{least}"], found[f"hashed_{least}"]
        if not cells.complete(codes, hashed):
            continue
        protocol = f"{PROTOCOL}; vectors of prefixes from {least} targets on"
        suffix = "" if least == MAIN else f"_{least}"
        figure = f"expansion.recall50_over_hashed{suffix}"
        cells.difference(figure, codes, hashed, "recall50", against="hashed ids", protocol=protocol)
        found_codes, found_hashed = (
            estimate(torch.stack([side[seed].values["recall50"] for seed in cells.seeds])) for side in (codes, hashed)
        )
        num_requests = len(codes[cells.seeds[0]].values["recall50"])
        half_hit = 0.5 / num_requests
        cells.figure(
            f"expansion.times_hashed{suffix}",
            (found_codes.mean + half_hit) / (found_hashed.mean + half_hit),
            "ratio",
            low=found_codes.low / max(found_hashed.high, 3 / num_requests),
            high=(found_codes.high + half_hit) / (found_hashed.low + half_hit),
            n=num_requests,
            of=(codes, hashed),
            against=f"hashed ids, which find {found_hashed.mean:.5f} of the targets; codes find {found_codes.mean:.5f}",
            protocol=(
                f"{protocol}; half a hit is added to both rates; from the lower end of the one rate over the upper end "
                "of the other (at least 3 hits, which none found cannot rule out) to the opposite"
            ),
        )


if __name__ == "__main__":
    raise SystemExit(main())
