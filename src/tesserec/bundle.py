"""A trained system on disk: one folder of safetensors, Parquet and JSON, checked by SHA-256.

    manifest.json             format, recipe, versions, digests, published metrics, SHA-256 of each file
    model.safetensors         the serving retriever, fitted on all events
    holdout.safetensors       the retriever fitted on the training events only: what the published metrics judge
    codebooks.safetensors     the fitted quantizer, for the codes of new items
    embedder.safetensors      what the embedder needs to place new items
    embeddings.safetensors    content vectors of the items
    semantic_ids.parquet      the code tuple of each item
    items.parquet             ids of the items, in dense order, and whether each is available
    catalog.parquet           their titles and attributes, in the same order
    users.parquet             ids of the users, in dense order
    events.parquet            every event, dense
    reports/<method>.json     what the evaluation measured for the retriever and each baseline
    reports/<method>.parquet  the same for each request
    training.json             the training log of each method

Files that a system does not have (codes, for one that only counts) are absent, and the manifest says which there are.
Tries and indexes are derived when a bundle is loaded; a trie that takes a while is kept in ``derived/``, where anything
damaged or out of date is made again. A bundle is written beside its place and renamed; the rest of it is never changed
in place.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors
import torch
from safetensors.torch import load_file, save_file

from tesserec.errors import BundleError
from tesserec.evaluation.report import Report
from tesserec.files import check_parent
from tesserec.semantic_ids.table import load_semantic_ids, save_semantic_ids
from tesserec.types import Catalog, ComponentState, Interactions, ItemEmbeddings, SemanticIds, Vocabulary, as_numpy

__all__ = [
    "CODE_VERSION",
    "FORMAT_VERSION",
    "Bundle",
    "Content",
    "Contents",
    "Manifest",
    "MethodRecord",
    "check_place",
    "data_digest",
    "load_content",
    "load_report",
    "load_state",
    "publish",
    "read_manifest",
    "save_content",
    "save_manifest",
    "save_report",
    "save_state",
    "swap",
]

CODE_VERSION = metadata.version("tesserec")
"""Version of this package, as installed."""
FORMAT_VERSION = 1
"""The newest bundle format that this code reads; older ones are read too."""


@dataclass(frozen=True)
class MethodRecord:
    """How one method was trained."""

    training_log: list[dict[str, float]] = field(default_factory=list)
    """One entry an epoch, for methods that train step by step."""
    equal_training_time: bool = False
    """Whether it was given the training seconds of the retriever."""

    @property
    def training_s(self) -> float | None:
        """Seconds of training steps, validation left out; None for a method that has none."""
        return self.training_log[-1]["seconds"] if self.training_log else None


@dataclass(frozen=True)
class Content:
    """What is known of items beside the events: vectors and codes, and the states that give them to new items."""

    embeddings: ItemEmbeddings | None = None
    semantic_ids: SemanticIds | None = None
    embedder: ComponentState | None = None
    """What the embedder needs to place new items."""
    codebooks: ComponentState | None = None
    """State of the quantizer that made the codes."""


@dataclass(frozen=True)
class Contents:
    """Everything that a bundle holds, in memory."""

    method: str
    """Name of the retriever; the key of its report."""
    recipe: Mapping[str, Any]
    recipe_digest: str
    interactions: Interactions
    catalog: Catalog
    serving: ComponentState
    holdout: ComponentState
    reports: Mapping[str, Report]
    records: Mapping[str, MethodRecord]
    content: Content = field(default_factory=Content)
    num_fitted_items: int | None = None
    """Items that the retriever was fitted with; those after them were added later. None means all."""
    derived_folder: Path | None = None
    """Where derived files of the bundle that this was read from may be kept; None: nowhere."""


@dataclass(frozen=True)
class Manifest:
    """The first page of a bundle: ``manifest.json``."""

    format_version: int
    method: str
    recipe: dict[str, Any]
    recipe_digest: str
    data_digest: str
    codebook_version: str | None
    table_revision: int
    num_items: int
    num_fitted_items: int
    num_users: int
    num_events: int
    metrics: dict[str, dict[str, Any]]
    """Method → metric → mean and interval, as published."""
    versions: dict[str, str]
    created: str
    files: dict[str, dict[str, Any]]
    """File → ``sha256`` and ``bytes``."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were all found and undamaged; parts are read when first asked for."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """The bundle in ``folder``; raises ``BundleError`` that names what is missing, damaged or too new."""
        manifest = read_manifest(folder)
        for name, record in manifest.files.items():
            path = folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing: the bundle is incomplete, restore the file or fit again")
            if sha256(path) != record["sha256"]:
                raise BundleError(f"{path} is damaged (its SHA-256 is not the manifest's): restore it or fit again")
        return cls(folder, manifest)

    def has(self, name: str) -> bool:
        """Whether the system has the file ``name``, ``"semantic_ids.parquet"`` for example."""
        return name in self.manifest.files

    @cached_property
    def interactions(self) -> Interactions:
        """Every event that the bundle was fitted on, dense."""
        users = Vocabulary(_column(pq.read_table(self.folder / "users.parquet"), "user_id"))
        items = Vocabulary(self.catalog.items.ids[: self.manifest.num_fitted_items])
        return load_interactions(self.folder / "events.parquet", users, items)

    @cached_property
    def catalog(self) -> Catalog:
        """The items, those added since the fit included."""
        items = pq.read_table(self.folder / "items.parquet")
        available = (
            torch.from_numpy(items["available"].to_numpy().copy()) if "available" in items.column_names else None
        )
        return Catalog(
            Vocabulary(_column(items, "item_id")), pl.read_parquet(self.folder / "catalog.parquet"), available
        )

    @cached_property
    def content(self) -> Content:
        """Vectors and codes; the codes are checked against the codebook version that the model was trained on."""
        return load_content(self.folder, self.catalog.items, self.serving.metadata.get(_CODEBOOK_VERSION))

    @cached_property
    def serving(self) -> ComponentState:
        """State of the retriever that answers."""
        return load_state(self.folder / "model.safetensors")

    @cached_property
    def holdout(self) -> ComponentState:
        """State of the retriever that saw only the training events."""
        return load_state(self.folder / "holdout.safetensors")

    @cached_property
    def reports(self) -> dict[str, Report]:
        """Method → its report; the retriever comes first."""
        return {name: load_report(self.folder / "reports" / f"{name}.json") for name in self.manifest.metrics}

    @cached_property
    def records(self) -> dict[str, MethodRecord]:
        """Method → what its fit took."""
        tables = json.loads((self.folder / "training.json").read_text(encoding="utf-8"))
        return {name: MethodRecord(**table) for name, table in tables.items()}

    def contents(self) -> Contents:
        """All of it in memory, to be changed and published again."""
        return Contents(
            method=self.manifest.method,
            recipe=self.manifest.recipe,
            recipe_digest=self.manifest.recipe_digest,
            interactions=self.interactions,
            catalog=self.catalog,
            serving=self.serving,
            holdout=self.holdout,
            reports=self.reports,
            records=self.records,
            content=self.content,
            num_fitted_items=self.manifest.num_fitted_items,
            derived_folder=self.folder / "derived" if os.access(self.folder, os.W_OK) else None,
        )


