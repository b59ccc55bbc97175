import dataclasses

import pytest
import torch
from safetensors import safe_open

from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_file import kept_trie, load_trie, save_trie
from tesserec.testing.decoding import random_semantic_ids

TABLE = random_semantic_ids(300, (20, 300, 4), torch.Generator().manual_seed(0))
POPULARITY = torch.rand(300, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def small_tables_are_kept_too(monkeypatch):
    monkeypatch.setattr("tesserec.decoding.trie_file.MIN_ITEMS", 300)


def contents(trie):
    return {name: (tensor.dtype, tensor.tolist()) for name, tensor in trie.tensors().items()}


def test_a_saved_trie_is_mapped_and_the_same(tmp_path):
    trie = Trie.build(TABLE, POPULARITY, order=(2, 0, 1))
    save_trie(tmp_path / "trie.safetensors", trie, "a table")
    loaded = load_trie(tmp_path / "trie.safetensors", "a table")
    assert contents(loaded) == contents(trie)
    assert (loaded.order, loaded.codebook_sizes, loaded.max_branching) == (trie.order, (20, 300, 4), trie.max_branching)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trie.safetensors", "trie.sha256"]


def test_a_kept_trie_is_read_while_the_table_is_the_same(tmp_path):
    path = tmp_path / "derived" / "trie.safetensors"
    built = kept_trie(path.parent, TABLE, POPULARITY)
    written = path.stat().st_mtime_ns
    assert contents(kept_trie(path.parent, TABLE, POPULARITY)) == contents(built)
    assert path.stat().st_mtime_ns == written
    other = dataclasses.replace(TABLE, codes_NL=TABLE.codes_NL.flip(0))
    for table, popularity in ((other, POPULARITY), (TABLE, None), (TABLE, POPULARITY)):
        assert contents(kept_trie(path.parent, table, popularity)) == contents(Trie.build(table, popularity))
    assert path.stat().st_mtime_ns > written


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "sum"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    path = tmp_path / "trie.safetensors"
    built = kept_trie(tmp_path, TABLE)
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "changed":
        path.write_bytes(content[:-10] + b"0123456789")
    elif damage == "gone":
        path.unlink()
    else:
        path.with_suffix(".sha256").write_bytes(b"0")
    assert load_trie(path) is None
    assert contents(kept_trie(tmp_path, TABLE)) == contents(built)
    assert path.read_bytes() == content


def test_a_file_that_another_process_puts_in_between_is_not_taken_for_ours(tmp_path, monkeypatch):
    path = tmp_path / "trie.safetensors"
    other = dataclasses.replace(TABLE, codes_NL=TABLE.codes_NL.flip(0))
    save_trie(path, Trie.build(TABLE), "ours")

    def replaced_after(opened, **options):
        save_trie(path, Trie.build(other), "theirs")
        return safe_open(opened, **options)

    monkeypatch.setattr("tesserec.decoding.trie_file.safe_open", replaced_after)
    assert load_trie(path, "ours") is None


def test_what_cannot_be_written_is_said_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "trie.safetensors").mkdir()
    with pytest.raises(IsADirectoryError):
        kept_trie(tmp_path, TABLE)
    assert [path.name for path in tmp_path.iterdir()] == ["trie.safetensors"]


def test_without_a_folder_and_for_small_tables_nothing_is_kept(tmp_path):
    assert contents(kept_trie(None, TABLE)) == contents(Trie.build(TABLE))
    smaller = dataclasses.replace(TABLE, codes_NL=TABLE.codes_NL[1:])
    assert contents(kept_trie(tmp_path, smaller)) == contents(Trie.build(smaller))
    assert list(tmp_path.iterdir()) == []
