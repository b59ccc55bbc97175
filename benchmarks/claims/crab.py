"""CRAB: over-popular codes of the middle level are split, and the same small generator learns either table.

The strength is the share of codes that may be split. Codes are over-popular with more than twice the mean of the
training events of a code in use.

Dimensions: B requests · K items of a list · N items · L levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.claims._cells import Cells, Run, Side, Values, cells_of
from benchmarks.claims._generator import generator
from tesserec.data.splits import Split, split
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.evaluation.evaluate import ask
from tesserec.evaluation.intervals import draw_seeds, estimate, request_weights, spread
from tesserec.evaluation.metrics import Lists, gini, ndcg, rank_relevant, recall
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.crab import CRAB
from tesserec.semantic_ids.diagnostics import popularity_shares
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.types import PAD, Catalog, FitContext, Holdout, ItemEmbeddings, SemanticIds, SideInformation

FIGURES = ("claims.crab.*", "claims.crab.cells.*.*")
NEEDS_DATA = True

SHARES = {"split_5": 0.05, "split_10": 0.1, "split_20": 0.2}
"""Variant → share of the codes in use that may be split; the paper's is a tenth."""
MAIN = "split_10"
LEVEL, OVER_POPULAR = 1, 2.0
NUM_REQUESTS, NUM_ANSWERS = 5000, 20
CHANGES = {
    "exposure_gap": (
        "exposure",
        "the exposure gap (share of the first ten places of items under codes that were over-popular before the split, "
        "less their share of the training events, which stays)",
    ),
    "code_exposure": (
        "code_exposure",
        "the share of the first ten places of items under codes that are over-popular in the same table (which falls "
        "by construction, as these codes are split)",
    ),
    "ndcg10": ("ndcg10", "NDCG@10"),
    "recall10": ("recall10", "recall@10"),
}
"""Figure → the metric of its cells, and what changes."""
SOURCE = "the source (CRAB, arXiv 2604.05113): popularity measure MGU@10 -16.5 % with HR@10 unchanged"


@dataclass(frozen=True)
class Shop:
    """What every cell reads."""

    parts: Split
    holdout: Holdout
    catalog: Catalog
    embeddings: ItemEmbeddings


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not done, and record the figures of those that are."""
    cells = cells_of("crab", __doc__, arguments)
    shop = shop_of(cells)
    variants: dict[str, tuple[object, Run]] = {}
    for name, share in (("plain", None), *SHARES.items()):
        run = partial(cell, shop, share)
        variants[name] = ((generator(), share, NUM_REQUESTS), run)
    save(cells, shop, cells.run(variants, "ndcg10"))
    return 0


def shop_of(cells: Cells) -> Shop:
    """The split, some of its requests, evenly spaced, and the items' vectors."""
    parts = split(cells.interactions, cells.split_config("last_out"))
    some = torch.linspace(0, len(parts.test) - 1, min(NUM_REQUESTS, len(parts.test))).long()
    return Shop(parts, parts.test.take(some), cells.catalog, TfidfSVD().embed(cells.catalog))


def cell(shop: Shop, share: float | None, seed: int) -> Values:
    """What the generator answers with one table: accuracy, lists, and how much of them over-popular codes take."""
    counts_N = shop.parts.train.positives().item_counts()
    plain, quantizer = plain_table(shop, seed)
    table = plain
    if share is not None:
        crab = CRAB(level=LEVEL, split_share=share, over_popular=OVER_POPULAR)
        table, _ = crab.split(plain, counts_N, quantizer.state().tensors[f"codebook_{LEVEL + 1}"])
    retriever = generator()
    retriever.fit(shop.parts.train, shop.catalog, FitContext(semantic_ids=table, seed=seed))
    answers, _ = ask(retriever, shop.holdout, NUM_ANSWERS)
    ranks, lists_BK = rank_relevant(answers, shop.holdout.relevant), answers.items_BK[:, :10]
    return {
        "ndcg10": ndcg(ranks, 10),
        "recall10": recall(ranks, 10),
        "lists": lists_BK,
        "exposure": share_of_lists(lists_BK, over_popular(plain, counts_N)),
        "code_exposure": share_of_lists(lists_BK, over_popular(table, counts_N)),
    }


