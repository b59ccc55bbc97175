"""Vectors of the user's own: every layout, every refusal."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from tesserec.embedders import VectorsFile
from tesserec.errors import DataError
from tesserec.types import Catalog, ComponentState, Embedder, Vocabulary

CATALOG = Catalog(Vocabulary.of(["a", "b"]), pl.DataFrame({"title": ["A", "B"]}))
IDS = ["b", "z", "a"]
VECTORS = [[0.0, 2.0], [9.0, 9.0], [3.0, 4.0]]


def parquet(folder, ids=IDS, vectors=VECTORS):
    pl.DataFrame({"item_id": ids, "vector": vectors}).write_parquet(folder / "v.parquet")
    return folder / "v.parquet"


def test_every_layout_gives_the_same_vectors_in_catalog_order(tmp_path):
    array = np.array(VECTORS)
    np.save(tmp_path / "v.npy", array)
    save_file({"vectors": torch.tensor(array).half()}, tmp_path / "v.safetensors")
    (tmp_path / "ids.txt").write_text("b\nz\na\n")
    sources = [
        VectorsFile(path=parquet(tmp_path)),
        VectorsFile(path=tmp_path / "v.npy", ids_path=tmp_path / "ids.txt"),
        VectorsFile(path=tmp_path / "v.safetensors", ids_path=tmp_path / "ids.txt", num_features=2),
    ]
    for source in sources:
        found = source.embed(CATALOG)
        assert torch.allclose(found.vectors_ND, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
        assert found.vectors_ND.dtype == torch.float32
        assert found.missing_N.tolist() == [False, False]
        assert found.source == f"VectorsFile({source.path.name})"


def test_rows_without_ids_follow_the_catalog_and_lengths_can_be_kept(tmp_path):
    np.save(tmp_path / "v.npy", np.array([[3.0, 4.0], [0.0, 2.0]]))
    source = VectorsFile(path=tmp_path / "v.npy", unit_length=False)
    assert source.embed(CATALOG).vectors_ND.tolist() == [[3, 4], [0, 2]]
    assert source.embed_new(CATALOG).vectors_ND.tolist() == [[3, 4], [0, 2]]
    assert isinstance(source, Embedder)
    assert source.state() == ComponentState({})
    source.restore(source.state())


def test_integer_ids_match_text(tmp_path):
    catalog = Catalog(Vocabulary.of([7, 5]), pl.DataFrame({"title": ["A", "B"]}))
    np.save(tmp_path / "v.npy", np.eye(2))
    (tmp_path / "ids.txt").write_text("5\n7\n")
    found = VectorsFile(path=tmp_path / "v.npy", ids_path=tmp_path / "ids.txt").embed(catalog)
    assert found.vectors_ND.tolist() == [[0, 1], [1, 0]]


def test_missing_items_are_refused_or_zero(tmp_path):
    path = parquet(tmp_path, ["b", "z"], VECTORS[:2])
    with pytest.raises(
        DataError, match=r"v.parquet has no vector for 1 of 2 items, the first is 'a': add them, or set"
    ):
        VectorsFile(path=path).embed(CATALOG)
    found = VectorsFile(path=path, missing="zero").embed(CATALOG)
    assert found.vectors_ND.tolist() == [[0, 0], [0, 1]]
    assert found.missing_N.tolist() == [True, False]


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (["b", "a", "b"], VECTORS, r"v.parquet: item 'b' is in rows 0 and 2: keep one of them"),
        (IDS, [[1.0, 2.0], [1.0], [1.0, 2.0]], r"item 'z' has 1 features, the first item 2: give all vectors the same"),
        (IDS, [[1.0, 2.0], [1.0, 1.0], None], r"item 'a' has 0 features, the first item 2"),
        (
            IDS,
            [[1.0, 2.0], [1.0, float("nan")], [0.0, 0.0]],
            r"the vector of item 'z' holds NaN or infinity: replace it",
        ),
        (IDS, [[1.0, float("inf")], [1.0, 1.0], [0.0, 0.0]], r"the vector of item 'b' holds NaN or infinity"),
        (IDS, [[1.0, 2.0], [1.0, None], [0.0, 0.0]], r"the vector of item 'z' holds NaN or infinity"),
    ],
)
def test_bad_vectors_are_refused_by_name(tmp_path, ids, vectors, message):
    with pytest.raises(DataError, match=message):
        VectorsFile(path=parquet(tmp_path, ids, vectors)).embed(CATALOG)


def test_ids_outside_the_catalog_may_come_twice(tmp_path):
    path = parquet(tmp_path, ["z", "z", "a", "b"], [[1.0], [2.0], [3.0], [4.0]])
    assert VectorsFile(path=path, unit_length=False).embed(CATALOG).vectors_ND.tolist() == [[3], [4]]


def test_another_width_than_asked_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"v.parquet has vectors of 2 features, expected 3"):
        VectorsFile(path=parquet(tmp_path), num_features=3).embed(CATALOG)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no file .*v.npy: give the path of a file with the vectors"):
        VectorsFile(path=tmp_path / "v.npy").embed(CATALOG)
    (tmp_path / "v.txt").write_text("")
    with pytest.raises(DataError, match=r"v.txt: vectors are read from .parquet, .safetensors and .npy files"):
        VectorsFile(path=tmp_path / "v.txt").embed(CATALOG)
    pl.DataFrame({"id": [1]}).write_parquet(tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r"v.parquet has columns \['id'\]: expected item_id and vector"):
        VectorsFile(path=tmp_path / "v.parquet").embed(CATALOG)
    save_file({"weights": torch.ones(1)}, tmp_path / "v.safetensors")
    with pytest.raises(DataError, match=r"has the tensors \['weights'\]: expected one of the name vectors"):
        VectorsFile(path=tmp_path / "v.safetensors").embed(CATALOG)


@pytest.mark.parametrize("array", [np.ones(2), np.ones((2, 2), dtype=np.int64)])
def test_other_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / "v.npy", array)
    with pytest.raises(DataError, match=r"v.npy holds torch.* of shape .*: expected floats \[items, features\]"):
        VectorsFile(path=tmp_path / "v.npy").embed(CATALOG)


def test_as_many_ids_as_vectors_are_needed(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((3, 2)))
    with pytest.raises(
        DataError, match=r"v.npy has 3 vectors but the catalog has 2 items: give as many ids as vectors"
    ):
        VectorsFile(path=tmp_path / "v.npy").embed(CATALOG)
    (tmp_path / "ids.txt").write_text("a\n")
    with pytest.raises(DataError, match=r"v.npy has 3 vectors but .*ids.txt has 1 ids: give as many"):
        VectorsFile(path=tmp_path / "v.npy", ids_path=tmp_path / "ids.txt").embed(CATALOG)
