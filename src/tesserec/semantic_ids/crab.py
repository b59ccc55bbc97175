"""CRAB: over-popular codes of a table are split, so that no few tokens dominate training and answers.

Paper: CRAB, https://arxiv.org/abs/2604.05113 (read through notes, not in full)
Adds: the most popular codes of one level become several; an item goes to the part that owns its next code, so depth,
    ancestors and buckets stay as they are. Parts are found by k-means with a penalty on unequal popularity.
Differs: the largest part keeps the code of its parent, so that most of what a model learnt of it stays in place; a
    code must have ``over_popular`` times the mean popularity to be split; the offset of a new embedding is taken in
    the model's own space, from the embeddings of its next codes; the weights are not the paper's, which are not known.
Checked: tests/semantic_ids/test_crab.py (all partitions by brute force; no over-popular code leaves the table as it
    is; two planted groups of next codes come apart).

Dimensions: N items · L levels · C codes of the level · E new codes of it · S split codes · K codes of the next level ·
P parts · D features.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.errors import DataError
from tesserec.semantic_ids.diagnostics import check_popularity
from tesserec.semantic_ids.table import content_codes, table_version
from tesserec.types import SemanticIds

__all__ = ["CRAB", "CodeSplit", "tree_regulariser"]


@dataclass(frozen=True, eq=False)
class CodeSplit:
    """Which codes of a level were split, and how: what later items and a model's embeddings need."""

    level: int
    split_S: Tensor
    """The codes that were split, ascending, int64."""
    owner_SK: Tensor
    """The code that replaces each of them before each code of the next level, int64."""
    parent_E: Tensor
    """The split code each new code comes from, int64; new code e has the number C + e."""
    events_SK: Tensor
    """Events of items with each split code and next code, float64."""

    def recode(self, codes_NL: Tensor) -> Tensor:
        """Codes [N, L] of the codebooks as they were before, under the split; for later items too.

        Raises ``DataError`` for next codes that the codebook does not have.
        """
        if not len(self.split_S):
            return codes_NL
        next_N = codes_NL[:, self.level + 1]
        if len(next_N) and not 0 <= int(next_N.min()) <= int(next_N.max()) < self.owner_SK.shape[1]:
            raise DataError(
                f"level {self.level + 1} has codes in [{int(next_N.min())}, {int(next_N.max())}], "
                f"legal: [0, {self.owner_SK.shape[1] - 1}]"
            )
        code_N = codes_NL[:, self.level]
        row_N = torch.searchsorted(self.split_S, code_N.contiguous()).clamp(max=len(self.split_S) - 1)
        moved_N = torch.where(self.split_S[row_N] == code_N, self.owner_SK[row_N, next_N], code_N)
        return torch.cat([codes_NL[:, : self.level], moved_N[:, None], codes_NL[:, self.level + 1 :]], 1)

    def new_rows(self, rows_CD: Tensor, next_rows_KD: Tensor) -> Tensor:
        """Start of the embeddings [E, D] of the new codes, given those of the level and of the next one.

        The parent's, moved by what the next codes of the part have beyond those of the whole parent (means over
        events). Raises ``DataError`` where the two are of different widths.
        """
        if rows_CD.shape[1] != next_rows_KD.shape[1]:
            raise DataError(f"embeddings of {rows_CD.shape[1]} and {next_rows_KD.shape[1]} features: give equal widths")
        new = []
        for code, parent in enumerate(self.parent_E.tolist(), start=len(rows_CD)):
            row = int(torch.searchsorted(self.split_S, parent))
            events_K = self.events_SK[row].to(next_rows_KD.dtype)
            own_K = events_K * (self.owner_SK[row] == code)
            offset_D = own_K @ next_rows_KD / own_K.sum() - events_K @ next_rows_KD / events_K.sum()
            new.append(rows_CD[parent] + offset_D)
        return torch.stack(new) if new else rows_CD[:0]


