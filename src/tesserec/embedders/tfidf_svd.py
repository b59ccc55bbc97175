"""TF-IDF and truncated SVD (latent semantic analysis): content vectors without any download.

Paper: Deerwester et al. 1990, Indexing by latent semantic analysis
Adds: the embedder that every machine can run.
Differs: sublinear term frequencies and rows of unit length, as is usual for short texts.
Checked: tests/embedders/test_tfidf_svd.py (at full rank, cosines equal those of the TF-IDF rows).

Dimensions: N items · V terms · D features.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from tesserec.config import Field, component
from tesserec.embedders.linear import truncated_svd, unit_rows
from tesserec.errors import DataError, NotFittedError
from tesserec.types import Catalog, ComponentState, Interactions, ItemEmbeddings, as_numpy

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

__all__ = ["TfidfSVD"]


@dataclass(frozen=True)
class _Space:
    """Terms of each vectorizer, the inverse document frequency of each term and the projection of term vectors."""

    terms: tuple[list[str], ...]
    idf_V: Tensor
    projection_VD: Tensor


@component
class TfidfSVD:
    """Item vectors from the words of the catalog text."""

    num_features: Annotated[int, Field(gt=0)] = 128
    """Features of a vector; a catalog with fewer texts or terms than that gets fewer."""
    word_ngrams: Annotated[int, Field(ge=1, le=5)] = 2
    """Longest run of words that counts as a term."""
    char_ngrams: Annotated[int, Field(ge=0, le=8)] = 0
    """Longest run of characters inside words that counts as a term too, the shortest being 3; 0 for none."""
    max_terms: Annotated[int, Field(gt=0)] = 100_000
    """Terms kept for words and for characters each: the most frequent ones."""
    seed: int = 0
    """Of the randomised SVD."""

    def __post_init__(self) -> None:
        self._space: _Space | None = None

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors [N, D] of unit length; items without a word have a zero row and are marked missing.

        Raises ``DataError`` where no item has a word.
        """
        if not any(re.search(r"\w", text) for text in catalog.texts):
            raise DataError(
                f"none of the {len(catalog)} items has text: give the catalog a column text or title, "
                "or use CooccurrenceSVD or VectorsFile"
            )
        vectorizers = self._vectorizers()
        matrix_NV = sp.hstack([v.fit_transform(catalog.texts) for v in vectorizers], format="csr")
        _, _, vt = truncated_svd(matrix_NV, self.num_features, self.seed)
        terms = tuple(list(v.get_feature_names_out()) for v in vectorizers)
        idf_V = torch.from_numpy(np.concatenate([v.idf_ for v in vectorizers]))
        self._space = _Space(terms, idf_V, torch.from_numpy(np.ascontiguousarray(vt.T)))
        return _project(matrix_NV, self._space)

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Vectors of later items from the terms that ``embed`` knew; those with none of them are marked missing."""
        space = self._fitted()
        idf = np.split(as_numpy(space.idf_V), np.cumsum([len(t) for t in space.terms])[:-1])
        vectorizers = self._vectorizers()
        for vectorizer, terms, weights in zip(vectorizers, space.terms, idf, strict=True):
            vectorizer.vocabulary = terms
            vectorizer.idf_ = weights
        return _project(sp.hstack([v.transform(catalog.texts) for v in vectorizers], format="csr"), space)

    def state(self) -> ComponentState:
        """Terms, their weights and the projection."""
        space = self._fitted()
        tensors = {"idf": space.idf_V, "projection": space.projection_VD}
        return ComponentState(tensors, {"terms": json.dumps(space.terms, ensure_ascii=False)})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""
        terms = tuple(json.loads(state.metadata["terms"]))
        self._space = _Space(terms, state.tensors["idf"], state.tensors["projection"])

    def _fitted(self) -> _Space:
        if self._space is None:
            raise NotFittedError("TfidfSVD knows no terms yet: call embed or restore first")
        return self._space

    def _vectorizers(self) -> list[TfidfVectorizer]:
        from sklearn.feature_extraction.text import TfidfVectorizer  # a second to import, and rarely needed

        shared = {"sublinear_tf": True, "max_features": self.max_terms, "dtype": np.float32}
        # the usual pattern drops words of one letter or digit, which tell "size 8" from "size 9"
        words = TfidfVectorizer(ngram_range=(1, self.word_ngrams), token_pattern=r"(?u)\b\w+\b", **shared)
        if not self.char_ngrams:
            return [words]
        lengths = (min(3, self.char_ngrams), self.char_ngrams)
        return [words, TfidfVectorizer(analyzer="char_wb", ngram_range=lengths, **shared)]


def _project(matrix_NV: sp.csr_matrix, space: _Space) -> ItemEmbeddings:
    vectors_ND = unit_rows(torch.from_numpy(matrix_NV @ as_numpy(space.projection_VD)))
    return ItemEmbeddings(vectors_ND, "TfidfSVD", torch.from_numpy(np.diff(matrix_NV.indptr) == 0))
