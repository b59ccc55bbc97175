"""RQ-FSQ: codes and rounded features in place of dense ones, in a ranking model that knows the items' ids.

Every variant adds its features to the same rows of ids. ``rq_fsq_30x`` keeps the first features of the content vector
(they come in order of variance) at 4 bits each beside three codes of 8 bits, which is a thirtieth of the dense vector's
bits, and has rows for the prefixes of the codes, as the source has. ``codes_fsq_30x`` has rows for single codes,
``wide_fsq_30x`` twice the features at 2 bits, and ``grid_33x`` the 4-bit features alone. ``kmeans_30x`` spends as many
bits on codes alone, and ``kmeans_341x`` is the plain Semantic ID of three codes.

Dimensions: N items · F features of the dense vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from benchmarks.claims._cells import Cells, Run, Side, Values, cells_of
from benchmarks.claims._ranking import Parts, RankingConfig, auc, trained
from tesserec.data.splits import Split, split
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.nn.sid_features import SIDFeatures, SIDKeys
from tesserec.semantic_ids.fsq import RQFSQ, grid_values
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.training.loop import seeded
from tesserec.types import SemanticIds, SideInformation

FIGURES = ("claims.rq_fsq.*", "claims.rq_fsq.cells.*.*")
NEEDS_DATA = True

NUM_FEATURES, FLOAT_BITS = 256, 32
CODEBOOK_SIZE, CODE_BITS, NUM_LEVELS = 256, 8, 3


@dataclass(frozen=True)
class Features:
    """What a variant adds to the rows of ids."""

    dense: bool = False
    """The whole vector."""
    kept: int = 0
    """Its first features, rounded to a grid."""
    grid_bits: int = 4
    """Bits of each of these."""
    levels: int = 0
    """Codes."""
    keys: SIDKeys = field(default_factory=lambda: SIDKeys(kind="codes"))
    """Which rows the codes have."""

    @property
    def bits(self) -> int:
        """Bits of an item."""
        return self.dense * NUM_FEATURES * FLOAT_BITS + self.kept * self.grid_bits + self.levels * CODE_BITS


PREFIXES = SIDKeys(kind="prefixes", max_rows=1 << 14)
MAIN = "30x"
RQ_FSQ = {"15x": 128, "30x": 62, "60x": 28}
"""Features that RQ-FSQ keeps, by how many times smaller the item's vector gets."""
VARIANTS = {
    "ids": Features(),
    "dense": Features(dense=True),
    **{f"rq_fsq_{times}": Features(kept=kept, levels=NUM_LEVELS, keys=PREFIXES) for times, kept in RQ_FSQ.items()},
    "codes_fsq_30x": Features(kept=RQ_FSQ[MAIN], levels=NUM_LEVELS),
    "wide_fsq_30x": Features(kept=124, grid_bits=2, levels=NUM_LEVELS, keys=PREFIXES),
    "grid_33x": Features(kept=RQ_FSQ[MAIN]),
    "kmeans_341x": Features(levels=NUM_LEVELS, keys=PREFIXES),
    "kmeans_30x": Features(levels=34),
}
SOURCE = "the source (LinkedIn, arXiv 2606.01396): AUC +0.351 % for RQ-FSQ at about 30 times, +0.213 % for plain codes"


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not done, and record the figures of those that are."""
    cells = cells_of("rq_fsq", __doc__, arguments)
    config = RankingConfig()
    parts = split(cells.interactions, cells.split_config("global_time"))
    vectors_NF = TfidfSVD(num_features=NUM_FEATURES).embed(cells.catalog).vectors_ND
    variants: dict[str, tuple[object, Run]] = {}
    for name, features in VARIANTS.items():
        variants[name] = ((config, features), partial(cell, config, parts, vectors_NF, features))
    save(cells, cells.run(variants, "auc"))
    return 0


def cell(config: RankingConfig, parts: Split, vectors_NF: Tensor, features: Features, seed: int) -> Values:
    """AUC of one variant with one seed; codes are learnt from items with training events."""
    known_N = parts.train.positives().item_counts() > 0
    floats_NF = vectors_NF if features.dense else None
    codes = None
    if features.kept:
        floats_NF, codes_NL, sizes = both_branches(vectors_NF[:, : features.kept], features, known_N, seed)
    elif features.levels:
        kmeans = residual_k_means(features.levels)
        kmeans.fit(vectors_NF[known_N], SideInformation(seed=seed))
        codes_NL, sizes = kmeans.encode(vectors_NF), kmeans.codebook_sizes
    if features.levels:
        with seeded(seed):
            codes = SIDFeatures(SemanticIds(codes_NL, sizes, "claims"), features.keys, config.width)
    if floats_NF is not None:  # equally long for all: a linear map learns as fast as its inputs are long
        floats_NF = floats_NF * (NUM_FEATURES / floats_NF[known_N].square().sum(1).mean()).sqrt()
    model = trained(config, Parts(True, floats_NF, codes), parts.train, parts.validation, seed)
    return auc(config, model, parts.test, parts.train)


def residual_k_means(num_levels: int) -> ResidualKMeans:
    """Ten rounds are enough: they are most of the cost of many levels."""
    return ResidualKMeans(num_levels=num_levels, codebook_size=CODEBOOK_SIZE, num_iterations=10)


def both_branches(
    kept_NF: Tensor, features: Features, known_N: Tensor, seed: int
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """The rounded features, in the proportions of those they stand for, and the coarse codes with their sizes."""
    quantizer = RQFSQ(coarse=residual_k_means(NUM_LEVELS), grid_size=1 << features.grid_bits)
    quantizer.fit(kept_NF[known_N], SideInformation(seed=seed))
    codes_NL, sizes = quantizer.encode(kept_NF), quantizer.codebook_sizes
    values_NF = grid_values(codes_NL[:, NUM_LEVELS:], sizes[NUM_LEVELS:]) * quantizer.state().tensors["scale"]
    return values_NF, codes_NL[:, :NUM_LEVELS], sizes[:NUM_LEVELS]


def save(cells: Cells, found: Mapping[str, Side]) -> None:
    """RQ-FSQ at each compression against dense features, and at the source's against codes and ids alone."""
    protocol = f"AUC within requests of global_time; {SOURCE}"
    pairs = {f"auc_over_dense_{times}": (f"rq_fsq_{times}", "dense") for times in RQ_FSQ}
    pairs["auc_over_dense"] = pairs.pop(f"auc_over_dense_{MAIN}")
    pairs |= {f"auc_over_{other}": (f"rq_fsq_{MAIN}", other) for other in ("ids", "kmeans_341x", "kmeans_30x")}
    pairs |= {f"{name}_over_dense": (name, "dense") for name in ("codes_fsq_30x", "wide_fsq_30x", "grid_33x", "ids")}
    for figure, (first, second) in pairs.items():
        against = f"{second}; {VARIANTS[first].bits} bits an item in place of {VARIANTS[second].bits}, ids left out"
        cells.difference(f"rq_fsq.{figure}", found[first], found[second], "auc", against=against, protocol=protocol)
    sides = found[f"rq_fsq_{MAIN}"], found["dense"]
    if not cells.complete(*sides):
        return
    cells.figure(
        "rq_fsq.compression",
        VARIANTS["dense"].bits / VARIANTS[f"rq_fsq_{MAIN}"].bits,
        "ratio",
        of=sides,
        against=f"{NUM_FEATURES} floats of {FLOAT_BITS} bits",
        protocol=f"bits of an item, dense over RQ-FSQ's; {SOURCE}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
