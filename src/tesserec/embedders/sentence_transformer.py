"""Content vectors from a pre-trained sentence encoder; needs the extra ``[text]``.

Paper: Sentence-BERT, https://arxiv.org/abs/1908.10084
Adds: any model of the sentence-transformers library, by name or from a local folder.
Differs: equal texts are encoded once.
Checked: tests/embedders/test_sentence_transformer.py (equal to the library's own output); a real MiniLM on CPU by hand.

Dimensions: N items · D features.
"""

import importlib
from typing import Annotated, Any

import torch

from tesserec.config import Field, component
from tesserec.embedders.linear import unit_rows
from tesserec.errors import DataError, ResourceError
from tesserec.types import Catalog, ComponentState, Interactions, ItemEmbeddings

__all__ = ["SentenceTransformer", "library"]


@component
class SentenceTransformer:
    """Item vectors from the catalog text by a sentence encoder."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Name on the Hugging Face hub, or a local folder (which needs no network)."""
    prompt: str = ""
    """Put before every text, where the model was trained with one."""
    batch_size: Annotated[int, Field(gt=0)] = 64
    """Texts encoded at once."""
    device: str = "cpu"
    """Where the encoder runs: ``cpu``, ``cuda``, ``cuda:1``, …"""
    bf16: bool = False
    """Whether to run in bfloat16: about twice as fast where the processor has it, slightly different vectors."""

    def embed(self, catalog: Catalog, train: Interactions | None = None) -> ItemEmbeddings:
        """Vectors [N, D] of unit length; items without text have a zero row and are marked missing.

        Raises ``DataError`` where no item has text and ``ResourceError`` where the library or the model is not there.
        """
        texts = [text.strip() for text in catalog.texts]
        row_of = {text: row for row, text in enumerate(dict.fromkeys(filter(None, texts)))}
        if not row_of:
            raise DataError(
                f"none of the {len(catalog)} items has text: give the catalog a column text or title, "
                "or use CooccurrenceSVD or VectorsFile"
            )
        encoded = self._encoder().encode(
            [self.prompt + text for text in row_of],
            batch_size=self.batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        encoded_TD = unit_rows(encoded.cpu())
        padded_TD = torch.cat([encoded_TD, torch.zeros(1, encoded_TD.shape[1])])  # the last row: no text
        vectors_ND = padded_TD[torch.tensor([row_of.get(text, -1) for text in texts])]
        missing_N = torch.tensor([not text for text in texts])
        return ItemEmbeddings(vectors_ND, f"SentenceTransformer({self.model})", missing_N)

    def embed_new(self, catalog: Catalog) -> ItemEmbeddings:
        """Vectors of later items: nothing was fitted, so the same as ``embed``."""
        return self.embed(catalog)

    def state(self) -> ComponentState:
        """Nothing: the encoder is found by its name."""
        return ComponentState({})

    def restore(self, state: ComponentState) -> None:
        """The inverse of ``state``."""

    def _encoder(self) -> Any:
        options = {"dtype": torch.bfloat16} if self.bf16 else {}
        try:
            return library("sentence_transformers").SentenceTransformer(
                self.model, device=self.device, model_kwargs=options
            )
        except OSError as error:
            raise ResourceError(
                f"no sentence encoder {self.model!r} here ({type(error).__name__}): give the folder of a saved one, "
                "or the name of one on the Hugging Face hub while there is a network"
            ) from error


def library(name: str) -> Any:
    """The optional library ``name``; raises ``ResourceError`` with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ResourceError(f"{name} is not installed: pip install 'tesserec[text]'") from None
