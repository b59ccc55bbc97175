"""The work folder: what is finished is kept, and only for the run it belongs to."""

from pathlib import Path

import pytest
import torch

from tesserec.errors import BundleError
from tesserec.types import ComponentState
from tesserec.work import Work


def _save(place: Path, value: int) -> None:
    (place / "value").write_text(str(value))


def _load(place: Path) -> int:
    return int((place / "value").read_text())


def test_a_finished_stage_is_not_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "run.work"
    work = Work(folder, "key")
    assert not work.resumed
    assert work.stage("methods/x", lambda: 5, _save, _load) == 5
    assert work.stage("methods/x", lambda: 6, _save, _load) == 5
    again = Work(folder, "key")
    assert again.resumed
    assert again.stage("methods/x", lambda: 7, _save, _load) == 5
    again.remove()
    assert not folder.exists()


def test_a_stage_that_failed_is_made_again(tmp_path: Path) -> None:
    def fail(place: Path, value: int) -> None:
        (place / "value").write_text("half")
        raise OSError("disk full")

    work = Work(tmp_path / "w", "key")
    with pytest.raises(OSError, match="disk full"):
        work.stage("x", lambda: 5, fail, _load)
    assert not (tmp_path / "w" / "x").exists()
    assert work.stage("x", lambda: 6, _save, _load) == 6
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == ["key.json", "x"]


def test_another_key_starts_empty(tmp_path: Path) -> None:
    Work(tmp_path / "w", "key").stage("x", lambda: 5, _save, _load)
    other = Work(tmp_path / "w", "other")
    assert not other.resumed
    assert other.stage("x", lambda: 6, _save, _load) == 6


def test_a_folder_of_somebody_else_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    Work(tmp_path / "w", "key").remove()
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="w is needed for unfinished work and holds something else"):
        Work(tmp_path / "w", "key")
    assert (tmp_path / "w" / "notes.txt").read_text() == "mine"


def test_states_and_checkpoints(tmp_path: Path) -> None:
    work = Work(tmp_path / "w", "key")
    made = work.state("serving", lambda: ComponentState({"a": torch.tensor([1])}, {"b": "c"}))
    kept = work.state("serving", lambda: ComponentState({}))
    assert (kept.tensors["a"].tolist(), kept.metadata) == ([1], made.metadata)
    folder = work.checkpoints("tiger")
    assert folder == tmp_path / "w" / "checkpoints" / "tiger"
    assert folder.is_dir()


def test_without_a_folder_nothing_is_kept() -> None:
    work = Work(None, "key")
    assert not work.resumed
    assert work.stage("x", lambda: 5, _save, _load) == 5
    assert work.stage("x", lambda: 6, _save, _load) == 6
    assert work.checkpoints("x") is None
    work.remove()
