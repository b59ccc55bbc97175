"""The beams of a search at one level, and the step from level to level that all searches share.

Dimensions: B requests · M beams · C children · X = M · C continuations · l levels of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.errors import DataError, ResourceError

__all__ = ["Distribution", "Frontier", "Generation", "Step"]

Cache = TypeVar("Cache")

BYTES_A_CONTINUATION = 56
"""Held at once for each continuation of a beam: node, code, log-probability, score, flags and temporaries."""


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
class Generation(Generic[Cache]):
    """A fitted model and requests that it has read: what a search needs beside its options."""

    step: Step[Cache]
    cache: Cache
    """Of the first step."""
    trie: Trie
    mask: TrieMask
    """What the requests' filters leave."""
    num_requests: int


@component
class Distribution:
    """What probability a child has, of what the model says of the children of its prefix."""

    normalizer: Literal["model", "tree", "allowed"] = "model"
    """Over what the probabilities of a prefix's continuations sum to one: what the model says (its whole codebook, or
    the children in the tree); the children in the tree, which filters do not change; or those that filters allow."""
    temperature: Annotated[float, Field(ge=1e-6)] = 1.0
    """Divides logarithms before they are normalised: below 1 sharper, above 1 flatter."""
    nucleus: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the fewest children that together have this probability are left (top-p)."""

    def __post_init__(self) -> None:
        if self.temperature != 1 and self.normalizer == "model":
            raise ValueError('temperature needs a normalizer: set it to "tree" or "allowed"')
        if self.nucleus < 1 and self.normalizer != "allowed":
            raise ValueError('nucleus leaves out children: set normalizer to "allowed"')

    def log_probs(self, said_BMC: Tensor, exist_BMC: Tensor, legal_BMC: Tensor) -> Tensor:
        """Log-probabilities of the legal children, −inf for the others, of what the model said [B, M, C]."""
        if self.normalizer == "model":
            return said_BMC.masked_fill(~legal_BMC, -torch.inf)
        over_BMC = exist_BMC if self.normalizer == "tree" else legal_BMC
        logits_BMC = (said_BMC / self.temperature).masked_fill(~over_BMC, -torch.inf)
        if self.nucleus < 1:
            logits_BMC = logits_BMC.masked_fill(~_nucleus(logits_BMC.softmax(-1), self.nucleus), -torch.inf)
        nothing_BM1 = (logits_BMC == -torch.inf).all(-1, keepdim=True)
        return logits_BMC.log_softmax(-1).masked_fill(nothing_BM1 | ~legal_BMC, -torch.inf)


def _nucleus(probs_BMC: Tensor, share: float) -> Tensor:
    """The fewest most probable children with ``share`` of the probability, bool; of equals the first."""
    sorted_BMC, order_BMC = probs_BMC.sort(dim=-1, descending=True, stable=True)
    kept_BMC = sorted_BMC.cumsum(-1) - sorted_BMC < share
    return torch.zeros_like(kept_BMC).scatter(-1, order_BMC, kept_BMC)


class Frontier(Generic[Cache]):
    """Beams on their way down: ``expand`` shows their continuations, ``keep`` goes on with some of them."""

    def __init__(  # noqa: PLR0917  # what every search is given
        self,
        step: Step[Cache],
        cache: Cache,
        trie: Trie,
        num_requests: int,
        mask: TrieMask | None,
        distribution: Distribution,
        prompts_Bl: Tensor | None,
    ) -> None:
        """``prompts_Bl`` are codes with which the tuples of each request begin; −1 at the end of shorter ones."""
        trie.require_items()
        if prompts_Bl is not None:
            _check_prompts(prompts_Bl, num_requests, trie)
        if mask is not None:
            mask.check(trie, num_requests)
        self.step, self.cache, self.trie, self.mask = step, cache, trie, mask
        self.distribution, self.prompts_Bl = distribution, prompts_Bl
        self.level = 0
        self.nodes_BM = torch.zeros(num_requests, 1, dtype=torch.int64, device=trie.device)
        """Node of depth ``level`` of each beam; −1 for one that ended."""
        self.log_probs_BM = torch.zeros(num_requests, 1, device=trie.device)
        """Log-probability of each beam's prefix; −inf for one that ended."""
        self._parents_BM: Tensor | None = None
        self.children_BX = self.codes_BX = self.nodes_BM

    def expand(self) -> Tensor:
        """Log-probability of each continuation given its prefix, [B, M, C]; −inf where there is none.

        ``children_BX`` and ``codes_BX`` are their nodes and codes.
        """
        children_BMC, codes_BMC = self.trie.children(self.level, self.nodes_BM)
        self.children_BX, self.codes_BX = children_BMC.flatten(1), codes_BMC.flatten(1)
        self.cache, said_BMC = self.step(
            self.cache, self.level, self._parents_BM, self.nodes_BM, children_BMC, codes_BMC
        )
        assert said_BMC.shape == children_BMC.shape, "a step must give one log-probability a child"
        exist_BMC = children_BMC >= 0
        legal_BMC = exist_BMC if self.mask is None else self.mask.allows(self.level, children_BMC)
        if self.prompts_Bl is not None and self.level < self.prompts_Bl.shape[1]:
            prompt_B11 = self.prompts_Bl[:, self.level, None, None]
            legal_BMC = legal_BMC & ((codes_BMC == prompt_B11) | (prompt_B11 < 0))
        log_probs_BMC = self.distribution.log_probs(said_BMC.float(), exist_BMC, legal_BMC)
        assert not bool(log_probs_BMC.isnan().any()), "log-probabilities of legal children must not be NaN"
        return log_probs_BMC

    def keep(self, picks_BM: Tensor, log_probs_BM: Tensor) -> None:
        """Go on with the continuations at ``picks_BM`` (into X), whose prefixes have ``log_probs_BM``."""
        self.log_probs_BM = log_probs_BM
        ended_BM = log_probs_BM == -torch.inf
        self._parents_BM = picks_BM // (self.children_BX.shape[1] // self.nodes_BM.shape[1])
        self.nodes_BM = self.children_BX.gather(1, picks_BM).masked_fill(ended_BM, -1)
        self.level += 1


