"""RQ-FSQ: codes and rounded features in place of dense ones, in a ranking model that knows the items' ids.

Every variant adds its features to the same rows of ids. ``rq_fsq_30x`` keeps the first features of the content vector
(they come in order of variance) at 4 bits each beside three codes of 8 bits, which is a thirtieth of the dense vector's
bits; ``grid_33x`` has the 4-bit features alone, ``kmeans_30x`` spends as many bits on codes alone, and ``kmeans_341x``
is the plain Semantic ID of three codes.

Dimensions: N items · F features of the dense vector.
"""

import math
from functools import partial

from torch import Tensor

from benchmarks.claims._cells import Cells, Run, Values, cells_of
from benchmarks.claims._ranking import Parts, RankingConfig, auc, trained
from tesserec.data.splits import Split, split
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.nn.sid_features import SIDFeatures, SIDKeys
from tesserec.semantic_ids.fsq import RQFSQ, grid_values
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.training.loop import seeded
from tesserec.types import SemanticIds, SideInformation

NUM_FEATURES, FLOAT_BITS = 256, 32
KEPT = {"15x": 128, "30x": 62, "60x": 28}
"""Features that RQ-FSQ keeps, by how many times smaller the item's vector gets."""
MAIN = "30x"
NUM_LEVELS, LEVELS = 3, {"30x": 34, "341x": 3}
"""Levels of RQ-FSQ's codes, and of residual k-means alone, likewise."""
VARIANTS = ("ids", "dense", *(f"rq_fsq_{x}" for x in KEPT), "grid_33x", *(f"kmeans_{x}" for x in LEVELS))
GRID_SIZE, CODEBOOK_SIZE, MAX_ROWS = 16, 256, 4096
SOURCE = "the source (LinkedIn, arXiv 2606.01396): AUC +0.351 % for RQ-FSQ at about 30 times, +0.213 % for plain codes"


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not done, and record the figures of those that are."""
    cells = cells_of("rq_fsq", __doc__, arguments)
    config = RankingConfig()
    parts = split(cells.interactions, cells.split_config("global_time"))
    vectors_NF = TfidfSVD(num_features=NUM_FEATURES).embed(cells.catalog).vectors_ND
    variants: dict[str, tuple[object, Run]] = {}
    for name in VARIANTS:
        variants[name] = (config, partial(cell, config, parts, vectors_NF, name))
    save(cells, cells.run(variants, "auc"))
    return 0


def cell(config: RankingConfig, parts: Split, vectors_NF: Tensor, variant: str, seed: int) -> Values:
    """AUC of one variant with one seed; codes are learnt from items with training events."""
    features = features_of(variant, config, vectors_NF, parts.train.positives().item_counts() > 0, seed)
    model = trained(config, features, parts.train, parts.validation, seed)
    return auc(config, model, parts.test, parts.train)


def features_of(variant: str, config: RankingConfig, vectors_NF: Tensor, known_N: Tensor, seed: int) -> Parts:
    """What the model knows of the items beside their ids."""
    method, _, compression = variant.rpartition("_")
    if variant == "ids":
        return Parts(own=True)
    if variant == "dense":
        return Parts(own=True, floats_NF=vectors_NF * math.sqrt(NUM_FEATURES))
    levels = LEVELS[compression] if method == "kmeans" else NUM_LEVELS
    kmeans = ResidualKMeans(num_levels=levels, codebook_size=CODEBOOK_SIZE, num_iterations=10)
    if method == "kmeans":
        kmeans.fit(vectors_NF[known_N], SideInformation(seed=seed))
        codes_NL, sizes = kmeans.encode(vectors_NF), kmeans.codebook_sizes
        keys = SIDKeys(kind="prefixes" if compression == "341x" else "codes", max_rows=MAX_ROWS)
        return Parts(own=True, codes=rows_of(codes_NL, sizes, keys, config, seed))
    quantizer = RQFSQ(coarse=kmeans, grid_size=GRID_SIZE)
    kept_NF = vectors_NF[:, : KEPT.get(compression, KEPT[MAIN])]
    quantizer.fit(kept_NF[known_N], SideInformation(seed=seed))
    floats_NF, codes_NL, sizes = both_branches(quantizer, kept_NF)
    if method == "grid":
        return Parts(own=True, floats_NF=floats_NF)
    keys = SIDKeys(kind="prefixes", max_rows=MAX_ROWS)
    return Parts(own=True, floats_NF=floats_NF, codes=rows_of(codes_NL, sizes, keys, config, seed))


def both_branches(quantizer: RQFSQ, kept_NF: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The rounded features, as large as those they stand for, and the residual quantizer's codes and their sizes."""
    codes_NL, sizes, levels = quantizer.encode(kept_NF), quantizer.codebook_sizes, len(quantizer.coarse.codebook_sizes)
    scale_F = quantizer.state().tensors["scale"] * math.sqrt(NUM_FEATURES)
    return grid_values(codes_NL[:, levels:], sizes[levels:]) * scale_F, codes_NL[:, :levels], sizes[:levels]


def rows_of(codes_NL: Tensor, sizes: tuple[int, ...], keys: SIDKeys, config: RankingConfig, seed: int) -> SIDFeatures:
    """Rows of the keys of codes, untrained."""
    with seeded(seed):
        return SIDFeatures(SemanticIds(codes_NL, sizes, "claims"), keys, config.width)


def save(cells: Cells, found: dict[str, dict[int, Values]]) -> None:
    """RQ-FSQ at each compression against dense features, and at the source's against codes and ids alone."""
    dense_bits = NUM_FEATURES * FLOAT_BITS
    protocol = f"AUC within requests of global_time; {SOURCE}"
    for compression, kept in KEPT.items():
        bits = NUM_LEVELS * 8 + kept * 4
        pair = found[f"rq_fsq_{compression}"], found["dense"]
        against = f"dense features; {bits} bits an item in place of {dense_bits}"
        figure = "rq_fsq.auc_over_dense" + ("" if compression == MAIN else f"_{compression}")
        cells.difference(figure, *pair, "auc", against=against, protocol=protocol)
    for other in ("ids", "grid_33x", "kmeans_30x", "kmeans_341x"):
        pair = found["rq_fsq_30x"], found[other]
        cells.difference(f"rq_fsq.auc_over_{other}", *pair, "auc", against=other, protocol=protocol)
    pair = found["grid_33x"], found["dense"]
    against = f"dense features; the rounded features alone, {KEPT[MAIN] * 4} bits an item in place of {dense_bits}"
    cells.difference("rq_fsq.grid_auc_over_dense_33x", *pair, "auc", against=against, protocol=protocol)
    pair = found["dense"], found["ids"]
    cells.difference("rq_fsq.dense_auc_over_ids", *pair, "auc", against="ids alone", protocol=protocol)
    if not cells.complete(found[f"rq_fsq_{MAIN}"], found["dense"]):
        return
    cells.figure(
        "rq_fsq.compression",
        dense_bits / (NUM_LEVELS * 8 + KEPT[MAIN] * 4),
        "ratio",
        against=f"{NUM_FEATURES} floats of {FLOAT_BITS} bits",
        protocol=f"bits of an item, dense over RQ-FSQ's; {SOURCE}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
