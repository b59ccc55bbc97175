"""SASRec: a causal transformer over item vectors predicts the next item.

Paper: Kang & McAuley 2018, "Self-Attentive Sequential Recommendation", arXiv 1808.09781.
Adds: one state an event; score of an item = state · item vector (tied with the input).
Differs: softmax over the catalog, or sampled softmax with log-q correction, at every position in place of binary
    cross-entropy with one negative (which is a straw man, and a setting); pre-norm layers with GELU.
Checked: tests/retrievers/test_sasrec.py (planted chain; sampled equals full softmax when all items are drawn;
    binary cross-entropy by hand).

Dimensions: B requests · T positions · P labelled positions · N items · D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import Field, component
from tesserec.data.batches import Windows, windows_of
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.nn.items import GateConfig, ItemEncoder, KeepsVectors
from tesserec.nn.losses import NegativeSampler, sampled_softmax_loss
from tesserec.nn.sid_features import SIDKeys
from tesserec.nn.transformer import TransformerConfig, Trunk
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
from tesserec.types import Candidates, Catalog, ComponentState, Estimate, FitContext, Interactions, Requests

__all__ = ["SASRec", "binary_loss"]


class _Network(KeepsVectors):
    def __init__(self, config: TransformerConfig, num_items: int, max_length: int, encoder: ItemEncoder | None) -> None:
        super().__init__()
        self.num_items, self.width = num_items, config.width
        self.items: nn.Embedding | ItemEncoder = encoder or nn.Embedding(num_items, config.width)
        self.positions = nn.Embedding(max_length, config.width)
        self.trunk = Trunk(config, distances=False)
        start_rows(self.items)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, windows: Windows, num_targets: int = 0) -> Tensor:
        """States [B, T, D]; positions count from the last event that is read.

        In training the window's last event is a target only, ``num_targets`` 1: its state is not for use.
        """
        length = windows.items_BT.shape[1]
        from_end_T = torch.arange(length - 1, -1, -1, device=windows.items_BT.device).sub(num_targets).clamp(min=0)
        x_BTD = self.items(windows.items_BT.clamp(min=0)) * self.width**0.5 + self.positions(from_end_T)
        causal_TT = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).tril()
        states: Tensor = self.trunk(x_BTD, causal_TT & windows.valid_BT[:, None, :])
        return states


@component
class SASRec:
    """Next-item prediction by causal self-attention."""

    model: TransformerConfig = dataclasses.field(default_factory=lambda: TransformerConfig(dropout=0.5))
    """Shape of the transformer."""
    max_length: Annotated[int, Field(ge=1)] = 50
    """Events of a history that are read, the last ones."""
    num_negatives: Annotated[int, Field(ge=1)] | None = None
    """Items drawn a step for sampled softmax; None: softmax over the whole catalog."""
    loss: Literal["softmax", "bce"] = "softmax"
    """What is minimized; "bce" is the paper's binary cross-entropy with one uniform random negative a position, here
    only to show how much it loses: as a baseline it is a straw man."""
    keys: SIDKeys | None = None
    """Which keys of its codes an item's vector is made of beside its own row, so that items without events are known
    too; None: its own row alone."""
    gate: GateConfig | None = None
    """How both are mixed; None: they are added."""
    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What requests without a history get."""
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    """How it is trained."""

    def __post_init__(self) -> None:
        if self.loss == "bce" and self.num_negatives is not None:
            raise ValueError(
                f'loss "bce" draws one negative a position: leave out num_negatives = {self.num_negatives}'
            )
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
            states_PD = network(batch, num_targets=1).flatten(0, 1)[positions]
            if self.loss == "bce":
                return binary_loss(states_PD, network.items, network.num_items, targets_P)
            return sampled_softmax_loss(states_PD, network.items, torch.arange(len(targets_P)), targets_P, sampler)

        return next_item_job(self, network, network.items, events, loss, context)

    def score_all(self, requests: Requests) -> Tensor:
        """Dot products of the last state with every item, [B, N]; popularity without a history."""
        network = require_fitted(self._network, self)
        windows = windows_of(requests.history.positives(), self.max_length)
        with torch.no_grad():
            scores_BN: Tensor = network(windows)[:, -1] @ network.kept(partial(item_table, network.items)).T
        return self.popularity.answer_newcomers(scores_BN.float(), requests)

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        network = require_fitted(self._network, self)
        return top_k_in_batches(self.score_all, requests, k, network.num_items)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """What states are multiplied with to score all items, [N, D]."""
        network = require_fitted(self._network, self)
        return network.kept(partial(item_table, network.items)).clone()

    def state(self) -> ComponentState:
        """The weights, and the popularity of every item."""
        return saved_network(require_fitted(self._network, self), self.popularity)

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``."""
        encoder = restored_encoder(self, self.model.width, len(catalog), context, state)
        network = _Network(self.model, len(catalog), self.max_length, encoder)
        restore_network(network, self.popularity, state, catalog, context)
        self._network = network


def binary_loss(states_PD: Tensor, vectors: Callable[[Tensor], Tensor], num_items: int, targets_P: Tensor) -> Tensor:
    """Mean binary cross-entropy of each target against one item drawn uniformly, whichever it is."""
    drawn_P = torch.randint(num_items, targets_P.shape)
    target_P, other_P = ((states_PD * vectors(chosen_P)).sum(1).float() for chosen_P in (targets_P, drawn_P))
    return (F.softplus(-target_P) + F.softplus(other_P)).mean()
