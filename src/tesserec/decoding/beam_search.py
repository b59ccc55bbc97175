"""Beam search over a trie: the most probable code tuples, batched over requests and beams.

Paper: none of its own; the search of TIGER (arXiv 2305.05065), constrained as in STATIC (arXiv 2602.22647).
Adds: a loop over levels only; a model is a function from prefixes to log-probabilities of their legal children.
Differs: filters close prefixes before a beam enters them; of equal scores the lexicographically first tuple wins.
Checked: tests/decoding/test_beam_search.py (equal to exhaustive scoring, hypothesis); tests/prove (10⁶ results).

Dimensions: B requests · M beams · C children · L levels · K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.decoding.top_k import available_items, excluded_keys, first_best
from tesserec.decoding.trie import Trie, TrieMask, contains
from tesserec.types import PAD, Candidates, Requests

__all__ = ["Beams", "Step", "beam_search", "beams_to_items"]

Cache = TypeVar("Cache")


class Step(Protocol[Cache]):
    """The model: called once a level, with the beams that are left."""

    def __call__(  # noqa: PLR0917  # called once, by the search
        self,
        cache: Cache,
        level: int,
        parents_BM: Tensor | None,
        nodes_BM: Tensor,
        children_BMC: Tensor,
        codes_BMC: Tensor,
    ) -> tuple[Cache, Tensor]:
        """(the cache of the next call, log-probabilities [B, M, C] of ``children_BMC`` given their prefix).

        ``parents_BM`` is the beam of the call before that each beam continues (None at level 0, where M is 1): reorder
        the cache by it. ``nodes_BM`` are trie nodes of depth ``level``, −1 for a beam that ended; its values, and those
        of children that are −1, may be anything. Children that a filter forbids are present, so that a softmax
        over legal children does not depend on filters; the search leaves them out.
        """


@dataclass(frozen=True, eq=False)
class Beams:
    """Code tuples of each request, most probable first; −1 and −inf at the end where there are fewer than M."""

    leaves_BM: Tensor
    """Leaf of the trie, int64."""
    log_probs_BM: Tensor
    """Sum of the log-probabilities of the codes."""
    codes_BML: Tensor
    """The code tuples, int64."""


def beam_search(
    step: Step[Cache], cache: Cache, trie: Trie, *, num_requests: int, num_beams: int, mask: TrieMask | None = None
) -> Beams:
    """The ``num_beams`` best code tuples of each request that a beam of that width finds, on the trie's device.

    With at least as many beams as leaves the result is exact. No tuple occurs twice, none is outside the trie or
    without an item that ``mask`` allows. Raises ``ValueError`` for ``num_beams`` below 1.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams = {num_beams}: search with at least one beam")
    nodes_BM = torch.zeros(num_requests, 1, dtype=torch.int64, device=trie.device)
    scores_BM = torch.zeros(num_requests, 1, device=trie.device)
    codes_BML = nodes_BM.new_zeros(num_requests, 1, 0)
    parents_BM: Tensor | None = None
    for level in range(trie.num_levels):
        children_BMC, choices_BMC = trie.children(level, nodes_BM)
        cache, log_probs_BMC = step(cache, level, parents_BM, nodes_BM, children_BMC, choices_BMC)
        legal_BMC = children_BMC >= 0 if mask is None else mask.allows(level, children_BMC)
        totals_BMC = (scores_BM[..., None] + log_probs_BMC).masked_fill(~legal_BMC, -torch.inf)
        assert not bool(totals_BMC.isnan().any()), "log-probabilities of legal children must not be NaN"
        totals_BX = totals_BMC.flatten(1)
        # Beams stay in the order of their nodes, so that of equal scores the first in the trie is kept at every level.
        picks_BM = first_best(totals_BX, min(num_beams, totals_BX.shape[1]))
        scores_BM = totals_BX.gather(1, picks_BM)
        ended_BM = scores_BM == -torch.inf
        nodes_BM = children_BMC.flatten(1).gather(1, picks_BM).masked_fill(ended_BM, -1)
        parents_BM = picks_BM // children_BMC.shape[2]
        last_BM = choices_BMC.flatten(1).gather(1, picks_BM)
        codes_BML = torch.cat([_follow(codes_BML, parents_BM), last_BM[..., None]], 2)
        codes_BML = codes_BML.masked_fill(ended_BM[..., None], -1)
    return _sorted(nodes_BM, scores_BM, codes_BML, num_beams)


