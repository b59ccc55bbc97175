"""Row numbers in order of user, time, order: the sort of a large log, in little time and memory.

A counting sort by user (SciPy's transposition of a sparse matrix) is followed, where times are out of order, by one
sort of integers that hold (user, time, rank within the user): vectorised, in place, and stable because no two are
equal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from tesserec.types import NO_TIME

__all__ = ["sorted_rows"]

Array = npt.NDArray[Any]

_KEY_BITS = 63
_SLICE = 1 << 16


def sorted_rows(user_E: Array, time_E: Array, order_E: Array | None, num_users: int) -> Array:
    """Row numbers (int32 or int64) that sort by user, time, order; equal rows stay in the order given.

    A user with a missing time (``NO_TIME``) is sorted by order alone.
    """
    if int(time_E.min()) == NO_TIME:
        untimed_U = np.zeros(num_users, bool)
        untimed_U[user_E[time_E == NO_TIME]] = True
        time_E = np.where(untimed_U[user_E], 0, time_E)
    if order_E is not None:
        return np.lexsort((order_E, time_E, user_E))
    rows_E, starts_U = _by_user(user_E, num_users)
    key_E = time_E[rows_E]
    key_E -= key_E.min()
    time_bits, rank_bits = int(key_E.max()).bit_length(), int(np.diff(starts_U).max()).bit_length()
    if num_users.bit_length() + time_bits + rank_bits > _KEY_BITS:
        return np.lexsort((time_E, user_E))
    sorted_user_E = user_E[rows_E]
    for part in _slices(len(key_E)):
        key_E[part] += sorted_user_E[part].astype(np.int64) << time_bits
    if bool((key_E[1:] >= key_E[:-1]).all()):
        return rows_E
    for part in _slices(len(key_E)):
        rank_E = np.arange(part.start, part.stop) - starts_U[sorted_user_E[part]]
        key_E[part] = (key_E[part] << rank_bits) + rank_E
    key_E.sort()
    key_E &= (1 << rank_bits) - 1
    for part in _slices(len(key_E)):
        key_E[part] += starts_U[sorted_user_E[part]]
    return rows_E[key_E]


def _slices(length: int) -> list[slice]:
    """Consecutive slices that fit the processor's cache."""
    return [slice(start, min(start + _SLICE, length)) for start in range(0, length, _SLICE)]


def _by_user(user_E: Array, num_users: int) -> tuple[Array, Array]:
    """(the rows of each user, in the order given; where each user's begin [users + 1])."""
    offsets = np.arange(len(user_E) + 1, dtype=np.int32 if len(user_E) < 2**31 else np.int64)
    one_a_row = sp.csr_array((np.zeros(len(user_E), bool), user_E, offsets), shape=(len(user_E), num_users))
    by_column = one_a_row.tocsc()
    return by_column.indices, by_column.indptr
