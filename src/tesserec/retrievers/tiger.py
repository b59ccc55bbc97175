"""TIGER: an encoder reads the codes of the history, a decoder writes the codes of the next item.

Paper: Rajput et al. 2023, "Recommender Systems with Generative Retrieval", arXiv 2305.05065.
Adds: T5 reads a hashed user token and codes, one range of tokens a level, and writes codes; every prefix of a user's
    events predicts its next item; beam search.
Differs: AdamW with a cosine in place of an inverse square root; the beam is kept inside the tree by the trie, not
    filtered after; no probability is given to user tokens, which are never written.
Checked: tests/retrievers/test_tiger.py (planted chain; beam equals exhaustive scoring of all code tuples; beams and
    scores equal Hugging Face's with the same weights).

Dimensions: B examples or requests · H items of a history · S tokens read · M beams · C children · L levels · V tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component, settings_of
from tesserec.data.batches import Windows, batches_of_like_length, history_of, windows_of
from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.frontier import Generation
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_file import kept_trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.errors import RecipeError
from tesserec.nn.growth import load_grown
from tesserec.nn.sid_features import SIDFeatures, SIDKeys
from tesserec.nn.t5 import T5, Source, Written
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.evidence import require_fitted
from tesserec.training.estimate import estimate_training
from tesserec.training.loop import Job, TrainingConfig, seeded, train_model
from tesserec.training.validation import validation_ndcg
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    ComponentState,
    Estimate,
    FitContext,
    History,
    Interactions,
    Requests,
    SemanticIds,
)

__all__ = ["TIGER", "Examples"]

KEY_WIDTH = 32
"""Features of a row of ``keys``."""
BEAMS_AT_ONCE, REQUESTS_AT_ONCE = 800, 32
"""Beams, and requests, that are worked on at once: more of them no longer fit the caches of a core."""


@dataclass(frozen=True)
class Examples:
    """Histories and what followed them."""

    items_BH: Tensor
    """Right-aligned, ``PAD`` on the left."""
    user_B: Tensor
    target_B: Tensor


class _Network(nn.Module):
    """T5 over the tokens: 0, which begins what is written, then the codes of each level. Users are read only."""

    tokens_NL: Tensor

    def __init__(
        self,
        config: TransformerConfig,
        semantic_ids: SemanticIds,
        trie: Trie,
        num_user_tokens: int,
        keys: SIDKeys | None = None,
    ) -> None:
        super().__init__()
        sizes = semantic_ids.codebook_sizes
        self.trie = trie
        self.starts = [1 + sum(sizes[:level]) for level in range(len(sizes))]
        self.register_buffer("tokens_NL", semantic_ids.codes_NL.long() + torch.tensor(self.starts), persistent=False)
        self.t5 = T5(config, 1 + sum(sizes))
        self.users = nn.Embedding(num_user_tokens + 1, config.width, padding_idx=num_user_tokens)
        with torch.no_grad():
            self.users.weight[num_user_tokens] = 0  # unknown users: never trained, so it must say nothing
        self.memory = None if keys is None else SIDFeatures(semantic_ids, keys, KEY_WIDTH, host_width=config.width)

    def read(self, items_BH: Tensor, user_B: Tensor) -> Source:
        """What the decoder needs of right-aligned histories and hashed users; the user's token comes first."""
        levels = self.tokens_NL.shape[1]
        tokens_BS = F.pad(self.tokens_NL[items_BH.clamp(min=0)].flatten(1), (1, 0))
        first_B = (items_BH == PAD).sum(1) * levels
        position_S = torch.arange(tokens_BS.shape[1], device=tokens_BS.device)
        is_user_BS = position_S == first_B[:, None]
        x_BSD = self.t5.shared(tokens_BS)
        if self.memory is not None:
            x_BSD = x_BSD + F.pad(self._remembered(items_BH.clamp(min=0)).flatten(1, 2), (0, 0, 1, 0))
        x_BSD = torch.where(is_user_BS[..., None], self.users(user_B)[:, None], x_BSD)
        return self.t5.read(x_BSD, position_S >= first_B[:, None])

    def loss(self, examples: Examples) -> Tensor:
        """Mean token cross-entropy over levels and examples."""
        tokens_BL = self.tokens_NL[examples.target_B]
        added_BLD = None
        if self.memory is not None:
            added_BLD = F.pad(self._remembered(examples.target_B)[:, :-1], (0, 0, 1, 0))
        source = self.read(examples.items_BH, examples.user_B)
        logits_BLV = self.t5(source, F.pad(tokens_BL[:, :-1], (1, 0)), added_BLD)
        return F.cross_entropy(logits_BLV.flatten(0, 1).float(), tokens_BL.flatten())

    def step(  # noqa: PLR0917  # the protocol
        self,
        cache: Written,
        level: int,
        parents_BM: Tensor | None,
        nodes_BM: Tensor,
        children_BMC: Tensor,
        codes_BMC: Tensor,
    ) -> tuple[Written, Tensor]:
        """``tesserec.decoding.beam_search.Step``: log-softmax over all tokens, at the children."""
        last_BM, added_BMD = torch.zeros_like(nodes_BM, dtype=torch.int64), None
        if level:
            nodes_BM = nodes_BM.clamp(min=0)
            last_BM = self.trie.child_codes[level - 1][nodes_BM].long() + self.starts[level - 1]
            if self.memory is not None:
                below_BM = self.trie.items[self.trie.item_bounds[level][nodes_BM].long()].long()
                prefix_BML = self.memory.codes_NL[below_BM][..., :level]
                added_BMD = self.memory.levels(prefix_BML)[..., -1, :]
        cache, logits_BMV = self.t5.write(cache, parents_BM, last_BM, added_BMD)
        logits_BMV = logits_BMV.float()
        logits_BMC = logits_BMV.gather(2, codes_BMC.clamp(min=0) + self.starts[level])
        return cache, logits_BMC - logits_BMV.logsumexp(2, keepdim=True)

    def _remembered(self, items: Tensor) -> Tensor:
        """What the memory adds to the tokens of items [...]: [..., L, D]; nothing to the collision digit."""
        assert self.memory is not None
        distinct_X, inverse = torch.unique(items, return_inverse=True)
        added_XLD = self.memory.levels(self.memory.codes_NL[distinct_X])
        return F.pad(added_XLD, (0, 0, 0, self.tokens_NL.shape[1] - added_XLD.shape[1]))[inverse]


