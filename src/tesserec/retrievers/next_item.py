"""What retrievers share that predict the next item from a state an event: item vectors, labels, training job, state.

Dimensions: B windows · T positions · P labelled positions · N items.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tesserec.config import settings_of
from tesserec.data.batches import Windows, history_of, shuffled_batches, training_windows
from tesserec.errors import RecipeError
from tesserec.nn.growth import load_grown
from tesserec.nn.items import GateConfig, ItemEncoder, earlier_rows, merges_for, own_rows
from tesserec.nn.sid_features import SIDKeys
from tesserec.retrievers.popularity import Popularity
from tesserec.training.loop import Job, TrainingConfig
from tesserec.training.validation import validation_ndcg
from tesserec.types import Candidates, Catalog, ComponentState, FitContext, Interactions, Requests

__all__ = [
    "add_items",
    "check_item_settings",
    "item_encoder",
    "item_table",
    "next_event_labels",
    "next_item_job",
    "restore_network",
    "restored_encoder",
    "saved_network",
    "start_rows",
]

GROWING = ("items.weight", "items.row_N", "items.events_N")
"""Tensors of a network that have a row an item."""


class _NextItem(Protocol):
    """What a retriever has that is trained by ``next_item_job``."""

    max_length: int
    keys: SIDKeys | None
    gate: GateConfig | None
    training: TrainingConfig

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """Lists, for validation."""

    def state(self) -> ComponentState:
        """What was fitted."""

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``."""


def start_rows(items: nn.Embedding | ItemEncoder) -> None:
    """Draw the rows of a table: normal numbers of deviation .02. An encoder has started."""
    if isinstance(items, nn.Embedding):
        nn.init.normal_(items.weight, std=0.02)


def item_table(items: nn.Embedding | ItemEncoder) -> Tensor:
    """Vectors of all items, [N, D]."""
    return items.weight if isinstance(items, nn.Embedding) else items.table()


def check_item_settings(retriever: _NextItem) -> None:
    """Raise ``ValueError`` for a gate without keys."""
    if retriever.gate is not None and retriever.keys is None:
        raise ValueError("a gate mixes an item's own vector with that of its codes: name their keys, or leave out gate")


def item_encoder(retriever: _NextItem, width: int, events_N: Tensor, context: FitContext) -> ItemEncoder | None:
    """Vectors of the keys of each item's codes, and of a row of its own for an item with events.

    None where the retriever names no keys. Raises ``RecipeError`` where there are no codes.
    """
    if retriever.keys is None:
        return None
    row_N = own_rows(events_N, least=1, most=len(events_N))
    earlier = None if context.warm_start is None else context.warm_start.part("network.items").tensors
    return _encoder(retriever, width, row_N, events_N, context, earlier)


def restored_encoder(
    retriever: _NextItem, width: int, num_items: int, context: FitContext, state: ComponentState
) -> ItemEncoder | None:
    """One for the weights in ``state`` and a catalog of at least its items; raises what ``item_encoder`` does."""
    if retriever.keys is None:
        return None
    earlier = state.part("network.items").tensors
    row_N = earlier_rows(earlier)
    row_N = F.pad(row_N, (0, num_items - len(row_N)), value=-1)
    return _encoder(retriever, width, row_N, torch.zeros(num_items), context, earlier)


def _encoder(  # noqa: PLR0917  # what a vector is composed of
    retriever: _NextItem,
    width: int,
    row_N: Tensor,
    events_N: Tensor,
    context: FitContext,
    earlier: Mapping[str, Tensor] | None,
) -> ItemEncoder:
    semantic_ids, keys = context.semantic_ids, retriever.keys
    if semantic_ids is None:
        raise RecipeError(
            f"keys are made of Semantic IDs and {type(retriever).__name__} was given none: add a [semantic_ids] table "
            "to the recipe, or leave out keys"
        )
    merges_M2 = merges_for(keys, semantic_ids, events_N, earlier)
    return ItemEncoder(
        semantic_ids, None, row_N, width, keys=keys, merges_M2=merges_M2, gate=retriever.gate, events_N=events_N
    )


def next_item_job(  # noqa: PLR0917  # what is trained on what
    retriever: _NextItem,
    network: nn.Module,
    items: nn.Embedding | ItemEncoder,
    events: Interactions,
    loss: Callable[[Windows], Tensor],
    context: FitContext,
) -> Job[Windows]:
    """Trains ``network``, warm-started where the context says so, with ``loss`` on windows of the users' ``events``.

    A window has one event more than the retriever reads: the last is a target only.
    """
    if context.warm_start is not None:
        _load_earlier(network, items, context.warm_start.part("network"))
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
        loss if isinstance(items, nn.Embedding) else lambda b: loss(b) + items.alignment(b.items_BT[b.valid_BT]),
        validate if context.validation is not None else None,
        settings_of(retriever) | {"windows": len(windows), "items": len(events.items)},
        lambda batch: batch.items_BT.numel(),
    )


def _load_earlier(network: nn.Module, items: nn.Embedding | ItemEncoder, earlier: ComponentState) -> None:
    of_this_fit: Mapping[str, Tensor] = {}
    if isinstance(items, ItemEncoder):
        items.load_earlier(earlier.part("items").tensors)
        of_this_fit = ComponentState(dict(items.state_dict())).under("items").tensors
    load_grown(network, {**earlier.tensors, **of_this_fit}, GROWING)


def next_event_labels(windows: Windows) -> tuple[Tensor, Tensor]:
    """(flat positions b * T + t, items at t + 1) of events whose successor is to be learnt in this window."""
    has_next_BT = windows.valid_BT[:, :-1] & windows.fresh_BT[:, 1:]
    rows, columns = has_next_BT.nonzero(as_tuple=True)
    return rows * windows.items_BT.shape[1] + columns, windows.items_BT[rows, columns + 1]


def add_items(retriever: _NextItem, catalog: Catalog, context: FitContext) -> None:
    """Make items beyond the fitted ones answerable through their codes: for a retriever that names keys of them."""
    retriever.restore(retriever.state(), catalog, context)


def saved_network(network: nn.Module, popularity: Popularity) -> ComponentState:
    """The weights, and the popularity of every item."""
    weights = ComponentState(dict(network.state_dict()))
    return ComponentState.merged(weights.under("network"), popularity.state().under("popularity"))


def restore_network(
    network: nn.Module, popularity: Popularity, state: ComponentState, catalog: Catalog, context: FitContext
) -> None:
    """The inverse of ``saved_network``, into a new network, which is then ready to answer."""
    load_grown(network, state.part("network").tensors, GROWING)
    popularity.restore(state.part("popularity"), catalog, context)
    network.eval()
