"""The bundle on disk: what is written is read again, and what is damaged is refused by name."""

import dataclasses
import json
import shutil
import stat
from pathlib import Path

import polars as pl
import pytest
import torch

import shop
from tesserec import bundle as bundle_module
from tesserec.bundle import (
    Bundle,
    MethodRecord,
    check_place,
    data_digest,
    load_interactions,
    load_state,
    publish,
    save_interactions,
    save_state,
)
from tesserec.data.catalog import catalog_of
from tesserec.errors import BundleError, DataError, VersionMismatchError
from tesserec.semantic_ids.table import save_semantic_ids
from tesserec.types import Catalog, ComponentState, Interactions, Vocabulary

FILES = [
    "catalog.parquet",
    "codebooks.safetensors",
    "embedder.safetensors",
    "embeddings.safetensors",
    "events.parquet",
    "holdout.safetensors",
    "items.parquet",
    "model.safetensors",
    "reports/cooccurrence.json",
    "reports/cooccurrence.parquet",
    "reports/popularity.json",
    "reports/popularity.parquet",
    "semantic_ids.parquet",
    "training.json",
    "users.parquet",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop as a bundle, not to be changed."""
    folder = tmp_path_factory.mktemp("bundles") / "shop"
    publish(folder, shop.contents())
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of the bundle to be damaged."""
    return Path(shutil.copytree(published, tmp_path / "shop"))


def test_a_bundle_holds_what_was_published(published: Path) -> None:
    contents, opened = shop.contents(), Bundle.open(published)
    again = opened.contents()
    assert data_digest(again.interactions, again.catalog) == data_digest(contents.interactions, contents.catalog)
    assert again.interactions.kinds == ("purchase", "return")
    assert again.interactions.positive_kinds == ("purchase",)
    assert again.interactions.has_order is False
    assert again.catalog.frame.equals(contents.catalog.frame)
    assert again.catalog.items.ids.equals(contents.catalog.items.ids)
    assert again.catalog.available_N is None
    for name in ("serving", "holdout"):
        mine, theirs = getattr(contents, name), getattr(again, name)
        assert mine.tensors.keys() == theirs.tensors.keys()
        assert all(torch.equal(mine.tensors[key], theirs.tensors[key]) for key in mine.tensors)
        assert mine.metadata.items() <= theirs.metadata.items()
    assert again.content.semantic_ids is not None
    assert contents.content.semantic_ids is not None
    assert torch.equal(again.content.semantic_ids.codes_NL, contents.content.semantic_ids.codes_NL)
    assert again.content.embeddings is not None
    assert again.content.embeddings.source == "TfidfSVD"
    assert again.content.embeddings.missing_N is not None
    assert again.content.codebooks is not None
    assert again.content.embedder is not None
    assert list(again.reports) == ["cooccurrence", "popularity"]
    assert again.reports["popularity"].to_dict() == contents.reports["popularity"].to_dict()
    assert again.records == contents.records
    assert (again.method, again.recipe_digest, again.num_fitted_items) == (
        "cooccurrence",
        shop.recipe().digest(),
        24,
    )
    assert again.recipe == shop.recipe().table()


def test_the_manifest_says_what_is_there(published: Path) -> None:
    manifest = json.loads((published / "manifest.json").read_text())
    assert sorted(manifest["files"]) == FILES
    assert manifest["files"]["users.parquet"]["bytes"] == (published / "users.parquet").stat().st_size
    assert manifest["format_version"] == 1
    assert manifest["data_digest"] == data_digest(shop.contents().interactions, shop.contents().catalog)
    assert (manifest["num_users"], manifest["num_items"], manifest["num_events"]) == (49, 24, 577)
    assert manifest["metrics"]["cooccurrence"]["ndcg10"]["mean"] == pytest.approx(
        shop.contents().reports["cooccurrence"].metrics["ndcg10"].mean
    )
    assert manifest["codebook_version"] == shop.contents().content.semantic_ids.codebook_version
    assert manifest["table_revision"] == 0
    assert {"tesserec", "torch", "polars", "pyarrow"} == set(manifest["versions"])
    assert not list(published.parent.glob(".*")), "nothing is left beside it"


def test_everybody_may_read_the_files(published: Path) -> None:
    assert all(stat.S_IMODE((published / name).stat().st_mode) & 0o444 == 0o444 for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"shop/{name} is damaged .* restore it or fit again"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "reports/popularity.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"shop/{name} is missing: the bundle is incomplete"):
        Bundle.open(folder)


def test_a_damaged_manifest_is_named(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"num_users": 49', '"num_users": 48'))
    with pytest.raises(BundleError, match=r"shop/manifest\.json is damaged \(its SHA-256 is another\): restore it"):
        Bundle.open(folder)
    path.write_text("{")
    with pytest.raises(BundleError, match=r"shop/manifest\.json is damaged"):
        Bundle.open(folder)
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"shop/manifest\.json is damaged \('format_version'\)"):
        Bundle.open(folder)
    path.unlink()
    with pytest.raises(BundleError, match=r"shop is not a bundle: it has no manifest\.json; `tesserec fit` makes"):
        Bundle.open(folder)


def test_a_newer_format_is_refused_and_an_older_one_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "FORMAT_VERSION", 2)
    assert Bundle.open(folder).manifest.format_version == 1
    monkeypatch.setattr(bundle_module, "FORMAT_VERSION", 0)
    with pytest.raises(BundleError, match="has format 1, this tesserec reads up to 0: update tesserec"):
        Bundle.open(folder)


def test_codes_of_another_codebook_are_refused(folder: Path) -> None:
    """A table that is whole but of another codebook: the manifest is made to agree, the model's stamp does not."""
    contents = shop.contents()
    other = dataclasses.replace(contents.content.semantic_ids, codebook_version="0123456789abcdef")
    save_semantic_ids(folder / "semantic_ids.parquet", other, contents.catalog.items)
    table = json.loads((folder / "manifest.json").read_text())
    table["files"]["semantic_ids.parquet"]["sha256"] = bundle_module.sha256(folder / "semantic_ids.parquet")
    table.pop("sha256")
    table["sha256"] = bundle_module._table_digest(table)
    (folder / "manifest.json").write_text(json.dumps(table))
    trained_on = contents.content.semantic_ids.codebook_version
    with pytest.raises(VersionMismatchError, match=rf"version 0123456789abcdef, the model was trained on {trained_on}"):
        _ = Bundle.open(folder).content


def test_publishing_replaces_a_bundle_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("of the old bundle")
    publish(folder, shop.contents())
    assert not (folder / "notes.txt").exists()
    other = tmp_path / "photos"
    other.mkdir()
    check_place(other)
    check_place(tmp_path / "new")
    (other / "a.jpg").write_text("")
    with pytest.raises(BundleError, match="photos exists and is not a bundle: choose another place"):
        publish(other, shop.contents())
    with pytest.raises(BundleError, match=r"a\.jpg exists and is not a bundle"):
        check_place(other / "a.jpg")
    with pytest.raises(DataError, match=r"cannot be written, as .*a\.jpg is not a folder: choose another place"):
        check_place(other / "a.jpg" / "new")
    assert [p.name for p in other.iterdir()] == ["a.jpg"]


def test_a_failed_publication_leaves_the_old_bundle(folder: Path) -> None:
    broken = dataclasses.replace(shop.contents(), serving=ComponentState({"x": "no tensor"}))  # type: ignore[dict-item]
    with pytest.raises(AttributeError):
        publish(folder, broken)
    assert Bundle.open(folder).manifest.method == "cooccurrence"
    assert [p.name for p in folder.parent.iterdir()] == ["shop"]


def test_a_system_without_codes_has_no_such_files(tmp_path: Path) -> None:
    bare = dataclasses.replace(shop.contents(), content=bundle_module.Content())
    opened = publish(tmp_path / "bare", bare)
    assert opened.has("model.safetensors")
    assert not opened.has("semantic_ids.parquet")
    assert not opened.has("embeddings.safetensors")
    assert (opened.manifest.codebook_version, opened.manifest.table_revision) == (None, 0)
    assert opened.content == bundle_module.Content()


def test_availability_is_kept(tmp_path: Path) -> None:
    contents = shop.contents()
    available_N = torch.arange(24) % 2 == 0
    catalog = dataclasses.replace(contents.catalog, available_N=available_N)
    found = publish(tmp_path / "b", dataclasses.replace(contents, catalog=catalog)).catalog.available_N
    assert found is not None
    assert torch.equal(found, available_N)


def test_states_with_shared_memory_and_metadata(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    save_state(tmp_path / "s", ComponentState({"whole": whole, "turned": whole.T, "part": whole[0]}, {"a": "b"}))
    found = load_state(tmp_path / "s")
    assert torch.equal(found.tensors["turned"], whole.T)
    assert torch.equal(found.tensors["part"], torch.tensor([0.0, 1.0, 2.0]))
    assert found.metadata == {"a": "b"}
    save_state(tmp_path / "e", ComponentState({}, {}))
    assert load_state(tmp_path / "e") == ComponentState({}, {})


def test_every_column_of_a_log_is_kept(tmp_path: Path) -> None:
    numbers = torch.tensor([0, 0, 1])
    log = Interactions(
        users=Vocabulary.of([7, 8]),
        items=Vocabulary.of(["a", "b"]),
        user_E=numbers.int(),
        item_E=torch.tensor([1, 0, 1], dtype=torch.int32),
        time_E=torch.tensor([-1, 5, 6]),
        order_E=torch.tensor([3, 4, 5]),
        has_order=True,
        value_E=torch.tensor([0.5, -1.0, 2.0]),
        kind_E=numbers.int(),
        kinds=("buy", "return"),
        positive_kinds=("buy",),
        domain_E=numbers.int(),
        domains=("x", "y"),
        session_E=torch.tensor([-1, 0, 1]),
        impression_E=torch.tensor([2, -1, 1]),
    )
    save_interactions(tmp_path / "e.parquet", log)
    found = load_interactions(tmp_path / "e.parquet", log.users, log.items)
    assert data_digest(found, catalog_of(log)) == data_digest(log, catalog_of(log))
    for name, column in log.columns().items():
        assert getattr(found, name).dtype == column.dtype
        assert torch.equal(getattr(found, name), column)
    assert (found.has_order, found.kinds, found.positive_kinds, found.domains) == (
        True,
        ("buy", "return"),
        ("buy",),
        ("x", "y"),
    )


@pytest.mark.parametrize(
    "change",
    [
        {"users": Vocabulary.of(["a", "c"])},
        {"items": Vocabulary.of([1, 3])},
        {"item_E": torch.tensor([0], dtype=torch.int32)},
        {"time_E": torch.tensor([6])},
        {"value_E": torch.tensor([1.0])},
    ],
)
def test_the_digest_of_data_differs_with_any_part(change: dict[str, object]) -> None:
    log = Interactions(
        users=Vocabulary.of(["a", "b"]),
        items=Vocabulary.of([1, 2]),
        user_E=torch.tensor([0], dtype=torch.int32),
        item_E=torch.tensor([1], dtype=torch.int32),
        time_E=torch.tensor([5]),
        order_E=torch.tensor([0]),
    )
    catalog = catalog_of(log)
    assert data_digest(log, catalog) == data_digest(dataclasses.replace(log), catalog)
    assert data_digest(log, catalog) != data_digest(dataclasses.replace(log, **change), catalog)
    assert len(data_digest(log, catalog)) == 16
    titled = [Catalog(log.items, pl.DataFrame({"item_id": [1, 2], "title": ["cup", title]})) for title in "ab"]
    unavailable = dataclasses.replace(titled[0], available_N=torch.tensor([True, False]))
    longer = Catalog(Vocabulary.of([1, 2, 3]), pl.DataFrame({"item_id": [1, 2, 3], "title": ["cup", "a", "new"]}))
    assert len({data_digest(log, one) for one in (*titled, unavailable)}) == 3
    assert data_digest(log, longer) == data_digest(log, titled[0])


def test_training_seconds_are_those_of_the_last_epoch() -> None:
    assert MethodRecord().training_s is None
    assert MethodRecord([{"seconds": 1.0}, {"seconds": 2.5}]).training_s == 2.5
