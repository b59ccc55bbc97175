"""Item vectors of a trained retriever: what a sequence model has learnt of the items becomes the input of codes.

Paper: none; codes of learned item vectors, as in LETTER (https://arxiv.org/abs/2405.07314), which aligns with SASRec's.
Adds: a retriever is trained on the events that the codes may know of, and its item vectors are taken.
Differs: from no paper.
Checked: tests/embedders/test_retriever_vectors.py (the vectors are the retriever's; planted groups of items);
    its effect on accuracy: not yet.

Dimensions: N items · D features.
"""

import torch

from tesserec.config import component, fresh
from tesserec.embedders.linear import unit_rows
from tesserec.errors import DataError, NotFittedError
from tesserec.types import (
    Catalog,
    ComponentState,
    FitContext,
    HasItemVectors,
    Interactions,
    ItemEmbeddings,
    Retriever,
)

__all__ = ["RetrieverVectors"]


@component
class RetrieverVectors:
    """Item vectors that a retriever learns from events, such as those of SASRec or HSTU.

    Join them with vectors of text (``Concatenate``) where later items are to have codes: those have no events.
    """

    retriever: Retriever
    """What is trained on the training events."""
    seed: int = 0
    """Of its training."""

    def __post_init__(self) -> None:
        if not isinstance(self.retriever, HasItemVectors):
            raise ValueError(
                f"{type(self.retriever).__name__} has no item vectors to give: name a retriever that learns them, "
                "such as tesserec.retrievers.sasrec:SASRec"
            )
        if getattr(self.retriever, "keys", None) is not None:
            raise ValueError("codes are made of these vectors, so the retriever cannot read codes: leave out its keys")
        self._num_features_found: int | None = None

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors [N, D] of unit length; items without positive training events have a zero row and are marked missing.

        Trains the retriever for all of its epochs, in one go. Raises ``DataError`` without positive training events.
        """
        if train is None or not len(train.positives()):
            raise DataError("RetrieverVectors trains on events and has none: pass them, or use an embedder of text")
        retriever = fresh(self.retriever)
        retriever.fit(train, catalog, FitContext(seed=self.seed))
        assert isinstance(retriever, HasItemVectors)
        vectors_ND = unit_rows(retriever.item_vectors().float())
        self._num_features_found = vectors_ND.shape[1]
        missing_N = train.positives().item_counts() == 0
        vectors_ND[missing_N] = 0
        return ItemEmbeddings(vectors_ND, f"RetrieverVectors({type(retriever).__name__})", missing_N)

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Zero rows, all marked missing: later items have no events."""
        zeros_ND = torch.zeros(len(catalog), self._fitted())
        source = f"RetrieverVectors({type(self.retriever).__name__})"
        return ItemEmbeddings(zeros_ND, source, torch.ones(len(catalog), dtype=torch.bool))

    def state(self) -> ComponentState:
        """The width of the vectors: all that later items need."""
        return ComponentState({}, {"num_features": str(self._fitted())})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        self._num_features_found = int(state.metadata["num_features"])

    def _fitted(self) -> int:
        if self._num_features_found is None:
            raise NotFittedError("RetrieverVectors has trained nothing yet: call embed or restore first")
        return self._num_features_found
