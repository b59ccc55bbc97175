"""DSIRM: codes that were told which items answer a query, as a feature of a search ranker, on items held out from that.

Queries are made of titles. A fifth of the items is held out: they are in the catalog and their vectors are quantized,
but the loss on queries sees no pair with them. A query is judged by the held-out items that answer it, against held-out
items that do not: the nearest neighbours of the answer, and others at random. Of a query the quantizer says a few code
tuples, where the source asks a language model; the feature is the deepest prefix that an item shares with one of them.
The ranker is a logistic regression, fitted on one half of the queries and judged on the other. The strength is the
weight of the loss.

Dimensions: B queries with a held-out answer · M pairs of one and such an answer · C candidates · N items · F features ·
K code tuples of a query · L levels · Z latent features · S codes of a level.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.claims._cells import Cells, Run, Side, Values, cells_of
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.semantic_ids.dsirm import QueryBridge, title_queries
from tesserec.semantic_ids.rq_network import Network
from tesserec.semantic_ids.rq_vae import RQVAE, RQVAETraining
from tesserec.types import SideInformation, as_numpy

FIGURES = ("claims.dsirm.*", "claims.dsirm.cells.*.*")
NEEDS_DATA = True

WEIGHTS = {"plain": 0.0, "queries": 1e-9, "weak": 0.02, "base": 0.1, "strong": 0.5}
"""Variant → weight of the loss on queries; ``queries`` are read and reconstructed, but not brought to their items."""
TRAINING = RQVAETraining(num_steps=2500, batch_size=512)
NUM_FEATURES, HELD_SHARE = 256, 0.2
NUM_NEAR, NUM_RANDOM, NUM_TUPLES = 10, 10, 5
METRICS = {
    "match_auc": "of the match feature alone",
    "near_match_auc": "of the match feature alone, near neighbours of the answer only as negatives",
    "ranker_auc": "of a logistic ranker of cosine and match feature",
}
PROTOCOL = (
    "the share of negatives below the answer (half where level), mean over queries of titles with answers held out "
    f"from the loss, {NUM_NEAR} neighbours of the answer and {NUM_RANDOM} random held-out items as negatives"
)
SOURCE = (
    "the source (DSIRM, arXiv 2606.04374): AUC of the ranker .9356, 0.09 % lower without the loss on queries, "
    "1.54 % higher than without codes"
)


@dataclass(frozen=True)
class Judged:
    """What is asked."""

    query_M: Tensor
    """The query of each pair, counted over ``queries_BF``."""
    items_MC: Tensor
    """The answer, its near neighbours, and random items."""
    legal_MC: Tensor
    """Which of them are no further answers; the first one is."""
    cosine_MC: Tensor
    """Of query and item."""


@dataclass(frozen=True)
class Shop:
    """What every cell reads."""

    vectors_NF: Tensor
    tables: Mapping[str, Tensor]
    """What the loss sees."""
    queries_BF: Tensor
    judged: Judged


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not done, and record the figures of those that are."""
    cells = cells_of("dsirm", __doc__, arguments)
    shop = shop_of(cells)
    variants: dict[str, tuple[object, Run]] = {}
    for name, weight in WEIGHTS.items():
        variants[name] = ((quantizer(weight), HELD_SHARE), partial(cell, shop, weight))
    found = cells.run(variants, "match_auc")
    found |= cells.run({"cosine": (HELD_SHARE, partial(cosine_cell, shop))}, "ranker_auc")
    save(cells, found)
    return 0


