"""Beam search over a trie: the most probable code tuples, batched over requests and beams.

Paper: none of its own; the search of TIGER (arXiv 2305.05065), constrained as in STATIC (arXiv 2602.22647).
Adds: a loop over levels only; a model is a function from prefixes to log-probabilities of their legal children;
    bonuses that steer a beam, and scores of items that break ties in a bucket or are fused with its probability.
Differs: filters close prefixes before a beam enters them; of equal scores the lexicographically first tuple wins.
Checked: tests/decoding/test_beam_search.py (equal to exhaustive scoring, hypothesis); tests/prove (10⁷ results).

Dimensions: B requests · M beams · C children · L levels · K candidates · X items of all beams.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.config import Field, component
from tesserec.decoding.frontier import Distribution, Frontier, Step, check_size
from tesserec.decoding.top_k import first_best
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.errors import DataError
from tesserec.types import PAD, Candidates

__all__ = ["Beams", "Bonus", "Fusion", "ItemScores", "Step", "beam_search", "beams_to_items"]

Cache = TypeVar("Cache")

ItemScores = Callable[[Tensor, Tensor], Tensor]
"""(requests [X], items [X]) → a score of each pair [X], higher is better: a popularity, a dense score, a ranker."""


class Bonus(Protocol):
    """What is added to the score of continuations, and so steers the beam, but not to their log-probability."""

    def __call__(self, level: int, children_BMC: Tensor) -> Tensor:
        """A number for each node of depth ``level`` + 1, [B, M, C], −inf to close it; anything for −1."""


@component
class Fusion:
    """How scores of items are put together with the log-probabilities of their tuples."""

    beam_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of a tuple's score; the τ of COBRA (arXiv 2503.02453)."""
    item_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of an item's score; COBRA's ψ."""


@dataclass(frozen=True, eq=False)
class Beams:
    """Code tuples of each request, best first; −1 and −inf at the end where there are fewer than M."""

    leaves_BM: Tensor
    """Leaf of the trie, int64."""
    log_probs_BM: Tensor
    """Sum of the log-probabilities of the codes."""
    scores_BM: Tensor
    """What they are sorted by: the log-probability, with bonuses."""
    codes_BML: Tensor
    """The code tuples, int64."""
    inclusion_BM: Tensor | None = None
    """Of a sample, the probability with which each tuple came into it: see ``tesserec.decoding.sampling``."""


def beam_search(  # options of one search
    step: Step[Cache],
    cache: Cache,
    trie: Trie,
    *,
    num_requests: int,
    num_beams: int,
    mask: TrieMask | None = None,
    distribution: Distribution | None = None,
    bonus: Bonus | None = None,
    prompts_Bl: Tensor | None = None,
    max_bytes: int | None = None,
) -> Beams:
    """The ``num_beams`` best code tuples of each request that a beam of that width finds, on the trie's device.

    With at least as many beams as leaves the result is exact. No tuple occurs twice, none is outside the trie or
    without an item that ``mask`` allows, and there are ``num_beams`` where so many are allowed. The tuples of a request
    begin with its row of ``prompts_Bl`` (int64, −1 for "any" at the end; in the order in which the trie fills levels).
    Raises ``ValueError`` for ``num_beams`` below 1, ``DataError`` for a mask or prompts that are not of this trie and
    these requests, and ``ResourceError`` where beams and their continuations may need more than ``max_bytes``.
    """
    check_size(trie, num_requests, num_beams, max_bytes)
    frontier = Frontier(step, cache, trie, num_requests, mask, distribution or Distribution(), prompts_Bl)
    scores_BM = frontier.log_probs_BM
    for level in range(trie.num_levels):
        log_probs_BMC = frontier.expand()
        log_probs_BX = (frontier.log_probs_BM[..., None] + log_probs_BMC).flatten(1)
        totals_BX = log_probs_BX
        if bonus is not None:
            gains_BMC = bonus(level, frontier.children_BX.view_as(log_probs_BMC))
            steered_BMC = (scores_BM[..., None] + log_probs_BMC) + gains_BMC
            totals_BX = steered_BMC.flatten(1).masked_fill(log_probs_BX == -torch.inf, -torch.inf)
            _check_numbers(totals_BX, log_probs_BX.shape, "a bonus gives")
            log_probs_BX = log_probs_BX.masked_fill(totals_BX == -torch.inf, -torch.inf)
        # Beams stay in the order of their nodes, so that of equal scores the first in the trie is kept at every level.
        picks_BM = first_best(totals_BX, min(num_beams, totals_BX.shape[1]))
        scores_BM = totals_BX.gather(1, picks_BM)
        frontier.keep(picks_BM, log_probs_BX.gather(1, picks_BM))
    return sorted_beams(trie, frontier.nodes_BM, frontier.log_probs_BM, scores_BM, num_beams)


def beams_to_items(
    beams: Beams,
    trie: Trie,
    k: int,
    mask: TrieMask | None = None,
    *,
    item_scores: ItemScores | None = None,
    fusion: Fusion | None = None,
) -> Candidates:
    """The first ``k`` allowed items of the beams' buckets, on the CPU, with their ``codes`` [B, k, L] as trace.

    An item has the score of its tuple, and the items of one bucket keep the trie's order, or that of ``item_scores``.
    With ``fusion``, both scores are added with its weights, and decide together; then an item of score −inf is left
    out. Raises ``ValueError`` for ``k`` below 1 or ``fusion`` without ``item_scores``, ``DataError`` for a mask of
    another trie or number of requests, and for ``item_scores`` that are not a number a pair.
    """
    if k < 1:
        raise ValueError(f"k = {k}: ask for at least one item")
    if fusion is not None and item_scores is None:
        raise ValueError("fusion adds scores of items: give item_scores")
    num_requests = len(beams.leaves_BM)
    if mask is not None:
        mask.check(trie, num_requests)
    row_Y, beam_Y = (beams.leaves_BM >= 0).nonzero(as_tuple=True)
    leaf_X, place_X = trie.places_of(beams.leaves_BM[row_Y, beam_Y])
    row_X, beam_X = row_Y[leaf_X], beam_Y[leaf_X]
    if mask is not None:
        allowed_X = mask.allows_places(row_X, place_X)
        row_X, beam_X, place_X = row_X[allowed_X], beam_X[allowed_X], place_X[allowed_X]
    item_X = trie.items[place_X].long()
    score_X = beams.scores_BM[row_X, beam_X]
    if item_scores is not None:
        own_X = item_scores(row_X, item_X)
        _check_numbers(own_X, item_X.shape, "item_scores give")
        order_X, score_X = _ordered(score_X, own_X, row_X, beam_X, fusion)
        row_X, beam_X, item_X = row_X[order_X], beam_X[order_X], item_X[order_X]
    count_B = torch.bincount(row_X, minlength=num_requests)
    rank_X = torch.arange(len(row_X), device=trie.device) - (count_B.cumsum(0) - count_B)[row_X]
    top_X = rank_X < k
    place = row_X[top_X], rank_X[top_X]
    items_BK = item_X.new_full((num_requests, k), PAD)
    scores_BK = beams.scores_BM.new_full((num_requests, k), -torch.inf)
    codes_BKL = item_X.new_full((num_requests, k, trie.num_levels), -1)
    items_BK[place] = item_X[top_X]
    scores_BK[place] = score_X[top_X]
    codes_BKL[place] = beams.codes_BML[row_X[top_X], beam_X[top_X]]
    return Candidates(items_BK.cpu(), scores_BK.cpu(), trace={"codes": codes_BKL.cpu()})


def sorted_beams(  # noqa: PLR0917  # what beams are made of
    trie: Trie,
    leaves_BM: Tensor,
    log_probs_BM: Tensor,
    scores_BM: Tensor,
    num_beams: int,
    inclusion_BM: Tensor | None = None,
) -> Beams:
    """Best first, padded to ``num_beams`` or cut there."""
    scores_BM, order_BM = (part[:, :num_beams] for part in scores_BM.sort(dim=1, descending=True, stable=True))
    missing = num_beams - scores_BM.shape[1]
    leaves_BM = F.pad(leaves_BM.gather(1, order_BM), (0, missing), value=-1)
    return Beams(
        leaves_BM,
        F.pad(log_probs_BM.gather(1, order_BM), (0, missing), value=-torch.inf),
        F.pad(scores_BM, (0, missing), value=-torch.inf),
        trie.codes_of(leaves_BM),
        None if inclusion_BM is None else F.pad(inclusion_BM.gather(1, order_BM), (0, missing)),
    )


def _check_numbers(given: Tensor, shape: torch.Size, who: str) -> None:
    """Raise ``DataError`` where ``given`` has another shape, or numbers that nothing is best by."""
    if given.shape != shape:
        raise DataError(f"{who} shape {tuple(given.shape)}, expected {tuple(shape)}: give one number each")
    if bool((given.isnan() | (given == torch.inf)).any()):
        raise DataError(f"{who} NaN or inf: give numbers, or −inf for what is not wanted")


def _ordered(
    score_X: Tensor, own_X: Tensor, row_X: Tensor, beam_X: Tensor, fusion: Fusion | None
) -> tuple[Tensor, Tensor]:
    """(the items' order in their requests, by beam and own score or by both scores fused; their scores); stable."""
    by_X, keys = own_X, [beam_X, row_X]
    if fusion is not None:
        score_X = by_X = (fusion.beam_weight * score_X + fusion.item_weight * own_X).to(score_X.dtype)
        keys = [row_X]
    order_X = torch.argsort(by_X, descending=True, stable=True)
    for key_X in keys:
        order_X = order_X[torch.argsort(key_X[order_X], stable=True)]
    if fusion is not None:
        order_X = order_X[own_X[order_X] > -torch.inf]
    return order_X, score_X[order_X]
