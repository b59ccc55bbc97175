"""The best allowed items of dense scores, and the filters as a mask.

Dimensions: B requests · N items · K candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.errors import DataError
from tesserec.types import PAD, Candidates, Ragged, Requests

__all__ = [
    "MAX_SCORES",
    "allowed_items",
    "allowed_keys",
    "available_items",
    "check_flags",
    "check_items",
    "excluded_keys",
    "first_best",
    "top_k",
    "top_k_in_batches",
]

MAX_SCORES = 2**24
"""Scores held at once by ``top_k_in_batches``: 64 MB of float32, about 256 MB with masks and temporaries."""


def allowed_items(requests: Requests, num_items: int) -> Tensor:
    """Whether the filters of each request allow each item: bool [B, N].

    Raises ``DataError`` where the filters are not of ``num_items`` items.
    """
    allowed_BN = available_items(requests, num_items).repeat(len(requests), 1)
    allowed_BN.view(-1)[excluded_keys(requests, num_items)] = False
    keys = allowed_keys(requests, num_items)
    if keys is not None:
        listed_BN = torch.zeros_like(allowed_BN)
        listed_BN.view(-1)[keys] = True
        allowed_BN &= listed_BN
    return allowed_BN


def available_items(requests: Requests, num_items: int) -> Tensor:
    """Whether each item may be shown to anybody: bool [N]. Raises as ``check_flags`` does."""
    available_N = requests.filters.available_N
    if available_N is None:
        return torch.ones(num_items, dtype=torch.bool)
    check_flags(available_N, num_items)
    return available_N


def check_flags(available_N: Tensor, num_items: int) -> None:
    """Raise ``DataError`` where ``available_N`` is not bool [``num_items``]."""
    if available_N.shape != (num_items,) or available_N.dtype != torch.bool:
        shape = tuple(available_N.shape)
        raise DataError(
            f"available_N has shape {shape} and type {available_N.dtype}, expected ({num_items},) and torch.bool: "
            "give one flag an item"
        )


def excluded_keys(requests: Requests, num_items: int) -> Tensor:
    """``request · num_items + item`` of what a request's own filters exclude, distinct and ascending, int64.

    Raises ``DataError`` for items outside of 0 … ``num_items`` − 1.
    """
    filters, keys = requests.filters, torch.zeros(0, dtype=torch.int64)
    if filters.exclude_history:
        keys = _keys(requests.history.as_ragged(), num_items, "the history, which is excluded,")
    if filters.excluded is not None:
        keys = torch.cat([keys, _keys(filters.excluded, num_items, "filters.excluded")])
    distinct: Tensor = torch.unique(keys)
    return distinct


def allowed_keys(requests: Requests, num_items: int) -> Tensor | None:
    """The same of what the allow-lists of requests hold; None where there are no allow-lists."""
    allowed = requests.filters.allowed
    if allowed is None:
        return None
    distinct: Tensor = torch.unique(_keys(allowed, num_items, "filters.allowed"))
    return distinct


def _keys(items: Ragged, num_items: int, name: str) -> Tensor:
    """The keys of a row of items a request: of an item that is none, the key would be that of another request."""
    check_items(items.values, num_items, name)
    return items.rows * num_items + items.values


def check_items(items: Tensor, num_items: int, name: str) -> None:
    """Raise ``DataError`` where ``items``, which ``name`` holds, are not all in 0 … ``num_items`` − 1."""
    wrong = items[(items < 0) | (items >= num_items)]
    if len(wrong):
        raise DataError(
            f"{name} holds item {int(wrong[0])}, of a catalogue with items 0 to {num_items - 1}: "
            "leave out what is not in it, or use a model of the catalogue that has it"
        )


def top_k(scores_BN: Tensor, requests: Requests, k: int) -> Candidates:
    """The ``k`` best allowed items of each request, [B, k] on the CPU; of equal scores the lower index comes first.

    Items at −inf are never proposed; where fewer than ``k`` remain, the list ends in PAD. Raises ``ValueError`` for
    ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k = {k}: ask for at least one item")
    assert scores_BN.shape[0] == len(requests), "one row of scores a request"
    num_items = scores_BN.shape[1]
    allowed_BN = allowed_items(requests, num_items).to(scores_BN.device)
    scores_BN = scores_BN.masked_fill(~allowed_BN, -torch.inf)
    items_BK = first_best(scores_BN, min(k, num_items))
    scores_BK, order_BK = scores_BN.gather(1, items_BK).sort(dim=1, descending=True, stable=True)
    assert not bool(scores_BK.isnan().any()), "scores must not be NaN"  # NaN sorts before all numbers
    items_BK = items_BK.gather(1, order_BK).masked_fill(scores_BK == -torch.inf, PAD)
    missing = k - items_BK.shape[1]
    return Candidates(
        F.pad(items_BK, (0, missing), value=PAD).cpu(), F.pad(scores_BK, (0, missing), value=-torch.inf).cpu()
    )


def top_k_in_batches(score: Callable[[Requests], Tensor], requests: Requests, k: int, num_items: int) -> Candidates:
    """``top_k`` of ``score(requests)`` [B, N], in batches of requests that hold at most ``MAX_SCORES`` scores."""
    size = max(1, MAX_SCORES // max(1, num_items))
    if len(requests) <= size:
        return top_k(score(requests), requests, k)
    batches = (requests.take(rows) for rows in requests.batches(size))
    return Candidates.concatenate([top_k(score(batch), batch, k) for batch in batches])


def first_best(scores_BN: Tensor, k: int) -> Tensor:
    """Indices [B, k], ascending, of the ``k`` ≤ N best of each row; of those equal to the k-th the lowest are taken."""
    values_BK, picks_BK = scores_BN.topk(min(k + 1, scores_BN.shape[1]), dim=1)
    picks_BK = picks_BK[:, :k].sort(dim=1).values
    if k < values_BK.shape[1]:
        tied_B = values_BK[:, k - 1] == values_BK[:, k]
        picks_BK[tied_B] = _lowest_of_equals(scores_BN[tied_B], values_BK[tied_B, k - 1 : k], k)
    return picks_BK


def _lowest_of_equals(scores_BN: Tensor, least_B1: Tensor, k: int) -> Tensor:
    """Indices [B, k], ascending: all above ``least_B1``, and the lowest of those that equal it."""
    better_BN = scores_BN > least_B1
    equal_BN = scores_BN == least_B1
    room_B1 = k - better_BN.sum(1, keepdim=True)
    chosen_BN = better_BN | (equal_BN & (equal_BN.cumsum(1, dtype=torch.int32) <= room_B1))
    return chosen_BN.nonzero()[:, 1].view(len(scores_BN), k)
