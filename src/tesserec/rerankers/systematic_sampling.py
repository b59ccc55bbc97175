"""Systematic sampling: so many items without replacement, each with a probability that is known exactly.

Paper: Madow 1949, "On the Theory of Systematic Sampling, II", Annals of Mathematical Statistics 20, and Särndal,
    Swensson, Wretman 1992, "Model Assisted Survey Sampling" (section 3.6).
Adds: probabilities of inclusion proportional to exp(score / temperature), those that would exceed 1 set to 1; one
    uniform number draws the whole sample, so that the probabilities hold exactly, which they do not where items are
    drawn one after the other.
Differs: items are in a random order within each group, so that neighbours in the list can be drawn together; a group
    whose probabilities sum to c is drawn c times, rounded down or up.
Checked: tests/rerankers/test_systematic_sampling.py (frequencies of 4,000 draws; probabilities by hand).

Dimensions: X candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw", "inclusion_probabilities"]

ROUNDING = 1e-12
"""A probability that near to 1 is 1: no item may cover two points of the line."""


def inclusion_probabilities(scores_X: Tensor, k: int, temperature: float) -> Tensor:
    """Probabilities of inclusion [X] float64 that sum to min(``k``, X), in proportion to exp(score / temperature).

    Scores in any order, finite. An item whose proportion would exceed 1 has 1, and the others share what is left.
    """
    if k >= len(scores_X):
        return torch.ones(len(scores_X), dtype=torch.float64)
    logits_X, order_X = (scores_X.double() / temperature).sort(descending=True, stable=True)
    # total[m]: log of the sum of weights from place m on; the item there has (k − m) / total of its weight.
    total_X = logits_X.flip(0).logcumsumexp(0).flip(0)
    share_X = (k - torch.arange(len(logits_X))) * (logits_X - total_X).exp()
    num_certain = int((share_X < 1 - ROUNDING).nonzero()[0])
    found_X = torch.ones_like(logits_X)
    found_X[num_certain:] = (k - num_certain) * logits_X[num_certain:].softmax(0)
    return torch.empty_like(found_X).scatter(0, order_X, found_X)


def draw(inclusion_X: Tensor, generator: torch.Generator, group_X: Tensor | None = None) -> Tensor:
    """A sample as ascending indices into X; item x is in it with probability ``inclusion_X``.

    The probabilities are in [0, 1] and sum to a whole number, the size of the sample. With ``group_X`` (bool), those of
    the group are neighbours: if they sum to c, at least ⌊c⌋ and at most ⌈c⌉ of them are drawn.
    """
    certain_X = inclusion_X >= 1
    open_x = (~certain_X).nonzero().squeeze(1)
    open_x = open_x[torch.randperm(len(open_x), generator=generator)]
    num_first = 0
    if group_X is not None:
        open_x = open_x[(~group_X[open_x]).long().argsort(stable=True)]
        num_first = int(group_X[open_x].sum())
    ends_x = _ends(inclusion_X[open_x].double(), num_first)
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    # Points shift, 1 + shift, 2 + shift …: how many lie before each item's end, and which item that adds one to.
    before_x = (ends_x - shift).ceil()
    hit_x = before_x.diff(prepend=torch.zeros(1, dtype=torch.float64)) > 0
    return torch.cat([certain_X.nonzero().squeeze(1), open_x[hit_x]]).sort().values


def _ends(inclusion_x: Tensor, num_first: int) -> Tensor:
    """Where each item ends on the line, the first ``num_first`` and then the others.

    The ends of both parts are whole numbers where they are so but for rounding.
    """
    first_x, other_x = inclusion_x[:num_first].cumsum(0), inclusion_x[num_first:].cumsum(0)
    middle = _whole(first_x[-1]) if num_first else torch.zeros((), dtype=torch.float64)
    end = _whole(middle + other_x[-1]) if len(other_x) else middle
    return torch.cat([_closed(first_x, middle), _closed(middle + other_x, end)])


def _closed(ends_x: Tensor, end: Tensor) -> Tensor:
    """``ends_x`` with the last one at ``end``, and none behind it."""
    return torch.cat([ends_x[:-1].clamp(max=end), end[None]]) if len(ends_x) else ends_x


def _whole(total: Tensor) -> Tensor:
    near = total.round()
    return near if abs(float(near - total)) < 1e3 * ROUNDING else total
