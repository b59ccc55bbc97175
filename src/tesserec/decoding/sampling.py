"""Sampling of code tuples: a sample without repeats with its inclusion probabilities, or independent draws.

Paper: Kool, van Hoof, Welling 2019, "Stochastic Beams and Where to Find Them", arXiv 1903.06059 (Gumbel top-k).
Adds: temperature, nucleus and filters, through the distribution that all searches share.
Differs: the probabilities of inclusion are given the (M + 1)-th value, as the paper's estimator takes them; the best
    value of all, which the paper's algorithm sets to 0, is drawn, without which that estimator has a bias.
Checked: tests/decoding/test_sampling.py (frequencies, and unbiased sums, against enumeration).

Dimensions: B requests · M beams · C children · X continuations.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.decoding.beam_search import Beams, sorted_beams
from tesserec.decoding.frontier import Distribution, Frontier, Step, check_size
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask

__all__ = ["sample_independently", "stochastic_beam_search"]

Cache = TypeVar("Cache")

ALLOWED = Distribution(normalizer="allowed")


def stochastic_beam_search(  # options of one search
    step: Step[Cache],
    cache: Cache,
    trie: Trie,
    *,
    num_requests: int,
    num_beams: int,
    generator: torch.Generator,
    mask: TrieMask | None = None,
    distribution: Distribution = ALLOWED,
    prompts_Bl: Tensor | None = None,
    max_bytes: int | None = None,
) -> Beams:
    """``num_beams`` distinct code tuples of each request, drawn without replacement by their probabilities.

    ``generator`` is on the trie's device. Tuples are sorted by their perturbed log-probability, which is their score: a
    shorter sample is the beginning of a longer one. ``inclusion_BM`` is the probability of each tuple to be in the
    sample given the threshold, the best perturbed value outside: the sum over the sample of f · p / inclusion estimates
    the mean of f without bias. It is 1 where all tuples are in. Raises as ``beam_search`` does, and ``ValueError`` for
    a normalizer other than "allowed".
    """
    _check_normalizer(distribution)
    check_size(trie, num_requests, num_beams, max_bytes, num_spare=1)
    frontier = Frontier(step, cache, trie, num_requests, mask, distribution, prompts_Bl)
    perturbed_BM = gumbel_noise(frontier.log_probs_BM, generator)
    for _ in range(trie.num_levels):
        log_probs_BMC = frontier.log_probs_BM[..., None] + frontier.expand()
        noise_BMC = gumbel_noise(log_probs_BMC, generator)
        perturbed_BX = with_maximum(log_probs_BMC + noise_BMC, perturbed_BM).flatten(1)
        log_probs_BX = log_probs_BMC.flatten(1)
        # One more than asked for: its value is the threshold.
        picks_BM = perturbed_BX.topk(min(num_beams + 1, perturbed_BX.shape[1]), dim=1).indices
        perturbed_BM = perturbed_BX.gather(1, picks_BM)
        frontier.keep(picks_BM, log_probs_BX.gather(1, picks_BM))
    missing = max(0, num_beams + 1 - perturbed_BM.shape[1])
    threshold_B1 = F.pad(perturbed_BM, (0, missing), value=-torch.inf)[:, -1:]
    inclusion_BM = -torch.expm1(-torch.exp(frontier.log_probs_BM - threshold_B1))
    inclusion_BM = torch.where(threshold_B1 == -torch.inf, 1.0, inclusion_BM).masked_fill(frontier.nodes_BM < 0, 0)
    return sorted_beams(trie, frontier.nodes_BM, frontier.log_probs_BM, perturbed_BM, num_beams, inclusion_BM)


def sample_independently(  # options of one search
    step: Step[Cache],
    cache: Cache,
    trie: Trie,
    *,
    num_requests: int,
    num_beams: int,
    generator: torch.Generator,
    mask: TrieMask | None = None,
    distribution: Distribution = ALLOWED,
    prompts_Bl: Tensor | None = None,
    max_bytes: int | None = None,
) -> Beams:
    """``num_beams`` draws of each request, each by the probabilities of all; what is drawn twice is there once.

    ``inclusion_BM`` is the probability of each tuple to be drawn at least once, 1 − (1 − p)^M. Raises as
    ``stochastic_beam_search`` does.
    """
    _check_normalizer(distribution)
    check_size(trie, num_requests, num_beams, max_bytes)
    frontier = Frontier(step, cache, trie, num_requests, mask, distribution, prompts_Bl)
    for level in range(trie.num_levels):
        log_probs_BMC = frontier.expand()
        if level == 0:  # all draws start at the one root
            log_probs_BMC = log_probs_BMC.expand(-1, num_beams, -1)
        drawn_BM = (log_probs_BMC + gumbel_noise(log_probs_BMC, generator)).argmax(-1)
        log_probs_BM = frontier.log_probs_BM + log_probs_BMC.gather(2, drawn_BM[..., None])[..., 0]
        own_M = torch.arange(num_beams if level else 1, device=trie.device) * log_probs_BMC.shape[2]
        frontier.keep(drawn_BM + own_M, log_probs_BM)
    leaves_BM, order_BM = frontier.nodes_BM.sort(dim=1)
    log_probs_BM = frontier.log_probs_BM.gather(1, order_BM)
    again_BM = F.pad(leaves_BM[:, 1:] == leaves_BM[:, :-1], (1, 0)) | (leaves_BM < 0)
    log_probs_BM = log_probs_BM.masked_fill(again_BM, -torch.inf)
    inclusion_BM = -torch.expm1(num_beams * torch.log1p(-log_probs_BM.exp().clamp(max=1)))
    return sorted_beams(trie, leaves_BM.masked_fill(again_BM, -1), log_probs_BM, log_probs_BM, num_beams, inclusion_BM)


def _check_normalizer(distribution: Distribution) -> None:
    if distribution.normalizer != "allowed":
        raise ValueError(
            f"normalizer = {distribution.normalizer!r}: a sample needs probabilities of what may be drawn that sum to "
            'one: set normalizer to "allowed"'
        )


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent standard Gumbel values in the shape of ``like``."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device)
    tiny = torch.finfo(uniform.dtype).tiny
    return -torch.log(-torch.log(uniform.clamp(min=tiny, max=1 - 2**-24)))


def with_maximum(perturbed_BMC: Tensor, maximum_BM: Tensor) -> Tensor:
    """Perturbed values, shifted so that the largest of each parent's children is the parent's (the paper's eq. 13)."""
    found_BM1 = perturbed_BMC.max(-1, keepdim=True).values
    nothing_BM1 = (found_BM1 == -torch.inf) | (maximum_BM[..., None] == -torch.inf)
    found_BM1 = found_BM1.masked_fill(nothing_BM1, 0)
    wanted_BM1 = maximum_BM[..., None].masked_fill(nothing_BM1, 0)
    gap_BMC = wanted_BM1 - perturbed_BMC + torch.log1p(-torch.exp(perturbed_BMC - found_BM1))
    shifted_BMC = wanted_BM1 - gap_BMC.clamp(min=0) - torch.log1p(torch.exp(-gap_BMC.abs()))
    return shifted_BMC.masked_fill(nothing_BM1 | (perturbed_BMC == -torch.inf), -torch.inf)
