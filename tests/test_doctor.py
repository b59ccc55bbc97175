"""What the doctor sees and says."""

import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

from tesserec import doctor
from tesserec.doctor import GIB, Check, examine


def _found(name: str) -> Check:
    return next(check for check in examine() if check.name == name)


def test_every_part_is_looked_at() -> None:
    names = [check.name for check in examine()]
    assert names[:6] == ["tesserec", "Python", "cores", "memory", "disk", "PyTorch"]
    assert names[-6:] == ["[text]", "[llm]", "[serve]", "[scale]", "[dist]", "[dev]"]
    assert {check.state for check in examine()} <= {"ok", "optional", "low"}


def test_missing_extras_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package in ("fastapi", "duckdb"):
            raise metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert _found("[serve]") == Check(
        "[serve]", "optional", "the HTTP service: without fastapi", 'pip install "tesserec[serve]"'
    )
    assert _found("[scale]").found == "logs larger than memory: without duckdb"
    assert _found("[text]") == Check("[text]", "ok", "sentence encoders for item texts")


def test_small_machines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 * GIB // 4096}
    monkeypatch.setattr(doctor.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9 * GIB, 8 * GIB, GIB))
    assert _found("memory") == Check("memory", "ok", "2.0 GiB")
    assert _found("disk") == Check("disk", "ok", "1.0 GiB free")
    pages["SC_PHYS_PAGES"] -= 1
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(9 * GIB, 8 * GIB, GIB - 1))
    assert _found("memory").state == "low"
    assert "the demo needs about 2 GiB" in _found("memory").remedy
    assert (_found("disk").state, _found("disk").remedy) == ("low", "make room: bundles take up to 1 GiB")


def test_the_disk_is_that_of_the_folder(tmp_path: Path) -> None:
    assert any(check.name == "disk" for check in examine(tmp_path))
    with pytest.raises(FileNotFoundError):
        examine(tmp_path / "nowhere")


def test_gpus_are_named_with_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"H{i}00")
    assert [c.found for c in examine() if c.name == "GPU"] == ["H000, as device cuda:0", "H100, as device cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert _found("GPU") == Check("GPU", "optional", "none that PyTorch can use")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "https://pytorch.org/get-started/locally" in _found("GPU").remedy
