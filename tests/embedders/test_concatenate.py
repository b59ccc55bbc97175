"""Several embedders as one: cosines are weighted means."""

import numpy as np
import polars as pl
import pytest
import torch

from tesserec.config import build, described
from tesserec.embedders import Concatenate, TfidfSVD, VectorsFile
from tesserec.types import Catalog, Embedder, Vocabulary

CATALOG = Catalog(Vocabulary.of(["a", "b", "c"]), pl.DataFrame({"text": ["red heart", "red box", ""]}))


def source(folder, name, rows):
    np.save(folder / f"{name}.npy", np.array(rows))
    return VectorsFile(path=folder / f"{name}.npy", unit_length=False)


def test_cosine_is_the_weighted_mean_of_the_sources_cosines(tmp_path):
    one = source(tmp_path, "one", [[5.0, 0.0], [3.0, 4.0], [0.0, 1.0]])  # a·b = 0.6
    two = source(tmp_path, "two", [[1.0, 0.0], [0.0, 7.0], [1.0, 0.0]])  # a·b = 0
    equal = Concatenate(sources=(one, two)).embed(CATALOG)
    assert equal.vectors_ND.shape == (3, 4)
    assert float(equal.vectors_ND[0] @ equal.vectors_ND[1]) == pytest.approx(0.3)
    weighted = Concatenate(sources=(one, two), weights=(3.0, 1.0)).embed(CATALOG).vectors_ND
    assert float(weighted[0] @ weighted[1]) == pytest.approx(0.45)
    assert float(weighted[0] @ weighted[2]) == pytest.approx(0.25)
    assert torch.allclose(weighted[0], torch.tensor([0.75**0.5, 0, 0.25**0.5, 0]))
    assert equal.source == "Concatenate(VectorsFile(one.npy), VectorsFile(two.npy))"
    assert equal.missing_N.tolist() == [False] * 3


def test_an_item_without_a_source_is_as_long_as_the_others(tmp_path):
    one = source(tmp_path, "one", [[2.0], [1.0], [0.0]])
    two = source(tmp_path, "two", [[1.0], [0.0], [0.0]])
    found = Concatenate(sources=(one, two)).embed(CATALOG)
    assert torch.allclose(found.vectors_ND, torch.tensor([[0.5**0.5, 0.5**0.5], [1, 0], [0, 0]]))
    assert found.missing_N.tolist() == [False, False, True]


def test_later_items_and_state_go_through_the_sources(tmp_path):
    table = {"sources": [{"class": "tesserec.embedders.tfidf_svd:TfidfSVD"}] * 2, "weights": [1, 2]}
    model = build(Concatenate, table, "embedder")
    first = model.embed(CATALOG)
    state = model.state()
    assert sorted(state.tensors) == ["0.idf", "0.projection", "1.idf", "1.projection"]
    restored = Concatenate(sources=(TfidfSVD(), TfidfSVD()), weights=(1.0, 2.0))
    restored.restore(state)
    assert torch.allclose(restored.embed_new(CATALOG).vectors_ND, first.vectors_ND, atol=1e-5)
    assert described(model)["sources"][0]["class"] == "tesserec.embedders.tfidf_svd:TfidfSVD"
    assert isinstance(model, Embedder)


def test_sources_and_weights_must_fit_together():
    with pytest.raises(ValueError, match="Concatenate has no sources: name at least one embedder"):
        Concatenate(sources=())
    with pytest.raises(ValueError, match="1 weights for 2 sources: give one each"):
        Concatenate(sources=(TfidfSVD(), TfidfSVD()), weights=(1.0,))
    with pytest.raises(ValueError, match="greater than 0"):
        Concatenate(sources=(TfidfSVD(),), weights=(0.0,))
