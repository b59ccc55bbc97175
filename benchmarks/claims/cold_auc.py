"""SIDs as features of a ranking model without ids: prefix n-grams (PrefixMem) and learned pieces on new and rare items.

Each has as many rows as random hashing of item ids is given beside it. The strength is that number: PrefixMem's rows
for each run of levels, the merges of the pieces.

Dimensions: N items · L levels.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.claims._cells import Cells, Run, Side, Values, cells_of
from benchmarks.claims._ranking import Parts, RankingConfig, auc, trained
from tesserec.data.splits import Split, split
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.nn.sid_features import SIDFeatures, SIDKeys, learn_pieces
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.training.loop import seeded
from tesserec.types import SemanticIds, SideInformation

FIGURES = ("claims.prefixmem.*", "claims.sentencepiece.*", "claims.cold_auc.cells.*.*")
NEEDS_DATA = True

NUM_CODES, NUM_RUNS = 768, 3
"""Rows of single codes (three levels of 256), and runs of levels that PrefixMem hashes: (1, 2), (2, 3), (1, 2, 3)."""
MAX_ROWS = (256, 1024, 4096)
ROWS = {NUM_CODES + NUM_RUNS * rows: rows for rows in MAX_ROWS}
"""Rows in all → those of each run."""
MAIN = NUM_CODES + NUM_RUNS * 1024
SLICES = {
    "cold_auc": "without a training event",
    "rare_auc": "with 1 to 4 training events",
    "auc": "of any number of training events",
}
METHODS = {"memory": "prefixmem", "pieces": "sentencepiece"}
"""Key set → the claim."""
SOURCES = {
    "memory": "the source (PrefixMem, arXiv 2606.00324): Recall@100 of a generator +22 %, long-tail prefixes +115 %",
    "pieces": "the source (Singh et al., arXiv 2306.08121): pieces are better than random hashing, also on new items",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the cells that are not done, and record the figures of those that are."""
    cells = cells_of("cold_auc", __doc__, arguments)
    config = RankingConfig()
    parts = split(cells.interactions, cells.split_config("global_time"))
    vectors_NF = TfidfSVD().embed(cells.catalog).vectors_ND
    variants: dict[str, tuple[object, Run]] = {}
    for num_rows in reversed(ROWS):
        for kind in ("hashed", *METHODS):
            variants[f"{kind}_{num_rows}"] = (config, partial(cell, config, parts, vectors_NF, kind, num_rows))
    save(cells, cells.run(variants, "cold_auc"))
    return 0


def cell(  # noqa: PLR0917  # called by partial
    config: RankingConfig, parts: Split, vectors_NF: Tensor, kind: str, num_rows: int, seed: int
) -> Values:
    """AUC of a model that knows items by one key set only; codes are learnt from items with training events."""
    counts_N = parts.train.positives().item_counts()
    with seeded(seed):
        features = rows_of(kind, num_rows, vectors_NF, counts_N, config.width, seed)
    model = trained(config, Parts(codes=features), parts.train, parts.validation, seed)
    return auc(config, model, parts.test, parts.train)


def rows_of(  # noqa: PLR0917  # as above
    kind: str, num_rows: int, vectors_NF: Tensor, counts_N: Tensor, width: int, seed: int
) -> SIDFeatures:
    """Rows of one key set, untrained; ``hashed`` is one row an item, drawn at random."""
    if kind == "hashed":
        codes_N1 = torch.randint(num_rows, (len(vectors_NF), 1))
        return SIDFeatures(SemanticIds(codes_N1, (num_rows,), "claims"), SIDKeys(kind="codes"), width)
    quantizer = ResidualKMeans()
    quantizer.fit(vectors_NF[counts_N > 0], SideInformation(seed=seed))
    table = SemanticIds(quantizer.encode(vectors_NF), quantizer.codebook_sizes, "claims")
    if kind == "pieces":
        return SIDFeatures(
            table, SIDKeys(kind="pieces"), width, merges_M2=learn_pieces(table, counts_N, num_rows - NUM_CODES)
        )
    return SIDFeatures(table, SIDKeys(kind="memory", max_rows=ROWS[num_rows]), width)


def save(cells: Cells, found: Mapping[str, Side]) -> None:
    """Both key sets against random hashing at each number of rows, on new, rare and all items."""
    for kind, claim in METHODS.items():
        for num_rows in ROWS:
            against = f"random hashing of item ids into {num_rows:,} rows"
            for metric, items in SLICES.items():
                figure = f"{claim}.{metric}" + ("" if num_rows == MAIN else f"_{num_rows}")
                protocol = f"AUC within requests of global_time, targets {items}; {SOURCES[kind]}"
                pair = found[f"{kind}_{num_rows}"], found[f"hashed_{num_rows}"]
                cells.difference(figure, *pair, metric, against=against, protocol=protocol)


if __name__ == "__main__":
    raise SystemExit(main())