@component
class CRAB:
    """Splits the over-popular codes of one level of a table."""

    level: Annotated[int, Field(ge=0)] | None = None
    """The level to split, the last of content excluded; the middle one by default (the paper's best)."""
    split_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """At most this share of the codes in use is split, the most popular ones."""
    over_popular: Annotated[float, Field(ge=1)] = 2.0
    """A code is over-popular with more than this many times the mean popularity of the codes in use."""
    max_parts: Annotated[int, Field(ge=2)] = 4
    """A code with m times the mean popularity is split in ⌈m⌉ parts, at most these many."""
    balance: Annotated[float, Field(ge=0)] = 1.0
    """Weight of Σ (share of the part − 1 / parts)² against the share of variance within the parts."""
    num_rounds: Annotated[int, Field(gt=0)] = 20
    """At most these many rounds of the balanced k-means."""

    def split(
        self, semantic_ids: SemanticIds, popularity_N: Tensor, next_vectors_KD: Tensor
    ) -> tuple[SemanticIds, CodeSplit]:
        """The table with over-popular codes split, and how; the same table where there is no such code.

        ``popularity_N`` are counts of training events, ``next_vectors_KD`` the code vectors of the level after the one
        that is split. The new table has a version of its own, and buckets, digits and revision of the old one. Raises
        ``DataError`` for a level without a next one, and for counts and vectors that do not fit the table.
        """
        codes_NL, sizes = content_codes(semantic_ids), semantic_ids.codebook_sizes
        level = self._level(codes_NL.shape[1])
        popularity_N = check_popularity(popularity_N, len(semantic_ids))
        _check_vectors(next_vectors_KD, sizes[level + 1])
        events_CK = torch.zeros(sizes[level] * sizes[level + 1], dtype=torch.float64)
        events_CK.index_add_(0, codes_NL[:, level] * sizes[level + 1] + codes_NL[:, level + 1], popularity_N)
        split = self._split(level, events_CK.view(sizes[level], sizes[level + 1]), next_vectors_KD.double())
        if not len(split.split_S):
            return semantic_ids, split
        sizes = (*sizes[:level], sizes[level] + len(split.parent_E), *sizes[level + 1 :])
        name = repr(("crab", semantic_ids.codebook_version, level, split.split_S.tolist(), split.owner_SK.tolist()))
        version = table_version(hashlib.sha256(name.encode()).hexdigest(), sizes, semantic_ids.has_digit)
        recoded_NL = split.recode(semantic_ids.codes_NL)
        return SemanticIds(recoded_NL, sizes, version, semantic_ids.table_revision, semantic_ids.has_digit), split

    def _level(self, num_levels: int) -> int:
        level = (num_levels - 1) // 2 if self.level is None else self.level
        if level + 1 >= num_levels:
            raise DataError(
                f"level {level} of {num_levels} levels of content has no next level whose codes could be shared out: "
                f"split a level below {num_levels - 1}"
            )
        return level

    def _split(self, level: int, events_CK: Tensor, vectors_KD: Tensor) -> CodeSplit:
        codes: list[int] = []
        owners: list[Tensor] = []
        parents: list[int] = []
        for code, num_parts in self._over_popular(events_CK.sum(1)):
            part_K = self._parts(events_CK[code], vectors_KD, num_parts)
            num_found = int(part_K.max()) + 1
            if num_found == 1:
                continue
            numbers_P = torch.arange(num_found) - 1 + len(events_CK) + len(parents)
            numbers_P[0] = code
            codes.append(code)
            owners.append(numbers_P[part_K])
            parents += [code] * (num_found - 1)
        split_S = torch.tensor(codes, dtype=torch.int64)
        owner_SK = torch.stack(owners) if owners else torch.zeros(0, events_CK.shape[1], dtype=torch.int64)
        return CodeSplit(level, split_S, owner_SK, torch.tensor(parents, dtype=torch.int64), events_CK[split_S])

    def _over_popular(self, events_C: Tensor) -> list[tuple[int, int]]:
        """The codes to split, ascending, each with its number of parts."""
        num_used = int((events_C > 0).sum())
        if not num_used:
            return []
        mean = events_C.sum() / num_used
        most = torch.argsort(events_C, descending=True, stable=True)[: int(self.split_share * num_used) or 1]
        found = most[events_C[most] > self.over_popular * mean].sort().values.tolist()
        return [(code, min(self.max_parts, int((events_C[code] / mean).ceil()))) for code in found]

    def _parts(self, events_K: Tensor, vectors_KD: Tensor, num_parts: int) -> Tensor:
        """The part of each next code, [K]: the most popular part is 0; codes without events go to the nearest part."""
        used_U = (events_K > 0).nonzero().squeeze(1)
        weight_U, points_UD = events_K[used_U] / events_K.sum(), vectors_KD[used_U]
        part_U = balanced_parts(points_UD, weight_U, num_parts, self.balance, self.num_rounds)
        shares_P = torch.zeros(num_parts, dtype=torch.float64).index_add_(0, part_U, weight_U)
        order_P = torch.argsort(shares_P, descending=True, stable=True)
        order_P = order_P[: int((shares_P > 0).sum())]
        means_PD = _means(points_UD, weight_U, part_U, num_parts)[order_P]
        part_K = torch.cdist(vectors_KD, means_PD).argmin(1)
        part_K[used_U] = torch.argsort(order_P.new_tensor(_full_order(order_P.tolist(), num_parts)))[part_U]
        return part_K