def plain_table(shop: Shop, seed: int) -> tuple[SemanticIds, ResidualKMeans]:
    """The table before any split, and its codebooks."""
    events = shop.parts.train.positives()
    quantizer, side = ResidualKMeans(), SideInformation(seed=seed, train=events, catalog=shop.catalog)
    counts_N = events.item_counts()
    return fit_semantic_ids(quantizer, shop.catalog, shop.embeddings, side, popularity_N=counts_N), quantizer


def over_popular(table: SemanticIds, counts_N: Tensor) -> Tensor:
    """Whether the code that each item has at the middle level is over-popular, bool [N]."""
    shares_C = popularity_shares(table, counts_N)[LEVEL]
    return (shares_C > OVER_POPULAR / int((shares_C > 0).sum()))[table.codes_NL[:, LEVEL].long()]


def share_of_lists(lists_BK: Tensor, items_N: Tensor) -> Tensor:
    """The share of each list that these items take, [B]; NaN for an empty list."""
    shown_BK = lists_BK != PAD
    return (items_N[lists_BK.clamp(min=0)] & shown_BK).sum(1).double() / shown_BK.sum(1)


def save(cells: Cells, shop: Shop, found: Mapping[str, Side]) -> None:
    """Each strength against the table before the split: exposure of over-popular codes and of their items, accuracy."""
    for name, share in SHARES.items():
        against = f"the table before up to {share:.0%} of the codes of its middle level were split"
        for figure, (metric, what) in CHANGES.items():
            protocol = f"change of {what}, after less before; {len(shop.holdout):,} requests of last_out; {SOURCE}"
            at = f"crab.{figure}" + ("" if name == MAIN else f"_{name}")
            pair = found[name], found["plain"]
            cells.difference(at, *pair, metric, against=against, protocol=protocol, seeds_belong=True)
        save_gini(cells, shop, name, found)
    if cells.complete(found["plain"]):
        save_gap(cells, shop, found["plain"])


def save_gap(cells: Cells, shop: Shop, plain: Side) -> None:
    """How much more of the lists than of the training events is of items under over-popular codes, before the split."""
    counts_N = shop.parts.train.positives().item_counts()
    gaps = []
    for seed in cells.seeds:
        items_N = over_popular(plain_table(shop, seed)[0], counts_N)
        gaps.append(plain[seed].values["exposure"] - float(counts_N[items_N].sum() / counts_N.sum()))
    found = estimate(torch.stack(gaps))
    protocol = (
        "share of the first ten places of items under over-popular codes less their share of the training events, "
        f"before the split; {SOURCE}"
    )
    cells.figure(
        "crab.exposure_gap_before",
        found.mean,
        low=found.low,
        high=found.high,
        n=len(shop.holdout),
        of=(plain,),
        protocol=protocol,
    )


def save_gini(cells: Cells, shop: Shop, name: str, found: Mapping[str, Side]) -> None:
    """How unequally the items of the catalog are shown, after less before; nothing until all seeds are there."""
    if not cells.complete(found[name], found["plain"]):
        return
    counts_N = shop.parts.train.positives().item_counts()
    history = shop.holdout.requests.history.as_ragged()
    weights_RB = resamples(len(shop.holdout))
    differences_SR = torch.stack(
        [
            gini(Lists(found[name][seed].values["lists"].long(), counts_N, history), weights_RB)
            - gini(Lists(found["plain"][seed].values["lists"].long(), counts_N, history), weights_RB)
            for seed in cells.seeds
        ]
    )
    at = float(differences_SR[:, 0].mean())
    interval = spread(draw_seeds(differences_SR[:, 1:].T, 0), at)
    cells.figure(
        "crab.gini10" + ("" if name == MAIN else f"_{name}"),
        at,
        low=interval.low,
        high=interval.high,
        n=len(shop.holdout),
        of=(found[name], found["plain"]),
        against="the table before the split",
        protocol=f"change of the Gini of the exposure of items in the first ten places, after less before; {SOURCE}",
    )


def resamples(num_requests: int) -> Tensor:
    """Every request once, then how often each is drawn in 200 bootstrap resamples, [R + 1, B]."""
    drawn = torch.cat(list(request_weights(num_requests, num_resamples=200, seed=0)))
    return torch.cat([torch.ones(1, num_requests, dtype=torch.float64), drawn])


if __name__ == "__main__":
    raise SystemExit(main())