def shop_of(cells: Cells) -> Shop:
    """Vectors, queries, and who answers them; a fifth of the items is drawn once for all seeds."""
    embedder = TfidfSVD(num_features=NUM_FEATURES)
    vectors_NF = embedder.embed(cells.catalog).vectors_ND
    made = title_queries(SideInformation(catalog=cells.catalog, embed=embedder.embed_new))
    pairs_P2 = made["query_items"]
    held_N = torch.zeros(len(vectors_NF), dtype=torch.bool)
    order = torch.randperm(len(held_N), generator=torch.Generator().manual_seed(0))
    held_N[order[: round(HELD_SHARE * len(held_N))]] = True
    is_held_P = held_N[pairs_P2[:, 1]]
    tables = {**made, "query_items": pairs_P2[~is_held_P]}
    asked, query_M = torch.unique(pairs_P2[is_held_P, 0], return_inverse=True)
    queries_BF = made["query_vectors"][asked]
    answers_M = pairs_P2[is_held_P, 1]
    items_MC = candidates(vectors_NF, held_N, answers_M)
    num_items = len(held_N)
    answering = pairs_P2[:, 0] * num_items + pairs_P2[:, 1]
    legal_MC = ~torch.isin(asked[query_M][:, None] * num_items + items_MC, answering)
    legal_MC[:, 0] = True
    unit_NF, unit_BF = F.normalize(vectors_NF, dim=1), F.normalize(queries_BF, dim=1)
    cosine_MC = torch.stack([(unit_NF[items_M] * unit_BF[query_M]).sum(1) for items_M in items_MC.T], 1)
    return Shop(vectors_NF, tables, queries_BF, Judged(query_M, items_MC, legal_MC, cosine_MC))


def candidates(vectors_NF: Tensor, held_N: Tensor, answers_M: Tensor) -> Tensor:
    """Each answer, the held-out items next to it, and random held-out items, [M, C]."""
    held = held_N.nonzero().squeeze(1)
    unit_HF = F.normalize(vectors_NF[held], dim=1)
    cosine_HH = (unit_HF @ unit_HF.T).fill_diagonal_(-2)  # itself is no neighbour
    near_HC = held[cosine_HH.topk(NUM_NEAR).indices]
    generator = torch.Generator().manual_seed(1)
    random_MC = held[torch.randint(len(held), (len(answers_M), NUM_RANDOM), generator=generator)]
    return torch.cat([answers_M[:, None], near_HC[torch.searchsorted(held, answers_M)], random_MC], 1)


def quantizer(weight: float) -> RQVAE:
    """The quantizer of a variant; without a weight it is a plain one."""
    return RQVAE(hidden_sizes=(256, 128), training=TRAINING, losses=(QueryBridge(weight=weight),))


def cell(shop: Shop, weight: float, seed: int) -> Values:
    """AUC of the codes of one variant with one seed, by query."""
    model = quantizer(weight)
    model.fit(shop.vectors_NF, SideInformation(seed=seed, tables=shop.tables))
    depth_MC = matched(tuples(model, shop.queries_BF), model.encode(shop.vectors_NF), shop.judged)
    near_MC = torch.zeros_like(shop.judged.legal_MC)
    near_MC[:, 1 : 1 + NUM_NEAR] = True
    return {
        "match_auc": auc(depth_MC, shop.judged),
        "near_match_auc": auc(depth_MC, shop.judged, near_MC),
        "ranker_auc": auc(ranked(shop.judged, seed, model.num_levels, depth_MC), shop.judged),
    }


def cosine_cell(shop: Shop, seed: int) -> Values:
    """AUC of a ranker without codes, by query."""
    return {"ranker_auc": auc(ranked(shop.judged, seed), shop.judged)}


def tuples(model: RQVAE, queries_BF: Tensor) -> Tensor:
    """The code tuples whose sums come nearest to each query's latents, found level by level, [B, K, L]."""
    tensors = model.state().tensors
    network = Network(queries_BF.shape[1], model.hidden_sizes, model.num_latents, model.codebook_sizes)
    network.load_state_dict(dict(tensors))
    with torch.no_grad():
        rest_BKZ = network.latents(queries_BF)[:, None]
        found_BKL = torch.zeros(len(queries_BF), 1, 0, dtype=torch.int64)
        for codebook_SZ in network.codebooks:
            distance_BKS = torch.cdist(rest_BKZ, codebook_SZ)
            best_BK = distance_BKS.flatten(1).topk(min(NUM_TUPLES, distance_BKS[0].numel()), largest=False).indices
            place_BK, code_BK = best_BK // len(codebook_SZ), best_BK % len(codebook_SZ)
            rest_BKZ = rest_BKZ.take_along_dim(place_BK[..., None], 1) - codebook_SZ[code_BK]
            found_BKL = torch.cat([found_BKL.take_along_dim(place_BK[..., None], 1), code_BK[..., None]], 2)
    return found_BKL