def balanced_parts(points_UD: Tensor, weight_U: Tensor, num_parts: int, balance: float, num_rounds: int = 20) -> Tensor:
    """Parts [U] of weighted points (weights sum to 1) at a local minimum of the balanced k-means objective.

    J = Σ_u w_u ‖x_u − mean of its part‖² / variance + balance · Σ_p (W_p − 1 / P)². One point after the other, heaviest
    first, goes where J is least, until none moves. Starts at points far from each other.
    """
    variance = weight_U @ (points_UD - weight_U @ points_UD).square().sum(1)
    scaled_UD = points_UD / variance.sqrt().clamp(min=1e-12)
    means_PD = _far_points(scaled_UD, weight_U, num_parts)
    part_U = torch.cdist(scaled_UD, means_PD).argmin(1)
    loads_P = torch.zeros(num_parts, dtype=torch.float64).index_add_(0, part_U, weight_U)
    means_PD = _means(scaled_UD, weight_U, part_U, num_parts)
    for _ in range(num_rounds):
        moved = False
        for point in torch.argsort(weight_U, descending=True, stable=True).tolist():
            weight, at, x_D = weight_U[point], int(part_U[point]), scaled_UD[point]
            rest_P = loads_P.clone()
            rest_P[at] = (rest_P[at] - weight).clamp(min=0)
            rest_PD = means_PD.clone()
            rest_PD[at] = (loads_P[at] * means_PD[at] - weight * x_D) / rest_P[at].clamp(min=1e-12)
            # joining a part of load W and mean m adds w W / (w + W) ‖x − m‖² to the first term
            cost_P = weight * rest_P / (weight + rest_P) * (rest_PD - x_D).square().sum(1)
            cost_P = cost_P + balance * ((rest_P + weight - 1 / num_parts).square() - (rest_P - 1 / num_parts).square())
            best = int(cost_P.argmin())
            if cost_P[best] < cost_P[at] - 1e-12:
                moved = True
                part_U[point] = best
                loads_P, means_PD = rest_P, rest_PD
                means_PD[best] = (loads_P[best] * means_PD[best] + weight * x_D) / (loads_P[best] + weight)
                loads_P[best] += weight
        if not moved:
            break
    return part_U


