"""Segment popularity: what people like this user buy, told from counts alone.

A user's segment is the first code that most of the history has, or the domain where items have no codes. It needs no
network, so it answers when the networks cannot.

Dimensions: B requests · E events · S segments · N items.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl
import scipy.sparse as sp
import torch
from torch import Tensor

from tesserec.bundle import Content
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.retrievers.evidence import Shares, row_shares
from tesserec.types import Candidates, Catalog, Interactions, Requests, as_numpy

__all__ = ["SegmentPopularity", "segments_of"]

BACK_OFF = 0.01
"""Share of global popularity in the score: it orders what nobody of the segment had."""
NO_SEGMENT = -1


def segments_of(catalog: Catalog, content: Content) -> Tensor | None:
    """The segment of each item, [N] int64 (−1 where it has none): its first code, else its domain; None without both.

    Items that are appended to a catalog leave the segments of those before as they are.
    """
    if content.semantic_ids is not None:
        return content.semantic_ids.codes_NL[:, 0].long()
    if "domain" not in catalog.frame.columns:
        return None
    domains = catalog.frame["domain"].cast(pl.String)
    number = {name: i for i, name in enumerate(domains.drop_nulls().unique(maintain_order=True).to_list())}
    return torch.tensor([NO_SEGMENT if name is None else number[name] for name in domains.to_list()])


@dataclass(frozen=True, eq=False)
class SegmentPopularity:
    """Proposes what users of the request's segment had most; what is popular with everybody orders the rest."""

    segment_N: Tensor
    """Segment of each item, int64, −1 where it has none."""
    share_SN: sp.csr_matrix
    """Of the positive events by users of a segment, the share of each item; rows sum to 1 − BACK_OFF."""
    popular_N: Tensor
    """Share of each item in global popularity."""

    @classmethod
    def fitted(cls, events: Interactions, segment_N: Tensor, popular_N: Tensor) -> SegmentPopularity:
        """Count the positive events of ``events``; each user has one segment."""
        events = events.positives()
        shape = (int(segment_N.max()) + 1 if len(segment_N) else 0, len(segment_N))
        user_segment_U = _most_of_rows(events.user_E.long(), segment_N[events.item_E.long()], len(events.users))
        segment_E = user_segment_U[events.user_E.long()]
        counted_E = segment_E >= 0
        places = (as_numpy(segment_E[counted_E]), as_numpy(events.item_E[counted_E]))
        counts = sp.csr_matrix((np.ones(len(places[0]), np.float32), places), shape=shape)
        return cls(segment_N, row_shares(counts, 1 - BACK_OFF), popular_N)

    def grown(self, segment_N: Tensor, popular_N: Tensor) -> SegmentPopularity:
        """With further items, which nobody had yet; counts are shared."""
        share = self.share_SN
        shape = (max(share.shape[0], int(segment_N.max()) + 1), len(segment_N))
        indptr = np.pad(share.indptr, (0, shape[0] - share.shape[0]), mode="edge")
        wider = sp.csr_matrix((share.data, share.indices, indptr), shape=shape)
        return dataclasses.replace(self, segment_N=segment_N, share_SN=wider, popular_N=popular_N)

    def segments(self, requests: Requests) -> Tensor:
        """The segment of each request, [B] int64, −1 where its history has none; of equals, the lowest."""
        history = requests.history.positives()
        return _most_of_rows(history.rows, self.segment_N[history.items], len(requests))

    def score_all(self, requests: Requests) -> Tensor:
        """(1 − BACK_OFF) · share in the segment + BACK_OFF · share in all, [B, N] float32 in [0, 1]."""
        segment_B = as_numpy(self.segments(requests))
        known_B = np.flatnonzero(segment_B >= 0)
        choose = sp.csr_matrix(
            (np.ones(len(known_B), np.float32), (known_B, segment_B[known_B])),
            shape=(len(segment_B), self.share_SN.shape[0]),
        )
        return Shares(choose @ self.share_SN, BACK_OFF * self.popular_N).dense()

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        return top_k_in_batches(self.score_all, requests, k, len(self.segment_N))


def _most_of_rows(row_E: Tensor, segment_E: Tensor, num_rows: int) -> Tensor:
    """The segment that most events of each row have, [rows] int64; −1 for rows without any."""
    found = torch.full((num_rows,), NO_SEGMENT)
    known_E = segment_E >= 0
    if not bool(known_E.any()):
        return found
    size = int(segment_E.max()) + 1
    key, count = torch.unique(row_E[known_E] * size + segment_E[known_E], return_counts=True)
    order = torch.from_numpy(np.lexsort((as_numpy(-count), as_numpy(key // size))))  # stable: lower segments first
    key = key[order]
    first = torch.ones(len(key), dtype=torch.bool)
    first[1:] = (key[1:] // size) != (key[:-1] // size)
    found[key[first] // size] = key[first] % size
    return found
