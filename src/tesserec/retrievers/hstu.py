"""HSTU: layers of gated pointwise attention over events and the time between them predict the next item.

Paper: Zhai et al. 2024, "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
    Recommendations", arXiv 2402.17152.
Adds: attention by SiLU in place of softmax, divided by the maximum length, with a bias for each distance in events and
    each logarithmic time gap; its result is gated, and there is no feed-forward half; cosines over a temperature.
Differs: of events and their times only (no actions, no ranking). A gap lies between two events that were read; the
    authors' code measures from the time of the target, which is not known when a list is made. One sample of negatives
    a step, by popularity with log-q correction, in place of uniform ones a position, to train on a CPU; a cosine
    schedule after a warm-up, as all methods here have.
Checked: tests/retrievers/test_hstu.py (a layer in NumPy loops; causality; planted chain; a pattern only time shows).

Dimensions: B requests · T positions · P labelled positions · N items · D features · H heads.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.data.batches import Windows, windows_of
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.nn.items import GateConfig, ItemEncoder, KeepsVectors
from tesserec.nn.losses import NegativeSampler, sampled_softmax_loss
from tesserec.nn.sid_features import SIDKeys
from tesserec.retrievers.evidence import require_fitted
from tesserec.retrievers.next_item import (
    add_items,
    check_item_settings,
    item_encoder,
    item_table,
    next_event_labels,
    next_item_job,
    restore_network,
    restored_encoder,
    saved_network,
    start_rows,
)
from tesserec.retrievers.popularity import Popularity
from tesserec.training.estimate import estimate_training
from tesserec.training.loop import Job, TrainingConfig, seeded, train_model
from tesserec.types import NO_TIME, Candidates, Catalog, ComponentState, Estimate, FitContext, Interactions, Requests

__all__ = ["HSTU", "HSTUConfig"]

NUM_TIME_BUCKETS = 128
LOG_WIDTH = 0.301
"""Width of a bucket of log seconds, as in the authors' code."""


@component
class HSTUConfig:
    """The shape of the layers; the authors' for MovieLens-1M."""

    width: Annotated[int, Field(ge=1)] = 50
    """Features of a state, D."""
    num_layers: Annotated[int, Field(ge=1)] = 2
    """Layers."""
    num_heads: Annotated[int, Field(ge=1)] = 1
    """Attention heads."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of activations dropped in training."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")


class _Layer(nn.Module):
    def __init__(self, config: HSTUConfig, max_length: int) -> None:
        super().__init__()
        self.num_heads, self.max_length = config.num_heads, max_length
        self.norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.project = nn.Linear(config.width, 4 * config.width, bias=False)
        self.distances = nn.Parameter(torch.empty(max_length).normal_(std=0.02))
        self.gaps = nn.Parameter(torch.empty(NUM_TIME_BUCKETS).normal_(std=0.02))
        self.mixed_norm = nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(config.width, config.width)
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x_BTD: Tensor, allowed_BTT: Tensor, gaps_BTT: Tensor) -> Tensor:
        """Y + X of X; ``gaps_BTT`` are ``gap_buckets``."""
        gate, value, query, key = F.silu(self.project(self.norm(x_BTD))).chunk(4, dim=-1)
        logits_BHTT = self._heads(query) @ self._heads(key).transpose(-1, -2)
        logits_BHTT = logits_BHTT + self._bias(gaps_BTT)[:, None]
        weights_BHTT = F.silu(logits_BHTT) / self.max_length * allowed_BTT[:, None]
        mixed_BTD = (weights_BHTT.to(value.dtype) @ self._heads(value)).transpose(1, 2).flatten(2)
        out: Tensor = x_BTD + self.output(self.dropout(gate * self.mixed_norm(mixed_BTD)))
        return out

    def _bias(self, gaps_BTT: Tensor) -> Tensor:
        """What a pair's distance and time gap add, [B, T, T]."""
        place_T = torch.arange(gaps_BTT.shape[1], device=gaps_BTT.device)
        distance_TT = (place_T[:, None] - place_T).clamp(0, self.max_length - 1)
        # gather: its backward pass sums into few rows far faster than that of indexing
        gap_bias = F.pad(self.gaps, (0, 1)).gather(0, gaps_BTT.flatten()).view(gaps_BTT.shape)
        return self.distances[distance_TT] + gap_bias

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)


class _Network(KeepsVectors):
    def __init__(self, config: HSTUConfig, num_items: int, max_length: int, encoder: ItemEncoder | None) -> None:
        super().__init__()
        self.num_items, self.width = num_items, config.width
        self.items: nn.Embedding | ItemEncoder = encoder or nn.Embedding(num_items, config.width)
        self.positions = nn.Embedding(max_length, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(_Layer(config, max_length) for _ in range(config.num_layers))
        start_rows(self.items)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, windows: Windows) -> Tensor:
        """States [B, T, D] of unit length; positions count from the first event that is read.

        In training, windows have an event more than is read: the state of the last one is not for use.
        """
        valid_BT = windows.valid_BT
        place_BT = (valid_BT.long().cumsum(1) - 1).clamp(0, self.positions.num_embeddings - 1)
        x_BTD = self.items(windows.items_BT.clamp(min=0)) * self.width**0.5 + self.positions(place_BT)
        x_BTD = self.dropout(x_BTD)
        causal_TT = torch.ones(valid_BT.shape[1], valid_BT.shape[1], dtype=torch.bool).tril()
        allowed_BTT, gaps_BTT = causal_TT & valid_BT[:, None, :], gap_buckets(windows.times_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, allowed_BTT, gaps_BTT)
        return F.normalize(x_BTD.float(), dim=-1)

    def vectors(self, items_X: Tensor) -> Tensor:
        """Item vectors [X, D] of unit length."""
        return F.normalize(self.items(items_X), dim=-1)

    def units(self) -> Tensor:
        """``vectors`` of all items, [N, D]."""
        return F.normalize(item_table(self.items), dim=-1)