def publish(folder: Path, contents: Contents) -> Bundle:
    """Write a bundle beside ``folder`` and rename it into place; an earlier bundle there is replaced.

    Raises what ``check_place`` does, ``BundleError`` where ``folder`` holds something else than a bundle.
    """
    check_place(folder)
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        files = _write_files(fresh, contents)
        _write_manifest(fresh, contents, files)
        swap(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return Bundle.open(folder)


def check_place(folder: Path) -> None:
    """Raise ``BundleError`` where a bundle must not be written: over a file, or over a folder that is not a bundle.

    Raises ``DataError`` where nothing can be made there.
    """
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / "manifest.json").is_file()):
        return
    if folder.exists():
        raise BundleError(f"{folder} exists and is not a bundle: choose another place, it would be replaced")
    check_parent(folder)


def data_digest(interactions: Interactions, catalog: Catalog) -> str:
    """Sixteen hexadecimal digits that differ when any event, user, item or attribute of an item does.

    Items of ``catalog`` that were added after the events' own do not count.
    """
    digest = hashlib.sha256()
    for vocabulary in (interactions.users, interactions.items):
        digest.update(json.dumps(vocabulary.ids.to_pylist()).encode())
    for name, column in interactions.columns().items():
        digest.update(name.encode())
        digest.update(as_numpy(column).tobytes())
    number = len(interactions.items)
    for attribute in catalog.frame[:number]:
        digest.update(json.dumps([attribute.name, attribute.to_list()], default=str).encode())
    if catalog.available_N is not None:
        digest.update(as_numpy(catalog.available_N[:number]).tobytes())
    return digest.hexdigest()[:16]


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The first page of the bundle in ``folder``, without a look at its other files; raises ``BundleError``."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise BundleError(f"{folder} is not a bundle: it has no manifest.json; `tesserec fit` makes bundles")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        version = int(table["format_version"])
        if version > FORMAT_VERSION:
            raise BundleError(
                f"{path} has format {version}, this tesserec reads up to {FORMAT_VERSION}: update tesserec"
            )
        if table.pop("sha256") != _table_digest(table):
            raise ValueError("its SHA-256 is another")
        return Manifest(**table)
    except (ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path} is damaged ({error}): restore it or fit again") from None


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into ``folder``; ``manifest.files`` must be what is there."""
    table = dataclasses.asdict(manifest)
    text = json.dumps({**table, "sha256": _table_digest(table)}, indent=1)
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def save_state(path: Path, state: ComponentState) -> None:
    """Write a component's state as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.tensors.items()}
    save_file(tensors, path, {_STATE_FORMAT: "1", **state.metadata})  # a file without any entry could not be read
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def load_state(path: Path) -> ComponentState:
    """The inverse of ``save_state``."""
    with safetensors.safe_open(path, "pt") as file:
        about = dict(file.metadata())
    del about[_STATE_FORMAT]
    return ComponentState(load_file(path), about)


