"""TIGER: an encoder reads the codes of the history, a decoder writes the codes of the next item.

Paper: Rajput et al. 2023, "Recommender Systems with Generative Retrieval", arXiv 2305.05065.
Adds: tokens are codes (one vocabulary a level) after a hashed user token; every prefix of a user's events predicts its
    next item; beam search.
Differs: pre-norm layers with LayerNorm and GELU in place of T5's; learned positions in place of relative ones; AdamW
    with a cosine in place of an inverse square root; the beam is kept inside the tree by the trie, not filtered after.
Checked: tests/retrievers/test_tiger.py (planted chain; beam equals exhaustive scoring of all code tuples).

Dimensions: B examples or requests · H items of a history · S tokens read · M beams · C children · L levels · V codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component, settings_of
from tesserec.data.batches import Windows, batches_of_like_length, history_of, windows_of
from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_file import kept_trie
from tesserec.decoding.trie_mask import TrieMask
from tesserec.errors import RecipeError
from tesserec.nn.growth import load_grown
from tesserec.nn.transformer import TransformerConfig, TransformerLayer, Trunk
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


@dataclass(frozen=True)
class Examples:
    """Histories and what followed them."""

    items_BH: Tensor
    """Right-aligned, ``PAD`` on the left."""
    user_B: Tensor
    target_B: Tensor


class _Network(nn.Module):
    codes_NL: Tensor

    def __init__(
        self, config: TransformerConfig, semantic_ids: SemanticIds, trie: Trie, max_length: int, num_user_tokens: int
    ) -> None:
        super().__init__()
        self.sizes, self.trie, self.width = semantic_ids.codebook_sizes, trie, config.width
        self.starts = [sum(self.sizes[:level]) for level in range(len(self.sizes))]
        self.register_buffer("codes_NL", semantic_ids.codes_NL.long() + torch.tensor(self.starts), persistent=False)
        self.codes = nn.Embedding(sum(self.sizes), config.width)
        self.users = nn.Embedding(num_user_tokens + 1, config.width, padding_idx=num_user_tokens)
        self.read_positions = nn.Embedding(max_length * len(self.sizes) + 1, config.width)
        self.write_positions = nn.Embedding(len(self.sizes), config.width)
        self.begin = nn.Parameter(torch.zeros(config.width))
        self.encoder = Trunk(config, distances=False)
        self._layers = [TransformerLayer(config, cross=True) for _ in range(config.num_layers)]
        self.decoder = nn.ModuleList(self._layers)
        self.norm = nn.LayerNorm(config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, size) for size in self.sizes)
        for table in (self.codes, self.users, self.read_positions, self.write_positions):
            nn.init.normal_(table.weight, std=config.width**-0.5)
        with torch.no_grad():
            self.users.weight[num_user_tokens] = 0  # unknown users: never trained, so it must say nothing

    def encode(self, items_BH: Tensor, user_B: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """(keys and values of every decoder layer, which tokens exist [B, S]) of histories and hashed users."""
        batch, length = items_BH.shape
        levels = len(self.sizes)
        codes_BS = self.codes_NL[items_BH.clamp(min=0)].view(batch, length * levels)
        x_BSD = torch.cat([self.users(user_B)[:, None], self.codes(codes_BS)], 1)
        from_end_S = torch.arange(length * levels, 0, -1, device=items_BH.device)
        positions = torch.cat([from_end_S.new_zeros(1), from_end_S])
        exists_BS = F.pad((items_BH != PAD).repeat_interleave(levels, 1), (1, 0), value=True)
        x_BSD = self.encoder(x_BSD + self.read_positions(positions), exists_BS[:, None, :])
        return [layer.project(x_BSD) for layer in self._layers], exists_BS

    def write(self, source: tuple[list[tuple[Tensor, Tensor]], Tensor], prefix_BMl: Tensor) -> Tensor:
        """States [B, M, l + 1, D] after the start token and each code of the prefixes [B, M, l] (offset codes)."""
        projected, exists_BS = source
        batch, beams, length = prefix_BMl.shape[0], prefix_BMl.shape[1], prefix_BMl.shape[2] + 1
        begin = self.begin.expand(batch, beams, 1, self.width)
        x = torch.cat([begin, self.codes(prefix_BMl)], 2) + self.write_positions.weight[:length]
        causal = torch.ones(1, length, length, dtype=torch.bool, device=x.device).tril()
        seen = exists_BS[:, None, :].expand(-1, beams * length, -1)
        for layer, (key, value) in zip(self._layers, projected, strict=True):
            x = layer.look_back(x.view(batch * beams, length, self.width), causal)
            x = layer.look(x.view(batch, beams * length, self.width), key, value, seen)
            x = layer.feed(x).view(batch, beams, length, self.width)
        states: Tensor = self.norm(x)
        return states

    def loss(self, examples: Examples) -> Tensor:
        """Mean token cross-entropy over levels and examples."""
        codes_BL = self.codes_NL[examples.target_B]
        states = self.write(self.encode(examples.items_BH, examples.user_B), codes_BL[:, None, :-1])[:, 0]
        losses = [
            F.cross_entropy(head(states[:, level]).float(), codes_BL[:, level] - self.starts[level])
            for level, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()

    def step(  # noqa: PLR0917  # the protocol
        self,
        cache: tuple[tuple[list[tuple[Tensor, Tensor]], Tensor], Tensor],
        level: int,
        parents_BM: Tensor | None,
        nodes_BM: Tensor,
        children_BMC: Tensor,
        codes_BMC: Tensor,
    ) -> tuple[tuple[tuple[list[tuple[Tensor, Tensor]], Tensor], Tensor], Tensor]:
        """``tesserec.decoding.beam_search.Step``: log-softmax over the level's whole codebook, at the children."""
        source, prefix_BMl = cache
        if parents_BM is not None:
            prefix_BMl = prefix_BMl.gather(1, parents_BM[..., None].expand(-1, -1, prefix_BMl.shape[2]))
            code = self.trie.child_codes[level - 1][nodes_BM.clamp(min=0)].long() + self.starts[level - 1]
            prefix_BMl = torch.cat([prefix_BMl, code[..., None]], 2)
        log_probs_BMV = self.heads[level](self.write(source, prefix_BMl)[:, :, -1]).float().log_softmax(-1)
        return (source, prefix_BMl), log_probs_BMV.gather(2, codes_BMC.clamp(min=0))


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
    num_beams: Annotated[int, Field(ge=1)] = 50
    """Beams of a request."""
    training: TrainingConfig = dataclasses.field(
        default_factory=lambda: TrainingConfig(epochs=100, batch_size=256, learning_rate=1e-3)
    )
    """How it is trained."""

    def __post_init__(self) -> None:
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
        batches = [requests.take(rows) for rows in requests.batches(64)] or [requests]
        return Candidates.concatenate([self._retrieve(network, batch, k) for batch in batches])

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
            return _Network(self.model, context.semantic_ids, trie, self.max_length, self.num_user_tokens)

    def _examples(self, history: History, ends: Tensor) -> Examples:
        """The events at ``ends`` as targets, padded to the longest of their histories only."""
        user_B = torch.searchsorted(history.offsets, ends, right=True) - 1
        windows = Windows(history, torch.maximum(history.offsets[user_B], ends - self.max_length), ends, ends)
        return Examples(windows.items_BT, user_B % self.num_user_tokens, history.items[ends])

    def _retrieve(self, network: _Network, requests: Requests, k: int) -> Candidates:
        windows = windows_of(requests.history.positives(), self.max_length)
        user_B = torch.full((len(requests),), -1) if requests.user_B is None else requests.user_B
        hashed_B = torch.where(user_B < 0, self.num_user_tokens, user_B % self.num_user_tokens)
        beams_wanted = max(self.num_beams, k)
        mask = TrieMask.of(network.trie, requests)
        with torch.no_grad():
            cache = (network.encode(windows.items_BT, hashed_B), torch.zeros(len(requests), 1, 0, dtype=torch.int64))
            beams = beam_search(
                network.step, cache, network.trie, num_requests=len(requests), num_beams=beams_wanted, mask=mask
            )
        return dataclasses.replace(beams_to_items(beams, network.trie, k, mask), trace={})