def tree_regulariser(
    rows_CD: Tensor, next_rows_KD: Tensor, codes_NL: Tensor, split: CodeSplit, events_C: Tensor
) -> Tensor:
    """CRAB's loss on token embeddings after a split, a scalar: siblings together, next codes near their parents.

    Mean over the codes c of the split of ‖e_c − mean of its siblings‖² · (mean events / events_c), siblings being the
    parts of one parent (itself included), plus the mean over the pairs of a part and a next code that occur in
    ``codes_NL`` (after the split) of ‖e_next − e_part‖². 0 where nothing was split. Fine-tuning adds
    it to its loss with a weight of about 0.01. Raises ``DataError`` for embeddings of another number of codes.
    """
    num_codes = len(events_C)
    if len(rows_CD) != num_codes or len(next_rows_KD) != split.owner_SK.shape[1]:
        raise DataError(
            f"{len(rows_CD)} and {len(next_rows_KD)} embeddings for {num_codes} codes and "
            f"{split.owner_SK.shape[1]} next codes: give one a code, of the table after the split"
        )
    if not len(split.split_S):
        return rows_CD.sum() * 0
    family_C = torch.full((num_codes,), -1, dtype=torch.int64)
    family_C[split.split_S] = torch.arange(len(split.split_S))
    new_E = num_codes - len(split.parent_E) + torch.arange(len(split.parent_E))
    family_C[new_E] = family_C[split.parent_E]
    parts_P = (family_C >= 0).nonzero().squeeze(1)
    family_P = family_C[parts_P]
    sums_SD = rows_CD.new_zeros(len(split.split_S), rows_CD.shape[1]).index_add(0, family_P, rows_CD[parts_P])
    means_SD = sums_SD / torch.bincount(family_P)[:, None]
    events_P = events_C[parts_P].to(rows_CD.dtype).clamp(min=1)
    siblings = ((rows_CD[parts_P] - means_SD[family_P]).square().sum(1) * events_P.mean() / events_P).mean()
    pairs_M2 = torch.unique(codes_NL[:, split.level : split.level + 2], dim=0)
    pairs_M2 = pairs_M2[family_C[pairs_M2[:, 0]] >= 0]
    return siblings + (next_rows_KD[pairs_M2[:, 1]] - rows_CD[pairs_M2[:, 0]]).square().sum(1).mean()


def _full_order(order: list[int], num_parts: int) -> list[int]:
    """``order`` with the parts it lacks at its end."""
    return [*order, *(part for part in range(num_parts) if part not in order)]


def _far_points(points_UD: Tensor, weight_U: Tensor, num_parts: int) -> Tensor:
    """The heaviest point, then again and again the one with the largest weighted square distance to those chosen."""
    chosen = [int(weight_U.argmax())]
    while len(chosen) < num_parts:
        distance_U = torch.cdist(points_UD, points_UD[chosen]).min(1).values.square()
        chosen.append(int((weight_U * distance_U).argmax()))
    return points_UD[chosen]


def _means(points_UD: Tensor, weight_U: Tensor, part_U: Tensor, num_parts: int) -> Tensor:
    loads_P = torch.zeros(num_parts, dtype=torch.float64).index_add_(0, part_U, weight_U)
    sums_PD = torch.zeros(num_parts, points_UD.shape[1], dtype=torch.float64)
    return sums_PD.index_add_(0, part_U, weight_U[:, None] * points_UD) / loads_P.clamp(min=1e-12)[:, None]


def _check_vectors(vectors_KD: Tensor, codebook_size: int) -> None:
    if vectors_KD.ndim != 2 or len(vectors_KD) != codebook_size:
        raise DataError(
            f"next_vectors_KD has shape {tuple(vectors_KD.shape)}, expected [{codebook_size}, features]: the code "
            "vectors of the level after the one that is split"
        )
    if not bool(torch.isfinite(vectors_KD).all()):
        raise DataError("next_vectors_KD holds NaN or infinity: fit the codebooks again")
