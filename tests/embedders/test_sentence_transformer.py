"""Sentence encoders: what we do around the library, with a stand-in for it; and a tiny real model if installed."""

import sys
import types

import polars as pl
import pytest
import torch

from tesserec.embedders import SentenceTransformer
from tesserec.embedders.sentence_transformer import library
from tesserec.errors import DataError, ResourceError
from tesserec.types import Catalog, ComponentState, Embedder, Vocabulary

CATALOG = Catalog(Vocabulary.of([1, 2, 3, 4]), pl.DataFrame({"text": ["red heart", " ", "blue box", "red heart "]}))


class StandIn:
    """Encodes a text as (its length, 1); notes how it was called."""

    def __init__(self, model, device, model_kwargs):
        if model == "absent":
            raise OSError("no such model")
        self.settings = (model, device, model_kwargs)
        StandIn.last = self

    def encode(self, texts, batch_size, convert_to_tensor, show_progress_bar):
        self.texts, self.batch_size = texts, batch_size
        assert convert_to_tensor
        assert not show_progress_bar
        dtype = self.settings[2].get("dtype", torch.float32)
        return torch.tensor([[len(t), 1.0] for t in texts], dtype=dtype)


@pytest.fixture
def stand_in(monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = StandIn
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return StandIn


def test_equal_texts_are_encoded_once_and_missing_ones_are_zero(stand_in):
    embedder = SentenceTransformer(model="m", batch_size=7)
    found = embedder.embed(CATALOG)
    assert stand_in.last.texts == ["red heart", "blue box"]
    assert stand_in.last.batch_size == 7
    assert stand_in.last.settings == ("m", "cpu", {})
    assert torch.equal(found.vectors_ND[0], found.vectors_ND[3])
    assert torch.allclose(found.vectors_ND[2], torch.tensor([8.0, 1.0]) / 65**0.5)
    assert found.vectors_ND[1].tolist() == [0, 0]
    assert found.missing_N.tolist() == [False, True, False, False]
    assert found.source == "SentenceTransformer(m)"
    assert embedder.embed_new(CATALOG).vectors_ND.equal(found.vectors_ND)
    assert isinstance(embedder, Embedder)
    assert embedder.state() == ComponentState({})
    embedder.restore(embedder.state())


def test_prompt_device_and_bfloat16_reach_the_library(stand_in):
    found = SentenceTransformer(model="m", prompt="item: ", device="cuda:1", bf16=True).embed(CATALOG)
    assert stand_in.last.texts == ["item: red heart", "item: blue box"]
    assert stand_in.last.settings == ("m", "cuda:1", {"dtype": torch.bfloat16})
    assert found.vectors_ND.dtype == torch.float32
    assert torch.allclose(found.vectors_ND[[0, 2]].norm(dim=1), torch.ones(2))


def test_refuses_a_catalog_without_text_and_a_model_that_is_not_there(stand_in):
    silent = Catalog(Vocabulary.of([1]), pl.DataFrame({"text": [" "]}))
    with pytest.raises(DataError, match="none of the 1 items has text: give the catalog a column text or title"):
        SentenceTransformer().embed(silent)
    with pytest.raises(
        ResourceError, match=r"no sentence encoder 'absent' here \(OSError\): give the folder of a saved"
    ):
        SentenceTransformer(model="absent").embed(CATALOG)


def test_a_missing_library_names_the_command(tmp_path, monkeypatch):
    assert library("json").dumps([1]) == "[1]"
    with pytest.raises(ResourceError, match=r"no_such_library is not installed: pip install 'tesserec\[text\]'"):
        library("no_such_library")
    (tmp_path / "half_installed.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_library'"):
        library("half_installed")


def test_agrees_with_the_library_on_a_tiny_model(tmp_path):
    real = pytest.importorskip("sentence_transformers", reason="needs the extra [text]")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason="needs version 6")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"red": 0, "heart": 1, "blue": 2, "box": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tiny = real.SentenceTransformer(modules=[modules.StaticEmbedding(words, embedding_dim=6)])
    tiny.save(str(tmp_path / "tiny"))
    found = SentenceTransformer(model=str(tmp_path / "tiny")).embed(CATALOG).vectors_ND
    expected = tiny.encode(["red heart", "blue box"], convert_to_tensor=True, normalize_embeddings=True).cpu()
    assert torch.allclose(found[[0, 2]], expected, atol=1e-6)
