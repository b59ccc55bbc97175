"""What a table of Semantic IDs is like: how unique, how well used, how coherent; and its tree for browsing.

Dimensions: N items · L levels · C codes of a level · D features · E events. Averages over
pairs are exact, from sums over groups.
"""

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.semantic_ids.residual import explained_share
from tesserec.semantic_ids.table import content_codes, groups
from tesserec.types import Catalog, Interactions, ItemEmbeddings, Quantizer, SemanticIds

__all__ = ["LevelReport", "PrefixCoherence", "SemanticIdReport", "diagnose", "tree"]


@dataclass(frozen=True)
class LevelReport:
    """How the codes of one level are used."""

    codebook_size: int
    num_used: int
    """Codes that some item has; the others are dead."""
    used_share: float
    perplexity: float
    """exp of the entropy of the codes over items: the number of codes that would be in use if all were used equally."""
    gini: float
    """Inequality of use over all codes, dead ones included: 0 all equal, towards 1 where one code has everything."""
    items_of_code: list[int]
    """Items with each code, [C]."""
    events_of_code: list[float] | None
    """Share of the training events that are of items with each code, [C]; None without events."""


@dataclass(frozen=True)
class PrefixCoherence:
    """Whether items with the first ``depth`` codes in common are alike, against items at random."""

    depth: int
    cosine_within: float | None
    """Mean cosine of two different items with this prefix in common, over all such pairs; None where there are none."""
    cosine_random: float | None
    """Mean cosine of two different items."""
    neighbours_share: float | None
    """Share of consecutive, different items of one user, in different steps, that have this prefix in common."""
    random_share: float | None
    """The same for two events drawn at random, of different items: what popularity alone explains."""


@dataclass(frozen=True)
class SemanticIdReport:
    """The figures of one table; ``to_json`` for pages and logs."""

    codebook_version: str
    table_revision: int
    num_items: int
    has_digit: bool
    unique_share: float
    """Distinct tuples for each item, of the whole tuple: 1 where every item has its own."""
    unique_share_content: float
    """The same without the collision digit."""
    shared_items_share: float
    """Share of items that have their codes, without the digit, in common with another."""
    bucket_sizes: dict[int, int]
    """Number of buckets (by codes without the digit) of each size."""
    levels: list[LevelReport]
    """Of the levels that came from content, not of the digit."""
    coherence: list[PrefixCoherence]
    """At depths 1 to L."""
    explained_share: float | None
    """R² of the vectors decoded from the codes; None without quantizer and embeddings."""

    def to_json(self) -> str:
        """The report as a JSON object; bucket sizes become strings, as JSON asks."""
        return json.dumps(dataclasses.asdict(self))


def diagnose(
    semantic_ids: SemanticIds,
    train: Interactions | None = None,
    embeddings: ItemEmbeddings | None = None,
    quantizer: Quantizer | None = None,
) -> SemanticIdReport:
    """The report of a table; events, vectors and the quantizer each add their figures where given.

    Raises ``DataError`` for an empty table and for events or vectors of another number of items.
    """
    num_items = len(semantic_ids)
    if not num_items:
        raise DataError("the table of Semantic IDs is empty: there is nothing to report")
    for name, size in _sizes(train, embeddings):
        if size != num_items:
            raise DataError(f"{name} are of {size} items, the table of {num_items}: use those that belong together")
    codes_NL = content_codes(semantic_ids)
    events_N = None if train is None else train.item_counts()
    sizes_P = torch.bincount(groups(codes_NL, semantic_ids.codebook_sizes[: codes_NL.shape[1]]))
    num_tuples = int(groups(semantic_ids.codes_NL, semantic_ids.codebook_sizes).max()) + 1
    return SemanticIdReport(
        codebook_version=semantic_ids.codebook_version,
        table_revision=semantic_ids.table_revision,
        num_items=num_items,
        has_digit=semantic_ids.has_digit,
        unique_share=num_tuples / num_items,
        unique_share_content=len(sizes_P) / num_items,
        shared_items_share=int(sizes_P[sizes_P > 1].sum()) / num_items,
        bucket_sizes=dict(sorted(Counter(sizes_P.tolist()).items())),
        levels=[_level(codes_NL[:, i], semantic_ids.codebook_sizes[i], events_N) for i in range(codes_NL.shape[1])],
        coherence=_coherence(codes_NL, semantic_ids.codebook_sizes, train, embeddings),
        explained_share=_explained(codes_NL, embeddings, quantizer),
    )


def tree(
    semantic_ids: SemanticIds,
    catalog: Catalog,
    popularity_N: Tensor | None = None,
    max_children: int = 256,
    max_items: int = 20,
) -> dict[str, Any]:
    """The prefixes as nested plain dictionaries, the largest first: what a page needs to browse them.

    A node has ``codes`` (its prefix), ``num_items``, ``titles`` (its most popular items), ``children`` (at most
    ``max_children``) and ``num_children``. A node of all content codes has ``items`` instead of children: at most
    ``max_items`` dictionaries of ``item`` (dense index), ``item_id``, ``title``, ``codes``, most popular first.
    """
    codes_NL = content_codes(semantic_ids)
    popularity_N = torch.zeros(len(semantic_ids)) if popularity_N is None else popularity_N
    by_popularity = torch.argsort(popularity_N, descending=True, stable=True)
    page = _Page(semantic_ids, catalog, codes_NL, max_children, max_items)
    return page.node((), by_popularity)


