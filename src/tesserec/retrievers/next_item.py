"""What retrievers share that predict the next item from a state an event: labels, training job, saved state.

Dimensions: B windows · T positions · P labelled positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from tesserec.config import settings_of
from tesserec.data.batches import Windows, history_of, shuffled_batches, training_windows
from tesserec.nn.growth import load_grown
from tesserec.retrievers.popularity import Popularity
from tesserec.training.loop import Job, TrainingConfig
from tesserec.training.validation import validation_ndcg
from tesserec.types import Candidates, Catalog, ComponentState, FitContext, Interactions, Requests

__all__ = ["next_event_labels", "next_item_job", "restore_network", "saved_network"]


class _NextItem(Protocol):
    """What a retriever has that is trained by ``next_item_job``."""

    max_length: int
    training: TrainingConfig

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """Lists, for validation."""


def next_item_job(
    retriever: _NextItem,
    network: nn.Module,
    events: Interactions,
    loss: Callable[[Windows], Tensor],
    context: FitContext,
) -> Job[Windows]:
    """Trains ``network``, warm-started where the context says so, with ``loss`` on windows of the users' ``events``.

    A window has one event more than the retriever reads: the last is a target only.
    """
    if context.warm_start is not None:
        load_grown(network, context.warm_start.part("network").tensors)
    windows = training_windows(history_of(events), retriever.max_length + 1)
    size = retriever.training.batch_size

    def validate() -> float:
        assert context.validation is not None
        return validation_ndcg(retriever.retrieve, context.validation)

    return Job(
        type(retriever).__name__,
        network,
        lambda generator: (b for b in shuffled_batches(windows, size, generator) if len(next_event_labels(b)[0])),
        -(-len(windows) // size),
        loss,
        validate if context.validation is not None else None,
        settings_of(retriever) | {"windows": len(windows), "items": len(events.items)},
        lambda batch: batch.items_BT.numel(),
    )


def next_event_labels(windows: Windows) -> tuple[Tensor, Tensor]:
    """(flat positions b * T + t, items at t + 1) of events whose successor is to be learnt in this window."""
    has_next_BT = windows.valid_BT[:, :-1] & windows.fresh_BT[:, 1:]
    rows, columns = has_next_BT.nonzero(as_tuple=True)
    return rows * windows.items_BT.shape[1] + columns, windows.items_BT[rows, columns + 1]


def saved_network(network: nn.Module, popularity: Popularity) -> ComponentState:
    """The weights, and the popularity of every item."""
    weights = ComponentState(dict(network.state_dict()))
    return ComponentState.merged(weights.under("network"), popularity.state().under("popularity"))


def restore_network(
    network: nn.Module, popularity: Popularity, state: ComponentState, catalog: Catalog, context: FitContext
) -> None:
    """The inverse of ``saved_network``, into a new network, which is then ready to answer."""
    load_grown(network, state.part("network").tensors)
    popularity.restore(state.part("popularity"), catalog, context)
    network.eval()
