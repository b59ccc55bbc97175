import re

import pytest
import torch
from safetensors.torch import save_file

from tesserec.errors import BundleError
from tesserec.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

TENSORS = {"module.a": torch.arange(6.0).view(2, 3), "module.b.c": torch.tensor(3), "best.a": torch.zeros(0, 2)}
CHECKPOINT = Checkpoint(TENSORS, {"fingerprint": "x", "epoch": 2, "log": [{"loss": 0.1}]})


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "folder" / "run.safetensors"
    save_checkpoint(path, CHECKPOINT)
    found = load_checkpoint(path, "x")
    assert found.facts == CHECKPOINT.facts
    assert {name: (value.tolist(), value.dtype) for name, value in found.tensors.items()} == {
        name: (value.tolist(), value.dtype) for name, value in TENSORS.items()
    }
    assert {name: value.tolist() for name, value in found.part("module").items()} == {
        "a": [[0, 1, 2], [3, 4, 5]],
        "b.c": 3,
    }
    assert found.part("mod") == {}


def test_views_and_shared_memory_can_be_saved(tmp_path):
    table = torch.arange(6.0, requires_grad=True).view(2, 3)
    save_checkpoint(tmp_path / "c.safetensors", Checkpoint({"a": table.T, "b": table}, {"fingerprint": ""}))
    assert load_checkpoint(tmp_path / "c.safetensors", "").tensors["a"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_there_is_none_or_one_of_another_run(tmp_path):
    assert load_checkpoint(tmp_path / "none.safetensors", "x") is None
    save_checkpoint(tmp_path / "c.safetensors", CHECKPOINT)
    assert load_checkpoint(tmp_path / "c.safetensors", "y") is None


def test_a_save_that_was_cut_off_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, CHECKPOINT)
    (tmp_path / "c.partial").write_bytes(path.read_bytes()[:40])
    assert load_checkpoint(path, "x").facts["epoch"] == 2
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_checkpoint(path, Checkpoint({}, {"fingerprint": "x", "epoch": object()}))
    assert load_checkpoint(path, "x").facts["epoch"] == 2
    save_checkpoint(path, Checkpoint({}, {"fingerprint": "x", "epoch": 3}))
    assert load_checkpoint(path, "x").facts["epoch"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_file_that_is_cut_is_refused_by_name(tmp_path, size):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, CHECKPOINT)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BundleError, match=rf"^{re.escape(str(path))} is damaged \(.+\): delete it to train from"):
        load_checkpoint(path, "x")


@pytest.mark.parametrize("metadata", [None, {"other": "1"}, {"facts": "{"}])
def test_a_file_without_its_facts_is_refused(tmp_path, metadata):
    save_file({"a": torch.zeros(1)}, tmp_path / "c.safetensors", metadata)
    with pytest.raises(BundleError, match=r"c\.safetensors is damaged"):
        load_checkpoint(tmp_path / "c.safetensors", "x")
