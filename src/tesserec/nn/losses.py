"""Softmax cross-entropy over a catalog: in full, or over a sample with log-q correction.

Dimensions: P labelled positions · N items · S states · C sampled items · D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["NegativeSampler", "catalog_log_probs", "sampled_softmax_loss"]


class NegativeSampler:
    """Draws items with probability q ∝ count^¾ (+ 1, so that every item can be drawn), with replacement."""

    def __init__(self, counts_N: Tensor, num_negatives: int | None) -> None:
        weights_N = (counts_N.double() + 1) ** 0.75
        self.num_negatives = None if num_negatives is None or num_negatives >= len(counts_N) else num_negatives
        self.log_q_N = (weights_N / weights_N.sum()).log().float()
        self._cumulative_N = (weights_N / weights_N.sum()).cumsum(0)

    def draw(self) -> Tensor:
        """Indices [C] of the sampled items; uses torch's global generator."""
        assert self.num_negatives is not None
        uniform = torch.rand(self.num_negatives, dtype=torch.float64)
        return torch.searchsorted(self._cumulative_N, uniform).clamp(max=len(self._cumulative_N) - 1)


def sampled_softmax_loss(  # noqa: PLR0917  # one formula
    states_SD: Tensor,
    vectors: Callable[[Tensor], Tensor],
    state_P: Tensor,
    targets_P: Tensor,
    sampler: NegativeSampler,
    weights_P: Tensor | None = None,
    added: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Weighted mean cross-entropy of the pairs (state ``state_P``, item ``targets_P``) under softmax(states · items).

    ``vectors`` gives the vectors [X, D] of items [X]: of all of them, or with a sampler that has ``num_negatives`` only
    of targets and sample. The softmax of a pair then runs over its target and one shared sample, each logit less
    log(samples · q) of its item (Bengio & Senécal 2008); a sampled item that is the target is left out. What ``added``
    gives of items [X] for each pair, [P, X], is added to the logits of sampled items.
    """
    if sampler.num_negatives is None:
        items_ND = vectors(torch.arange(len(sampler.log_q_N), device=targets_P.device))
        log_probs_SN = catalog_log_probs(states_SD, items_ND)
        losses_P = -log_probs_SN[state_P, targets_P]
    else:
        drawn_C = sampler.draw()
        correction_C = sampler.log_q_N[drawn_C] + math.log(len(drawn_C))
        states_PD = states_SD[state_P]
        # in place: for many pairs these are by far the largest tensors of a step
        logits_PC = (states_PD @ vectors(drawn_C).T).float().sub_(correction_C)
        if added is not None:
            logits_PC += added(drawn_C)
        logits_PC.masked_fill_(drawn_C == targets_P[:, None], torch.finfo(torch.float32).min)
        # the target is drawn with certainty: its own logit needs no correction
        target_P = (states_PD * vectors(targets_P)).sum(1).float()
        losses_P = torch.logaddexp(logits_PC.logsumexp(1), target_P) - target_P
    return losses_P.mean() if weights_P is None else (losses_P * weights_P).sum() / weights_P.sum()


def catalog_log_probs(states_SD: Tensor, items_ND: Tensor, bonus_SN: Tensor | None = None) -> Tensor:
    """Log-softmax of states · items over the whole catalog, [S, N] float32; ``bonus_SN`` is added to the logits."""
    logits_SN = (states_SD @ items_ND.T).float()
    return (logits_SN if bonus_SN is None else logits_SN + bonus_SN).log_softmax(-1)
