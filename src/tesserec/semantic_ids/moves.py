"""Which items have other codes in a later table, and why.

Tables of different depth are compared at the levels that both have.

Dimensions: N items of the new table · M items of both · L levels of both (without the collision digit) · C codes of a
level.
"""

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

import polars as pl
import torch
from torch import Tensor

from tesserec.semantic_ids.diagnostics import Churn, churn
from tesserec.semantic_ids.table import content_codes, groups
from tesserec.types import SemanticIds, Vocabulary

__all__ = ["REASONS", "LevelMoves", "Moves", "Reason", "moves"]

Reason = Literal["new", "gone", "digit", "content", "changed", "reassigned", "renamed", "regrouped"]

_CODES = pl.List(pl.Int64)

REASONS: dict[Reason, str] = {
    "new": "the item is not in the old table",
    "gone": "the item is not in the new table",
    "digit": "the same bucket, another collision digit",
    "content": "the item's text or vector is another",
    "changed": "no codebooks are known, and no change of content",
    "reassigned": "the same codebook version, and no change of content is known",
    "renamed": "another codebook version: half or more of the items with its codes up to the first change went along",
    "regrouped": "another codebook version: it parted from most of those items, or there were none",
}
"""What each reason means. Where several hold the first one is given."""


@dataclass(frozen=True)
class LevelMoves:
    """What became of the codes of one level, over the items of both tables."""

    changed_share: float
    """Items with another code at this level."""
    num_codes: int
    """Codes that items have in either table."""
    num_changed_codes: int
    """Of these, codes that fewer than half of their items have in both: the code means something else now."""


@dataclass(frozen=True, eq=False)
class Moves:
    """The difference of two tables."""

    same_codebooks: bool | None
    """None where no codebooks are known."""
    churn: Churn
    levels: tuple[LevelMoves, ...]
    """Of the levels that were compared."""
    reasons: dict[Reason, int]
    """Items of each reason, all reasons given."""
    frame: pl.DataFrame
    """A row an item that moved, is new or gone: item_id, reason, kept_codes (how many first codes are the same; null
    for new and gone), old_codes and new_codes (lists; null where the item is not)."""


def moves(
    old: SemanticIds,
    new: SemanticIds,
    old_items: Vocabulary,
    new_items: Vocabulary,
    changed_N: Tensor | None = None,
    *,
    has_codebooks: bool = True,
) -> Moves:
    """What changed from ``old`` to ``new``, item by item.

    ``changed_N`` says of each item of ``new`` whether its content is another than in ``old``, bool (ignored for new
    items). Without ``has_codebooks`` the versions are not those of codebooks, as with codes of the user's own, and no
    reason is read off them. Where one table has more levels, its further codes and the digits do not count. Raises
    ``DataError`` for tables without a common item.
    """
    old_N = old_items.find(new_items.ids.to_pylist())
    first, second = _to_common_depth(old, new)
    found = churn(first, second, old_N)
    rows_M = (old_N >= 0).nonzero().squeeze(1)
    before_ML, after_ML = content_codes(first)[old_N[rows_M]], content_codes(second)[rows_M]
    kept_M = (before_ML == after_ML).long().cumprod(1).sum(1)
    moved_M = kept_M < before_ML.shape[1]
    if first.has_digit and second.has_digit:
        moved_M |= old.codes_NL[old_N[rows_M], -1] != new.codes_NL[rows_M, -1]
    same = old.codebook_version == new.codebook_version if has_codebooks else None
    renamed_M = _renamed(before_ML, after_ML, kept_M)
    changed_M = torch.zeros(len(rows_M), dtype=torch.bool) if changed_N is None else changed_N[rows_M]
    rows = []
    for m in moved_M.nonzero().squeeze(1).tolist():
        depth, row = int(kept_M[m]), int(rows_M[m])
        reason: Reason = "regrouped"
        if depth == before_ML.shape[1]:
            reason = "digit"
        elif changed_M[m]:
            reason = "content"
        elif same is None:
            reason = "changed"
        elif same:
            reason = "reassigned"
        elif renamed_M[m]:
            reason = "renamed"
        rows.append((row, reason, depth, int(old_N[row])))
    frame = _frame(old, new, old_items, new_items, rows, old_N)
    counts = Counter(frame["reason"].to_list())
    reasons: dict[Reason, int] = {reason: counts[reason] for reason in get_args(Reason)}
    levels = tuple(
        _level(before_ML[:, level], after_ML[:, level], found.codes[level]) for level in range(before_ML.shape[1])
    )
    return Moves(same, found, levels, reasons, frame)