@component
class TIGER:
    """Generates the next item's Semantic ID from the Semantic IDs of the history."""

    model: TransformerConfig = dataclasses.field(
        default_factory=lambda: TransformerConfig(128, 4, 6, head_width=64, feedforward=8, dropout=0.1)
    )
    """Shape of encoder and decoder alike, ``num_layers`` each; the paper's."""
    max_length: Annotated[int, Field(ge=1)] = 20
    """Items of a history that are read, the last ones."""
    num_user_tokens: Annotated[int, Field(ge=1)] = 2000
    """Hashed user tokens; unknown users share one more."""
    keys: SIDKeys | None = None
    """Keys of codes whose rows are added to the vector of the token at which they end, read and written, through a map
    that starts at zero (PrefixMem); None: each token has its own vector only."""
    num_beams: Annotated[int, Field(ge=1)] = 50
    """Beams of a request."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products of ``retrieve``; those of training are a setting of ``training``."""
    training: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(epochs=100, batch_size=256, learning_rate=1e-3)
    )
    """How it is trained."""

    def __post_init__(self) -> None:
        if self.keys is not None and self.keys.kind == "pieces":
            raise ValueError('keys of kind "pieces" may need codes that are not written yet: choose another kind')
        self._network: _Network | None = None
        self.training_log: list[dict[str, float]] = []

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Train on every prefix of every user's positive events."""
        fresh = dataclasses.replace(self)
        log = train_model(fresh.job(train, catalog, context), self.training, context)
        self._network, self.training_log = fresh._network, log

    def estimate(self, train: Interactions, catalog: Catalog, context: FitContext) -> Estimate:
        """Time and memory of ``fit`` with the same arguments, from a few steps of another network."""
        return estimate_training(partial(dataclasses.replace(self).job, train, catalog), self.training, context)

    def job(self, train: Interactions, catalog: Catalog, context: FitContext) -> Job[Examples]:
        """What ``fit`` trains: a new network, which takes the place of an earlier one."""
        network = self._network = self._build(context)
        if context.warm_start is not None:
            load_grown(network, context.warm_start.tensors)
        history = history_of(train.positives())
        before_E = torch.arange(len(history.items)) - history.offsets[:-1][history.rows]
        ends = before_E.nonzero().squeeze(1)
        lengths = before_E[ends].clamp(max=self.max_length)
        size = self.training.batch_size

        def batches(generator: torch.Generator) -> Iterator[Examples]:
            for chosen in batches_of_like_length(lengths, size, generator):
                if len(chosen):
                    yield self._examples(history, ends[chosen])

        def validate() -> float:
            assert context.validation is not None
            return validation_ndcg(self.retrieve, context.validation)

        return Job(
            "TIGER",
            network,
            batches,
            -(-len(ends) // size),
            network.loss,
            None if context.validation is None else validate,
            settings_of(self) | {"examples": len(ends), "items": len(catalog)},
            lambda examples: examples.items_BH.numel(),
        )

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` most probable items that a beam finds among those that the filters allow."""
        network = require_fitted(self._network, self)
        order_B = torch.argsort(requests.history.lengths, stable=True)  # like lengths together: less padding
        size = min(max(BEAMS_AT_ONCE // max(self.num_beams, k), 1), REQUESTS_AT_ONCE)
        parts = [self._retrieve(network, requests.take(rows), k) for rows in torch.split(order_B, size)]
        found, back_B = Candidates.concatenate(parts), torch.argsort(order_B)
        return Candidates(found.items_BK[back_B], found.scores_BK[back_B])

    def state(self) -> ComponentState:
        """The weights."""
        return ComponentState(dict(require_fitted(self._network, self).state_dict()))

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``."""
        network = self._build(context)
        network.load_state_dict(dict(state.tensors))
        self._network = network.eval()

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Make items beyond the fitted ones answerable, through their codes."""
        self.restore(self.state(), catalog, context)

    def _build(self, context: FitContext) -> _Network:
        if context.semantic_ids is None:
            raise RecipeError(
                "TIGER generates Semantic IDs and was given none: add a [semantic_ids] table to the recipe"
            )
        trie = kept_trie(context.derived_folder, context.semantic_ids)
        with seeded(context.seed):
            return _Network(self.model, context.semantic_ids, trie, self.num_user_tokens, self.keys)

    def _examples(self, history: History, ends: Tensor) -> Examples:
        """The events at ``ends`` as targets, padded to the longest of their histories only."""
        user_B = torch.searchsorted(history.offsets, ends, right=True) - 1
        windows = Windows(history, torch.maximum(history.offsets[user_B], ends - self.max_length), ends, ends)
        return Examples(windows.items_BT, user_B % self.num_user_tokens, history.items[ends])

    def generation(self, requests: Requests) -> Generation[Written]:
        """The requests, read all at once, for searches with options of their own: see docs/decoding.md."""
        return self._generation(require_fitted(self._network, self), requests)

    def _retrieve(self, network: _Network, requests: Requests, k: int) -> Candidates:
        with torch.inference_mode():
            read = self._generation(network, requests)
            beams = beam_search(
                read.step,
                read.cache,
                read.trie,
                num_requests=read.num_requests,
                num_beams=max(self.num_beams, k),
                mask=read.mask,
            )
        return dataclasses.replace(beams_to_items(beams, read.trie, k, read.mask), trace={})

    def _generation(self, network: _Network, requests: Requests) -> Generation[Written]:
        windows = windows_of(requests.history.positives(), self.max_length)
        user_B = torch.full((len(requests),), -1) if requests.user_B is None else requests.user_B
        hashed_B = torch.where(user_B < 0, self.num_user_tokens, user_B % self.num_user_tokens)
        products = partial(
            torch.autocast, network.users.weight.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )

        def step(  # noqa: PLR0917  # the protocol
            cache: Written,
            level: int,
            parents_BM: Tensor | None,
            nodes_BM: Tensor,
            children_BMC: Tensor,
            codes_BMC: Tensor,
        ) -> tuple[Written, Tensor]:
            with torch.no_grad(), products():
                return network.step(cache, level, parents_BM, nodes_BM, children_BMC, codes_BMC)

        with torch.no_grad(), products():
            written = network.t5.begin(network.read(windows.items_BT, hashed_B))
        return Generation(step, written, network.trie, TrieMask.of(network.trie, requests), len(requests))