def beams_to_items(beams: Beams, trie: Trie, requests: Requests, k: int) -> Candidates:
    """The first ``k`` allowed items of the beams' buckets, on the CPU, with their ``codes`` [B, k, L] as trace.

    An item has the log-probability of its tuple; the items of one bucket keep the trie's order. Raises
    ``ValueError`` for ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k = {k}: ask for at least one item")
    rows_X, beam_X, item_X = _unpacked(beams.leaves_BM, trie)
    allowed_X = available_items(requests, trie.num_items).to(trie.device)[item_X]
    keys = excluded_keys(requests, trie.num_items).to(trie.device)
    if len(keys):
        allowed_X &= ~contains(keys, rows_X * trie.num_items + item_X)
    rows_X, beam_X, item_X = rows_X[allowed_X], beam_X[allowed_X], item_X[allowed_X]
    count_B = torch.bincount(rows_X, minlength=len(requests))
    rank_X = torch.arange(len(rows_X), device=trie.device) - (count_B.cumsum(0) - count_B)[rows_X]
    top_X = rank_X < k
    place = rows_X[top_X], rank_X[top_X]
    source = rows_X[top_X], beam_X[top_X]
    items_BK = item_X.new_full((len(requests), k), PAD)
    scores_BK = beams.log_probs_BM.new_full((len(requests), k), -torch.inf)
    codes_BKL = item_X.new_full((len(requests), k, trie.num_levels), -1)
    items_BK[place] = item_X[top_X]
    scores_BK[place] = beams.log_probs_BM[source]
    codes_BKL[place] = beams.codes_BML[source]
    return Candidates(items_BK.cpu(), scores_BK.cpu(), trace={"codes": codes_BKL.cpu()})


def _follow(values_BML: Tensor, parents_BM: Tensor) -> Tensor:
    """The row of each beam's parent."""
    return values_BML.gather(1, parents_BM[..., None].expand(-1, -1, values_BML.shape[2]))


def _sorted(leaves_BM: Tensor, scores_BM: Tensor, codes_BML: Tensor, num_beams: int) -> Beams:
    """Most probable first, padded to ``num_beams``."""
    scores_BM, order_BM = scores_BM.sort(dim=1, descending=True, stable=True)
    missing = num_beams - scores_BM.shape[1]
    return Beams(
        F.pad(leaves_BM.gather(1, order_BM), (0, missing), value=-1),
        F.pad(scores_BM, (0, missing), value=-torch.inf),
        F.pad(_follow(codes_BML, order_BM), (0, 0, 0, missing), value=-1),
    )


def _unpacked(leaves_BM: Tensor, trie: Trie) -> tuple[Tensor, Tensor, Tensor]:
    """(request, beam, item) of every item of every beam, in the order of requests and beams."""
    row_Y, beam_Y = (leaves_BM >= 0).nonzero(as_tuple=True)
    leaf_Y = leaves_BM[row_Y, beam_Y]
    first_Y = trie.buckets.offsets[leaf_Y]
    count_Y = trie.buckets.offsets[leaf_Y + 1] - first_Y
    shift_Y = first_Y - (count_Y.cumsum(0) - count_Y)
    position_X = torch.arange(int(count_Y.sum()), device=leaves_BM.device) + shift_Y.repeat_interleave(count_Y)
    return row_Y.repeat_interleave(count_Y), beam_Y.repeat_interleave(count_Y), trie.buckets.values[position_X]