def _to_common_depth(old: SemanticIds, new: SemanticIds) -> tuple[SemanticIds, SemanticIds]:
    """The tables as they are where they have equally many levels, else the first levels of both, without a digit."""
    depth, deepest = sorted(content_codes(table).shape[1] for table in (old, new))
    if depth == deepest:
        return old, new
    first, second = (
        dataclasses.replace(
            table, codes_NL=table.codes_NL[:, :depth], codebook_sizes=table.codebook_sizes[:depth], has_digit=False
        )
        for table in (old, new)
    )
    return first, second


def _frame(  # noqa: PLR0917  # two tables and what is known of their items
    old: SemanticIds,
    new: SemanticIds,
    old_items: Vocabulary,
    new_items: Vocabulary,
    rows: list[tuple[int, Reason, int, int]],
    old_N: Tensor,
) -> pl.DataFrame:
    """Moved items in the order of the new table, then new ones, then those that are gone."""
    is_gone = torch.ones(len(old), dtype=torch.bool)
    is_gone[old_N[old_N >= 0]] = False
    fresh, gone = (old_N < 0).nonzero().squeeze(1), is_gone.nonzero().squeeze(1)
    in_new = torch.cat([torch.tensor([row for row, *_ in rows], dtype=torch.int64), fresh])
    before = [old.codes_NL[one].tolist() for *_, one in rows]
    ids = [*new_items.to_ids(in_new), *old_items.to_ids(gone)]
    if old_items.is_text or new_items.is_text:
        ids = [str(one) for one in ids]
    return pl.DataFrame(
        {
            "item_id": ids,
            "reason": [reason for _, reason, *_ in rows] + ["new"] * len(fresh) + ["gone"] * len(gone),
            "kept_codes": pl.Series([d for *_, d, _ in rows] + [None] * (len(fresh) + len(gone)), dtype=pl.Int64),
            "old_codes": pl.Series(before + [None] * len(fresh) + old.codes_NL[gone].tolist(), dtype=_CODES),
            "new_codes": pl.Series(new.codes_NL[in_new].tolist() + [None] * len(gone), dtype=_CODES),
        }
    )


def _renamed(before_ML: Tensor, after_ML: Tensor, kept_M: Tensor) -> Tensor:
    """Whether at least half of the other items with its codes up to the first that changed went the same way, [M]."""
    renamed_M = torch.zeros(len(kept_M), dtype=torch.bool)
    for depth in range(1, before_ML.shape[1] + 1):
        size = int(max(before_ML.max(), after_ML.max())) + 1
        old_M = groups(before_ML[:, :depth], [size] * depth)
        both_M = groups(torch.cat([before_ML[:, :depth], after_ML[:, :depth]], 1), [size] * (2 * depth))
        others_M = torch.bincount(old_M)[old_M] - 1
        along_M = torch.bincount(both_M)[both_M] - 1
        here_M = kept_M == depth - 1
        renamed_M |= here_M & (others_M > 0) & (2 * along_M >= others_M)
    return renamed_M


def _level(before_M: Tensor, after_M: Tensor, changed_share: float) -> LevelMoves:
    size = int(max(before_M.max(), after_M.max())) + 1
    old_C, new_C = (torch.bincount(code_M, minlength=size) for code_M in (before_M, after_M))
    both_C = torch.bincount(before_M[before_M == after_M], minlength=size)
    either_C = old_C + new_C - both_C
    used_C = either_C > 0
    return LevelMoves(changed_share, int(used_C.sum()), int((2 * both_C < either_C)[used_C].sum()))