def save_content(folder: Path, content: Content, items: Vocabulary) -> None:
    """Write what there is of vectors, codes and states as files of ``folder``."""
    for name, state in zip(_STATES, (content.embedder, content.codebooks), strict=True):
        if state is not None:
            save_state(folder / f"{name}.safetensors", state)
    if content.semantic_ids is not None:
        save_semantic_ids(folder / "semantic_ids.parquet", content.semantic_ids, items)
    if content.embeddings is not None:
        tensors = {"vectors": content.embeddings.vectors_ND}
        if content.embeddings.missing_N is not None:
            tensors["missing"] = content.embeddings.missing_N
        state = ComponentState(tensors, {"source": content.embeddings.source})
        save_state(folder / "embeddings.safetensors", state)


def load_content(folder: Path, items: Vocabulary, codebook_version: str | None = None) -> Content:
    """The inverse of ``save_content``; raises ``VersionMismatchError`` for codes of another codebook version."""
    vectors, codes = folder / "embeddings.safetensors", folder / "semantic_ids.parquet"
    embeddings = None
    if vectors.is_file():
        state = load_state(vectors)
        embeddings = ItemEmbeddings(state.tensors["vectors"], state.metadata["source"], state.tensors.get("missing"))
    return Content(
        embeddings,
        load_semantic_ids(codes, items, codebook_version) if codes.is_file() else None,
        *(load_state(path) if path.is_file() else None for path in (folder / f"{n}.safetensors" for n in _STATES)),
    )


def save_report(path: Path, report: Report) -> None:
    """Write a report as JSON, and what it knows of each request as Parquet beside it."""
    report.write_values(path.with_suffix(".parquet"))
    path.write_text(report.to_json(), encoding="utf-8")


