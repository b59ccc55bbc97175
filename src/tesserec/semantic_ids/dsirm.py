"""DSIRM: items that answer the same query get near code vectors.

Paper: DSIRM, https://arxiv.org/abs/2606.04374
Adds: queries are quantized and reconstructed by the same networks and codebooks as items; symmetric InfoNCE between the
    quantized vectors of a query and of an item that answers it.
Differs: this loss only: the code of the category at the first level, the model from query text to codes and the feature
    of the ranker are not here; weight 0.1 and temperature 0.1 are ours. Where there is no log of queries they may be
    made of titles: two neighbouring words that a few titles have in common, answered by the items of these.
Checked: tests/semantic_ids/test_dsirm.py (the loss by hand; a quiet factor by which queries ask; queries of titles).

Dimensions: N rows of the features · Q queries · P pairs of a query and an item · B batch · D features.
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Literal

import polars as pl
import torch
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.errors import DataError
from tesserec.semantic_ids import residual
from tesserec.semantic_ids.composition import LossRecord, LossSetup, info_nce
from tesserec.types import Catalog, SideInformation, Vocabulary

__all__ = ["QueryBridge", "title_queries"]

MAX_ITEMS = 20
"""Items that a query of titles has at most: what more have in common is no query."""


@component
class QueryBridge:
    """Pulls together the quantized vectors of queries and of the items that answer them.

    ``SideInformation.tables`` holds ``query_vectors`` [Q, D], in the space of the features, and ``query_items`` [P, 2],
    int64: the query and an item that answers it; unless queries are made of titles.
    """

    weight: Annotated[float, Field(ge=0)] = 0.1
    """Strength."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Of the softmax over the batch."""
    query_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the reconstruction and quantization of queries beside that of items, whatever ``weight`` is."""
    batch_size: Annotated[int, Field(gt=1)] = 256
    """Pairs a batch."""
    queries: Literal["tables", "titles"] = "tables"
    """Where queries come from."""

    def module(self, setup: LossSetup) -> nn.Module:
        """Raises ``DataError`` where a table is missing, of another width, not finite, or names no query or item."""
        tables = setup.side.tables if self.queries == "tables" else title_queries(setup.side)
        if "query_vectors" not in tables or "query_items" not in tables:
            raise DataError("QueryBridge reads the tables query_vectors and query_items: give SideInformation both")
        queries_QD = residual.check_features(tables["query_vectors"], setup.features_ND.shape[1])
        pairs_P2 = tables["query_items"].long()
        if pairs_P2.ndim != 2 or pairs_P2.shape[1] != 2:
            raise DataError(f"query_items has shape {tuple(pairs_P2.shape)}, expected [pairs, 2]: a query and an item")
        if len(pairs_P2) and not (int(pairs_P2.min()) >= 0 and int(pairs_P2[:, 0].max()) < len(queries_QD)):
            raise DataError(f"query_items must name queries in [0, {len(queries_QD) - 1}] and items from 0 on")
        size = 1 + int(torch.cat([setup.items_N, pairs_P2[:, 1]]).max())
        row_of_item = torch.full((size,), -1, dtype=torch.int64)
        row_of_item[setup.items_N] = torch.arange(len(setup.features_ND))
        pairs_P2 = torch.stack([pairs_P2[:, 0], row_of_item[pairs_P2[:, 1]]], 1)
        pairs_P2 = pairs_P2[pairs_P2[:, 1] >= 0]
        if not len(pairs_P2):
            raise DataError("no item of the features answers a query: leave QueryBridge out")
        return _QueryBridge(self, setup, queries_QD.to(setup.features_ND.device), pairs_P2)


def title_queries(side: SideInformation) -> Mapping[str, Tensor]:
    """Both tables, with queries of two neighbouring words that the titles of 2 to ``MAX_ITEMS`` items have.

    Raises ``DataError`` where there is no catalog, no embedder of its text, or no such query.
    """
    if side.catalog is None or side.embed is None:
        raise DataError("queries of titles need catalog and embedder: fit in a pipeline, or give SideInformation both")
    items_of: dict[str, list[int]] = {}
    for item, title in enumerate(side.catalog.titles):
        for query in {f"{a} {b}" for a, b in pairwise(re.findall(r"\w+", title.lower()))}:
            items_of.setdefault(query, []).append(item)
    queries = sorted(query for query, items in items_of.items() if 2 <= len(items) <= MAX_ITEMS)
    if not queries:
        raise DataError(f"no two words are in the titles of 2 to {MAX_ITEMS} items: give queries as tables")
    made = side.embed(Catalog(Vocabulary.of(queries), pl.DataFrame({"text": queries})))
    pairs_P2 = torch.tensor([[number, item] for number, query in enumerate(queries) for item in items_of[query]])
    known_Q = made.vectors_ND.any(1)
    return {"query_vectors": made.vectors_ND, "query_items": pairs_P2[known_Q[pairs_P2[:, 0]]]}


class _QueryBridge(nn.Module):
    def __init__(self, settings: QueryBridge, setup: LossSetup, queries_QD: Tensor, pairs_P2: Tensor) -> None:
        super().__init__()
        self._settings, self._generator, self._features_ND = settings, setup.generator, setup.features_ND
        self._queries_QD, self._pairs_P2 = queries_QD, pairs_P2
        self._query_weight = settings.query_weight / (settings.weight * setup.features_ND.shape[1])

    def forward(self, record: LossRecord) -> Tensor:
        s = self._settings
        chosen_B = torch.randint(len(self._pairs_P2), (s.batch_size,), generator=self._generator)
        queries_B, rows_B = self._pairs_P2[chosen_B].to(self._features_ND.device).unbind(1)
        query_loss, query = record.loss_of(self._queries_QD[queries_B])
        query_BZ = query.straight_through()
        item_BZ = record.quantize(self._features_ND[rows_B]).straight_through()
        same_BB = (queries_B == queries_B[:, None]) | (rows_B == rows_B[:, None])
        same_BB = same_BB.fill_diagonal_(False)
        both = info_nce(query_BZ, item_BZ, s.temperature, same_BB) + info_nce(item_BZ, query_BZ, s.temperature, same_BB)
        return both / 2 + self._query_weight * query_loss
