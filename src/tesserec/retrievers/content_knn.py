"""ContentKNN: items whose content is like that of the last ones of the history.

Paper: none; nearest neighbours of a content profile, as in Lops, de Gemmis & Semeraro 2011, "Content-based Recommender
    Systems: State of the Art and Trends", doi 10.1007/978-0-387-85820-3_3, are what any use of content must beat.
Adds: the mean of the unit vectors of the last items, the later the heavier; the score of an item is its cosine with it.
Differs: nothing is learnt, so that an item without any event is proposed like every other.
Checked: tests/retrievers/test_content_knn.py (cosines by hand; planted groups; new items).

Dimensions: B requests · H history events · N items · D features.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from tesserec.config import Field, component
from tesserec.data.batches import windows_of
from tesserec.decoding.top_k import top_k_in_batches
from tesserec.errors import RecipeError
from tesserec.retrievers.evidence import history_matrix, require_fitted, steps_ago
from tesserec.retrievers.popularity import Popularity
from tesserec.types import (
    PAD,
    Candidates,
    Catalog,
    ComponentState,
    FitContext,
    History,
    Interactions,
    Requests,
    as_numpy,
)

__all__ = ["ContentKNN", "closeness", "profile_cosines"]

MAX_EVENTS = 10
"""Events of a history, the last ones, that candidates are compared with."""
DECAY = 0.7
"""What an event counts, relative to one a step later."""
CHUNK_FLOATS = 2**24
"""Numbers of the candidates' vectors that are gathered at once (64 MiB)."""


@component
class ContentKNN:
    """Proposes the items whose vectors are nearest to the mean of the history's last ones.

    A history without any vector, such as an empty one, is answered by popularity. Excluding the history is up to the
    requests: nothing is more like an item than itself.
    """

    max_steps: Annotated[int, Field(ge=1)] = 10
    """Steps (baskets) of a history that are read, the last ones."""
    history_decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """What an event of the history counts, relative to one a step later."""
    popularity: Popularity = dataclasses.field(default_factory=Popularity)
    """What requests without a vector get."""

    def __post_init__(self) -> None:
        self._unit_ND: Tensor | None = None

    def fit(self, train: Interactions, catalog: Catalog, context: FitContext) -> None:
        """Take the vectors of the items; the events are read for popularity only."""
        unit_ND = _unit_vectors(context)
        self.popularity.fit(train, catalog, context)
        self._unit_ND = unit_ND

    def score_all(self, requests: Requests) -> Tensor:
        """Cosines with the profile, [B, N] float32 in [−1, 1]; popularity without one."""
        unit_ND = require_fitted(self._unit_ND, self)
        cosines_BN = profile_cosines(unit_ND, requests.history, self.max_steps, self.history_decay)
        return torch.where(cosines_BN.any(1, keepdim=True), cosines_BN, self.popularity.score_all(requests))

    def retrieve(self, requests: Requests, k: int) -> Candidates:
        """The ``k`` best items that the filters allow."""
        return top_k_in_batches(self.score_all, requests, k, len(require_fitted(self._unit_ND, self)))

    def add_items(self, catalog: Catalog, context: FitContext) -> None:
        """Take the vectors of the items that were appended to ``catalog``: they are proposed like all others."""
        self.restore(self.state(), catalog, context)

    def state(self) -> ComponentState:
        """The popularity of every item; the vectors are the context's."""
        require_fitted(self._unit_ND, self)
        return self.popularity.state().under("popularity")

    def restore(self, state: ComponentState, catalog: Catalog, context: FitContext) -> None:
        """The inverse of ``state``, with the vectors of ``context``."""
        unit_ND = _unit_vectors(context)
        self.popularity.restore(state.part("popularity"), catalog, context)
        self._unit_ND = unit_ND


def _unit_vectors(context: FitContext) -> Tensor:
    """The items' vectors, of length 1 or 0."""
    if context.embeddings is None:
        raise RecipeError("ContentKNN compares item vectors and was given none: add an [embedder] table to the recipe")
    return F.normalize(context.embeddings.vectors_ND, dim=1)


def profile_cosines(unit_ND: Tensor, history: History, max_steps: int = MAX_EVENTS, decay: float = DECAY) -> Tensor:
    """Cosines [B, N] in [−1, 1] of all items with the mean vector of the last ``max_steps`` steps, later ones heavier.

    All are 0 where the history has no vector, and only there.
    """
    events = history.positives()
    ago_H = steps_ago(events)
    weights_H = (decay ** ago_H.float()).masked_fill(ago_H >= max_steps, 0)
    profile_BD = torch.from_numpy(history_matrix(events, weights_H, len(unit_ND)) @ as_numpy(unit_ND))
    return F.normalize(profile_BD, dim=1) @ unit_ND.T


def closeness(unit_NF: Tensor, history: History, items_BX: Tensor) -> Tensor:
    """Mean of max(cosine, 0)³ between a candidate and the last events of the history, later ones weighing more.

    [B, X] in [0, 1]; 0 without content and at ``PAD``. The cube lets one near event outweigh many that are vaguely
    alike: unlike the mean of the vectors, which is near to nothing in particular.
    """
    seen = windows_of(history.positives(), MAX_EVENTS)
    if not unit_NF.shape[1]:
        return torch.zeros(items_BX.shape)
    size, parts = max(1, CHUNK_FLOATS // (items_BX.shape[1] * unit_NF.shape[1])), []
    for rows in torch.split(torch.arange(len(items_BX)), size):
        window, candidates = seen.take(rows), items_BX[rows]
        weight_BT = (DECAY ** window.steps_BT.float()).masked_fill(~window.valid_BT, 0)
        cosine_BXT = unit_NF[candidates.clamp(min=0)] @ unit_NF[window.items_BT.clamp(min=0)].transpose(1, 2)
        sum_BX = (cosine_BXT.clamp(min=0) ** 3 @ weight_BT[..., None]).squeeze(2)
        parts.append((sum_BX / weight_BT.sum(1, keepdim=True).clamp(min=1e-9)).masked_fill(candidates == PAD, 0))
    return torch.cat(parts)