def load_report(path: Path) -> Report:
    """The inverse of ``save_report``."""
    return Report.from_json(path.read_text(encoding="utf-8")).with_values(path.with_suffix(".parquet"))


def save_interactions(path: Path, interactions: Interactions) -> None:
    """Write the dense columns of an event log as Parquet; vocabularies are written elsewhere."""
    columns = {name.removesuffix("_E"): as_numpy(column) for name, column in interactions.columns().items()}
    about = {name: getattr(interactions, name) for name in _LOG_SETTINGS}
    table = pa.table(columns).replace_schema_metadata({_LOG_KEY: json.dumps(about).encode()})
    pq.write_table(table, path, compression="zstd")


def load_interactions(path: Path, users: Vocabulary, items: Vocabulary) -> Interactions:
    """The inverse of ``save_interactions``."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[_LOG_KEY])
    settings: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in about.items()}
    columns: dict[str, Any] = {
        f"{name}_E": torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names
    }
    return Interactions(users, items, **columns, **settings)


_CODEBOOK_VERSION = "tesserec.codebook_version"
_STATE_FORMAT = "tesserec.state"
_STATES = ("embedder", "codebooks")
_LOG_KEY = b"tesserec.interactions"
_LOG_SETTINGS = ("has_order", "kinds", "positive_kinds", "domains")


def _write_files(folder: Path, contents: Contents) -> dict[str, dict[str, Any]]:
    """Everything but the manifest; returns the checksums."""
    catalog, events = contents.catalog, contents.interactions
    pq.write_table(pa.table({"user_id": events.users.ids}), folder / "users.parquet", compression="zstd")
    items = {"item_id": catalog.items.ids}
    if catalog.available_N is not None:
        items["available"] = pa.array(as_numpy(catalog.available_N))
    pq.write_table(pa.table(items), folder / "items.parquet", compression="zstd")
    catalog.frame.write_parquet(folder / "catalog.parquet", compression="zstd")
    save_interactions(folder / "events.parquet", events)
    _write_models(folder, contents)
    save_content(folder, contents.content, catalog.items)
    (folder / "reports").mkdir()
    for name, report in contents.reports.items():
        save_report(folder / "reports" / f"{name}.json", report)
    records = {name: dataclasses.asdict(record) for name, record in contents.records.items()}
    (folder / "training.json").write_text(json.dumps(records, indent=1), encoding="utf-8")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths
    }


def _write_models(folder: Path, contents: Contents) -> None:
    codes = contents.content.semantic_ids
    stamp = {} if codes is None else {_CODEBOOK_VERSION: codes.codebook_version}
    for name, state in (("model", contents.serving), ("holdout", contents.holdout)):
        save_state(folder / f"{name}.safetensors", ComponentState(state.tensors, {**state.metadata, **stamp}))


def _write_manifest(folder: Path, contents: Contents, files: dict[str, dict[str, Any]]) -> None:
    codes = contents.content.semantic_ids
    num_items = len(contents.catalog)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        method=contents.method,
        recipe=dict(contents.recipe),
        recipe_digest=contents.recipe_digest,
        data_digest=data_digest(contents.interactions, contents.catalog),
        codebook_version=None if codes is None else codes.codebook_version,
        table_revision=0 if codes is None else codes.table_revision,
        num_items=num_items,
        num_fitted_items=num_items if contents.num_fitted_items is None else contents.num_fitted_items,
        num_users=len(contents.interactions.users),
        num_events=len(contents.interactions),
        metrics={name: report.to_dict()["metrics"] for name, report in contents.reports.items()},
        versions={
            "tesserec": CODE_VERSION,
            **{name: metadata.version(name) for name in ("torch", "polars", "pyarrow")},
        },
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=files,
    )
    save_manifest(folder, manifest)


def _table_digest(table: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def swap(fresh: Path, folder: Path) -> None:
    """Rename ``fresh`` to ``folder``; what was there is moved aside first and then deleted."""
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    if old.exists():
        shutil.rmtree(old)


def _column(table: pa.Table, name: str) -> pa.Array:
    return table[name].combine_chunks()