def _check_prompts(prompts_Bl: Tensor, num_requests: int, trie: Trie) -> None:
    if prompts_Bl.ndim != 2 or len(prompts_Bl) != num_requests or prompts_Bl.shape[1] > trie.num_levels:
        raise DataError(
            f"prompts_Bl has shape {tuple(prompts_Bl.shape)}: "
            f"give {num_requests} rows of at most {trie.num_levels} codes"
        )
    if prompts_Bl.is_floating_point():
        raise DataError(f"prompts_Bl has type {prompts_Bl.dtype}: give codes, int64")
    for depth, level in enumerate(trie.order[: prompts_Bl.shape[1]]):
        wrong = prompts_Bl[:, depth][(prompts_Bl[:, depth] < -1) | (prompts_Bl[:, depth] >= trie.codebook_sizes[level])]
        if len(wrong):
            raise DataError(
                f"a prompt has code {int(wrong[0])} at place {depth}: give codes of level {level}, "
                f"0 to {trie.codebook_sizes[level] - 1}, or −1 for any"
            )
    if bool(((prompts_Bl[:, 1:] >= 0) & (prompts_Bl[:, :-1] < 0)).any()):
        raise DataError("a prompt has a code behind a −1: give the first codes of a tuple, and −1 only at the end")


def check_size(trie: Trie, num_requests: int, num_beams: int, max_bytes: int | None, *, num_spare: int = 0) -> None:
    """Raise ``ResourceError`` where a search may hold more than ``max_bytes`` at once, with a size that fits.

    ``num_spare`` beams are held beside those that are asked for.
    """
    if num_beams < 1:
        raise ValueError(f"num_beams = {num_beams}: search with at least one beam")
    a_beam = max(trie.max_branching, default=1) * BYTES_A_CONTINUATION
    a_request = (num_beams + num_spare) * a_beam
    wanted = num_requests * a_request
    if max_bytes is None or wanted <= max_bytes:
        return
    beams = max_bytes // a_beam - num_spare
    if max_bytes >= a_request:
        remedy = f"search for {max_bytes // a_request} requests at a time"
    elif beams >= 1:
        remedy = f"search for at most {beams} beams, one request"
    else:
        remedy = f"give at least {a_beam * (1 + num_spare):,}, for one beam of one request"
    raise ResourceError(
        f"{num_requests} requests × {num_beams} beams hold up to {wanted:,} bytes beside the model, "
        f"max_bytes is {max_bytes:,}: {remedy}"
    )
