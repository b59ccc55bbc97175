"""Diverse beam search: groups of beams, each kept away from the codes that the groups before it chose.

Paper: Vijayakumar et al. 2016, "Diverse Beam Search", arXiv 1610.02424.
Adds: no tuple twice: a group leaves out the tuples of those before it.
Differs: only the Hamming penalty, a number for each group before that chose the same code at the same level.
Checked: tests/decoding/test_diverse_beam_search.py (against a search over lists; no penalty and one group is a beam).

Dimensions: B requests · M beams · G groups · C children · X continuations · V codes of a level.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from tesserec.decoding.beam_search import Beams, sorted_beams
from tesserec.decoding.frontier import Distribution, Frontier, Step, check_size
from tesserec.decoding.top_k import first_best
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask

__all__ = ["diverse_beam_search"]

Cache = TypeVar("Cache")


def diverse_beam_search(  # options of one search
    step: Step[Cache],
    cache: Cache,
    trie: Trie,
    *,
    num_requests: int,
    num_beams: int,
    num_groups: int,
    penalty: float = 0.5,
    mask: TrieMask | None = None,
    distribution: Distribution | None = None,
    prompts_Bl: Tensor | None = None,
    max_bytes: int | None = None,
) -> Beams:
    """Distinct tuples of each request in ``num_groups`` groups of one size, sorted by log-probability.

    There are at most ``num_beams``; fewer where the last codes of a group's beams were all taken by groups before it.
    A continuation loses ``penalty`` for every beam of an earlier group that took the same code at this level. Raises as
    ``beam_search`` does, and ``ValueError`` where the groups do not divide the beams or for a ``penalty`` below 0.
    """
    check_size(trie, num_requests, num_beams, max_bytes)
    if num_groups < 1 or num_beams % num_groups or not 0 <= penalty < math.inf:
        raise ValueError(
            f"{num_beams} beams in {num_groups} groups with penalty {penalty}: give groups that divide the beams, "
            "and a finite penalty of at least 0"
        )
    frontier = Frontier(step, cache, trie, num_requests, mask, distribution or Distribution(), prompts_Bl)
    for level in range(trie.num_levels):
        log_probs_BX = (frontier.log_probs_BM[..., None] + frontier.expand()).flatten(1)
        # All groups start at the root; afterwards each has its own part of the continuations.
        num_parts = num_groups if level else 1
        width = log_probs_BX.shape[1] // num_parts
        parts = [slice(width * part, width * (part + 1)) for part in range(num_parts)] * (num_groups // num_parts)
        last = level == trie.num_levels - 1
        frontier.keep(*_picks(frontier, log_probs_BX, parts, num_beams // num_groups, penalty, last))
    return sorted_beams(trie, frontier.nodes_BM, frontier.log_probs_BM, frontier.log_probs_BM, num_beams)


def _picks(  # noqa: PLR0917  # one level of the loop above
    frontier: Frontier[Cache], log_probs_BX: Tensor, parts: list[slice], size: int, penalty: float, last: bool
) -> tuple[Tensor, Tensor]:
    """The continuations that the groups take, one group after the other, each from its part of X; and log-probs."""
    num_codes = int(frontier.codes_BX.max()) + 1 if frontier.codes_BX.numel() else 0
    taken_BV = log_probs_BX.new_zeros(len(log_probs_BX), max(num_codes, 1))
    picks_BM, kept_BM = frontier.children_BX[:, :0], log_probs_BX[:, :0]
    for part in parts:
        codes_Bx = frontier.codes_BX[:, part].clamp(min=0)
        totals_Bx = log_probs_BX[:, part] - penalty * taken_BV.gather(1, codes_Bx)
        if last:
            before_BM = frontier.children_BX.gather(1, picks_BM)
            again_Bx = (frontier.children_BX[:, part, None] == before_BM[:, None]).any(-1)
            totals_Bx = totals_Bx.masked_fill(again_Bx, -torch.inf)
        chosen_Bm = first_best(totals_Bx, min(size, totals_Bx.shape[1]))
        open_Bm = totals_Bx.gather(1, chosen_Bm) > -torch.inf
        taken_BV = taken_BV.scatter_add(1, codes_Bx.gather(1, chosen_Bm), open_Bm.to(taken_BV.dtype))
        found_Bm = log_probs_BX[:, part].gather(1, chosen_Bm).masked_fill(~open_Bm, -torch.inf)
        picks_BM = torch.cat([picks_BM, chosen_Bm + part.start], 1)
        kept_BM = torch.cat([kept_BM, found_Bm], 1)
    return picks_BM, kept_BM