@dataclass(frozen=True, eq=False)
class _Page:
    semantic_ids: SemanticIds
    catalog: Catalog
    codes_NL: Tensor
    max_children: int
    max_items: int

    def node(self, codes: tuple[int, ...], members: Tensor) -> dict[str, Any]:
        """The node of prefix ``codes`` with ``members``, most popular first."""
        titles = [self.catalog.titles[i] for i in members[:3].tolist()]
        node: dict[str, Any] = {"codes": list(codes), "num_items": len(members), "titles": titles}
        if len(codes) == self.codes_NL.shape[1]:
            return {**node, "items": [self._item(i) for i in members[: self.max_items].tolist()]}
        level_codes = self.codes_NL[members, len(codes)]
        counts = torch.bincount(level_codes)
        largest = torch.argsort(counts, descending=True, stable=True)[: self.max_children]
        children = [
            self.node((*codes, int(code)), members[level_codes == code]) for code in largest[counts[largest] > 0]
        ]
        return {**node, "num_children": int((counts > 0).sum()), "children": children}

    def _item(self, item: int) -> dict[str, Any]:
        return {
            "item": item,
            "item_id": self.catalog.items.ids[item].as_py(),
            "title": self.catalog.titles[item],
            "codes": self.semantic_ids.codes_NL[item].tolist(),
        }


def _sizes(train: Interactions | None, embeddings: ItemEmbeddings | None) -> list[tuple[str, int]]:
    events = [] if train is None else [("events", len(train.items))]
    return events + ([] if embeddings is None else [("embeddings", len(embeddings.vectors_ND))])


def _level(code_N: Tensor, size: int, events_N: Tensor | None) -> LevelReport:
    counts_C = torch.bincount(code_N, minlength=size)
    share_C = counts_C.double() / len(code_N)
    entropy = -torch.xlogy(share_C, share_C).sum()
    ranks_C = torch.arange(1, size + 1, dtype=torch.float64)
    # Σ (2·rank − C − 1)·x / (C·Σ x) over x in ascending order
    gini = ((2 * ranks_C - size - 1) * share_C.sort().values).sum() / size
    num_used = int((counts_C > 0).sum())
    events_C = None
    if events_N is not None:
        of_code_C = torch.zeros(size, dtype=torch.float64).index_add_(0, code_N, events_N.double())
        events_C = (of_code_C / of_code_C.sum().clamp(min=1)).tolist()
    perplexity = float(entropy.exp())
    return LevelReport(size, num_used, num_used / size, perplexity, float(gini), counts_C.tolist(), events_C)


def _coherence(
    codes_NL: Tensor, sizes: tuple[int, ...], train: Interactions | None, embeddings: ItemEmbeddings | None
) -> list[PrefixCoherence]:
    unit_ND = None
    if embeddings is not None:
        unit_ND = torch.nn.functional.normalize(embeddings.vectors_ND.double(), dim=1)
    random = None if unit_ND is None else _mean_cosine(unit_ND, torch.zeros(len(codes_NL), dtype=torch.int64))
    found = []
    for depth in range(1, codes_NL.shape[1] + 1):
        group_N = groups(codes_NL[:, :depth], sizes[:depth])
        within = None if unit_ND is None else _mean_cosine(unit_ND, group_N)
        neighbours = None if train is None else _neighbours_share(train, group_N)
        chance = None if train is None else _chance_share(train, group_N)
        found.append(PrefixCoherence(depth, within, random, neighbours, chance))
    return found


def _mean_cosine(unit_ND: Tensor, group_N: Tensor) -> float | None:
    """Mean cosine of two different items of one group that have vectors, from ‖Σ unit vectors‖² − their number."""
    num_groups = int(group_N.max()) + 1
    present_N = unit_ND.any(1)
    counts_G = torch.bincount(group_N[present_N])
    pairs = int((counts_G * (counts_G - 1)).sum())
    if not pairs:
        return None
    sums_GD = torch.zeros(num_groups, unit_ND.shape[1], dtype=torch.float64).index_add_(0, group_N, unit_ND)
    return float((sums_GD.square().sum() - present_N.sum()) / pairs)


def _neighbours_share(train: Interactions, group_N: Tensor) -> float | None:
    item_E = train.item_E.long()
    pair_E = (train.user_E.diff() == 0) & (train.step_E.diff() > 0) & (item_E.diff() != 0)
    if not bool(pair_E.any()):
        return None
    group_E = group_N[item_E]
    return float((group_E.diff() == 0)[pair_E].double().mean())


def _chance_share(train: Interactions, group_N: Tensor) -> float | None:
    """(Σ groups n² − Σ items n²) / (E² − Σ items n²) over numbers n of events."""
    events_N = train.item_counts().double()
    events_G = torch.zeros(int(group_N.max()) + 1, dtype=torch.float64).index_add_(0, group_N, events_N)
    same_item = float(events_N.square().sum())
    different = float(events_N.sum()) ** 2 - same_item
    return (float(events_G.square().sum()) - same_item) / different if different else None


def _explained(codes_NL: Tensor, embeddings: ItemEmbeddings | None, quantizer: Quantizer | None) -> float | None:
    if embeddings is None or quantizer is None:
        return None
    return explained_share(embeddings.vectors_ND, quantizer.decode(codes_NL))