def matched(tuples_BKL: Tensor, codes_NL: Tensor, judged: Judged) -> Tensor:
    """Levels of the deepest prefix that each candidate shares with a tuple of its query, [M, C] int64."""
    found = []
    for items_M in judged.items_MC.T:
        same_MKL = tuples_BKL[judged.query_M] == codes_NL[items_M][:, None]
        found.append(same_MKL.cumprod(2).sum(2).amax(1))
    return torch.stack(found, 1)


def ranked(judged: Judged, seed: int, num_levels: int = 0, depth_MC: Tensor | None = None) -> Tensor:
    """Logits [M, C] of a logistic regression that was fitted on the other half of the queries, halves of the seed."""
    num_queries = int(judged.query_M.max()) + 1
    half_M = (torch.randperm(num_queries, generator=torch.Generator().manual_seed(seed)) % 2)[judged.query_M]
    features = [judged.cosine_MC]
    features += [(depth_MC >= level).float() for level in range(1, num_levels + 1) if depth_MC is not None]
    features_MCX = torch.stack(features, 2)
    answers_MC = torch.zeros_like(judged.legal_MC)
    answers_MC[:, 0] = True
    logits_MC = torch.zeros(judged.legal_MC.shape, dtype=torch.float64)
    for half in (0, 1):
        fitted_MC = judged.legal_MC & (half_M != half)[:, None]
        regression = LogisticRegression(max_iter=1000).fit(
            as_numpy(features_MCX[fitted_MC]), as_numpy(answers_MC[fitted_MC])
        )
        own_M = half_M == half
        found = regression.decision_function(as_numpy(features_MCX[own_M].flatten(0, 1)))
        logits_MC[own_M] = torch.from_numpy(found).double().view(-1, judged.items_MC.shape[1])
    return logits_MC


def auc(scores_MC: Tensor, judged: Judged, counted_MC: Tensor | None = None) -> Tensor:
    """The share of negatives that score below the answer, half where level, of each query [B]: mean over its answers.

    NaN for queries without a negative; ``counted_MC`` are the candidates that may be one.
    """
    negative_MC = judged.legal_MC.clone()
    negative_MC[:, 0] = False
    if counted_MC is not None:
        negative_MC &= counted_MC
    below_MC = (scores_MC < scores_MC[:, :1]).double() + 0.5 * (scores_MC == scores_MC[:, :1]).double()
    auc_M = (below_MC * negative_MC).sum(1) / negative_MC.sum(1)
    keep_M = ~auc_M.isnan()
    num_queries = int(judged.query_M.max()) + 1
    sums_B = torch.bincount(judged.query_M[keep_M], auc_M[keep_M], minlength=num_queries)
    return sums_B / torch.bincount(judged.query_M[keep_M], minlength=num_queries)


def save(cells: Cells, found: Mapping[str, Side]) -> None:
    """Each strength against plain codes, and rankers with codes against the one without."""
    plain = "codes of the same RQ-VAE without the loss on queries"
    for name in WEIGHTS:
        if name != "plain":
            for metric, what in METRICS.items():
                figure = f"dsirm.{metric}" + ("" if name == "base" else f"_{name}")
                protocol = f"AUC {what}: {PROTOCOL}; {SOURCE}"
                cells.difference(figure, found[name], found["plain"], metric, against=plain, protocol=protocol)
        cells.difference(
            f"dsirm.ranker_auc_of_{name}_over_cosine",
            found[name],
            found["cosine"],
            "ranker_auc",
            against="a logistic ranker of the cosine alone",
            protocol=f"AUC {METRICS['ranker_auc']}: {PROTOCOL}; {SOURCE}",
        )


if __name__ == "__main__":
    raise SystemExit(main())
