"""Small event logs whose right answers are known by construction.

Item ids are ``i0, i1, …`` and user ids ``u0, u1, …``, so that the dense index is the number in the id.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import torch

from tesserec.types import Catalog, Filters, History, Interactions, Ragged, Requests, Vocabulary

__all__ = ["baskets", "catalog_of_size", "chain", "interactions_of", "requests_of", "two_groups"]

DAY_S = 86_400


def catalog_of_size(num_items: int) -> Catalog:
    """A catalog of items ``i0 …`` with titles ``item 0 …``."""
    frame = pl.DataFrame({"title": [f"item {i}" for i in range(num_items)]})
    return Catalog(Vocabulary.of([f"i{i}" for i in range(num_items)]), frame)


def interactions_of(users: Sequence[Sequence[Sequence[int]]], num_items: int, start_s: int = 0) -> Interactions:
    """A log from each user's baskets of dense item indices, one basket a day from ``start_s`` on."""
    rows = [
        (user, item, start_s + day * DAY_S)
        for user, days in enumerate(users)
        for day, basket in enumerate(days)
        for item in basket
    ]
    user, item, time = zip(*rows, strict=True) if rows else ((), (), ())
    return Interactions(
        users=Vocabulary.of([f"u{u}" for u in range(len(users))]),
        items=catalog_of_size(num_items).items,
        user_E=torch.tensor(user, dtype=torch.int32),
        item_E=torch.tensor(item, dtype=torch.int32),
        time_E=torch.tensor(time, dtype=torch.int64),
        order_E=torch.arange(len(rows)),
    )


def requests_of(
    users: Sequence[Sequence[Sequence[int]]],
    *,
    exclude_history: bool = False,
    excluded: Sequence[Sequence[int]] | None = None,
    available: Sequence[bool] | None = None,
    allowed: Sequence[Sequence[int]] | None = None,
) -> Requests:
    """A request a user after the baskets given, one basket a day, with ``step`` and ``time`` columns."""
    items = [[item for basket in baskets for item in basket] for baskets in users]
    steps = [step for baskets in users for step, basket in enumerate(baskets) for _ in basket]
    flat = Ragged.of(items)
    step_H = torch.tensor(steps, dtype=torch.int64)
    filters = Filters(
        exclude_history,
        None if excluded is None else Ragged.of(excluded),
        None if available is None else torch.tensor(available, dtype=torch.bool),
        None if allowed is None else Ragged.of(allowed),
    )
    return Requests(History(flat.offsets, flat.values, {"step": step_H, "time": step_H * DAY_S}), filters=filters)


def chain(num_items: int = 12, num_users: int = 24, length: int = 6) -> tuple[Interactions, Catalog]:
    """Item ``i`` is always followed by ``i + 1`` (modulo ``num_items``), one event a day."""
    users = [[[(user + day) % num_items] for day in range(length)] for user in range(num_users)]
    return interactions_of(users, num_items), catalog_of_size(num_items)


def two_groups(num_items: int = 12, num_users: int = 24, length: int = 5) -> tuple[Interactions, Catalog]:
    """Even users have only items of the lower half, odd users only of the upper half, ``length`` distinct ones each."""
    half = num_items // 2
    assert length <= half, "a user cannot have more distinct items than its group holds"
    users = [[[(user % 2) * half + (user // 2 + step) % half] for step in range(length)] for user in range(num_users)]
    return interactions_of(users, num_items), catalog_of_size(num_items)


def baskets(num_pairs: int = 6, num_users: int = 24, length: int = 4) -> tuple[Interactions, Catalog]:
    """Items ``2 p`` and ``2 p + 1`` are always bought together, and every user buys the first pair of theirs again.

    User ``u`` starts with pair ``u`` (modulo ``num_pairs``), goes through the next ones and ends with the first again.
    """
    users = [
        [_pair((user + (0 if step == length - 1 else step)) % num_pairs) for step in range(length)]
        for user in range(num_users)
    ]
    return interactions_of(users, 2 * num_pairs), catalog_of_size(2 * num_pairs)


def _pair(number: int) -> list[int]:
    return [2 * number, 2 * number + 1]