def gap_buckets(times_BT: Tensor) -> Tensor:
    """Bucket numbers [B, T, T] of the seconds between two events; ``NUM_TIME_BUCKETS``, no bias, where unknown."""
    gaps_BTT = (times_BT[:, :, None] - times_BT[:, None, :]).abs().clamp(min=1)
    buckets_BTT = (gaps_BTT.float().log() / LOG_WIDTH).long().clamp(max=NUM_TIME_BUCKETS - 1)
    known_BT = times_BT != NO_TIME
    return buckets_BTT.masked_fill(~(known_BT[:, :, None] & known_BT[:, None, :]), NUM_TIME_BUCKETS)


@component
class HSTU:
    """Next-item prediction by gated pointwise attention over events and time gaps."""

    model: HSTUConfig = dataclasses.field(default_factory=HSTUConfig)
    """Shape of the layers."""
    max_length: Annotated[int, Field(ge=1)] = 50
    """Events of a history that are read, the last ones; attention is divided by it."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """What cosines are divided by in the loss."""
    num_negatives: Annotated[int, Field(ge=1)] | None = 128
    """Items drawn a step for sampled softmax; None: softmax over the whole catalog."""
    keys: SIDKeys | None = None
    """Which keys of its codes an item's vector is made of beside its own row, so that items without events are known
    too; None: its own row alone."""
    gate: GateConfig | None = None
    """How both are mixed; None: they are added."""
    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What requests without a history get."""
    training: TrainingConfig = dataclasses.field(default_factory=lambda: TrainingConfig(epochs=100, weight_decay=0.0))
    """How it is trained; batches of 128 at a learning rate of 1e-3 for about 100 epochs are the authors'."""

    def __post_init__(self) -> None:
        check_item_settings(self)
        if self.keys is not None:
            self.add_items = partial(add_items, self)  # makes it a TakesNewItems
        self._network: _Network | None = None
        self.training_log: list[dict[str, float]] = []

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Train on the positive events of every user."""
        fresh = dataclasses.replace(self)
        log = train_model(fresh.job(train, catalog, context), self.training, context)
        self._network, self.training_log = fresh._network, log

    def estimate(self, train: Interactions, catalog: Catalog, context: FitContext) -> Estimate:
        """Time and memory of ``fit`` with the same arguments, from a few steps of another network."""
        return estimate_training(partial(dataclasses.replace(self).job, train, catalog), self.training, context)

    def job(self, train: Interactions, catalog: Catalog, context: FitContext) -> Job[Windows]:
        """What ``fit`` trains: a new network, which takes the place of an earlier one."""
        events = train.positives()
        self.popularity.fit(train, catalog, context)
        counts_N = events.item_counts()
        with seeded(context.seed):
            encoder = item_encoder(self, self.model.width, counts_N, context)
            network = self._network = _Network(self.model, len(catalog), self.max_length, encoder)
        sampler = NegativeSampler(counts_N, self.num_negatives)

        def loss(batch: Windows) -> Tensor:
            positions, targets_P = next_event_labels(batch)
            states_PD = network(batch).flatten(0, 1)[positions] / self.temperature
            return sampled_softmax_loss(states_PD, network.vectors, torch.arange(len(targets_P)), targets_P, sampler)

        return next_item_job(self, network, network.items, events, loss, context)

    def score_all(self, requests: Requests) -> Tensor:
        """Cosines of the last state with every item, [B, N] in [−1, 1]; popularity without a history."""
        network = require_fitted(self._network, self)
        windows = windows_of(requests.history.positives(), self.max_length)
        with torch.no_grad():
            scores_BN: Tensor = network(windows)[:, -1] @ network.kept(network.units).T
        return self.popularity.answer_newcomers(scores_BN.float(), requests)

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        network = require_fitted(self._network, self)
        return top_k_in_batches(self.score_all, requests, k, network.num_items)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Vectors of all items, of unit length, [N, D]."""
        network = require_fitted(self._network, self)
        return network.kept(network.units).clone()

    def state(self) -> ComponentState:
        """The weights, and the popularity of every item."""
        return saved_network(require_fitted(self._network, self), self.popularity)

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``."""
        encoder = restored_encoder(self, self.model.width, len(catalog), context, state)
        network = _Network(self.model, len(catalog), self.max_length, encoder)
        restore_network(network, self.popularity, state, catalog, context)
        self._network = network
