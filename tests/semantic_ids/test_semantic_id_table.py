"""The table of Semantic IDs: digits, versions, additions, removals and the file, by hand."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.errors import DataError, VersionMismatchError
from tesserec.semantic_ids import (
    add_items,
    build_semantic_ids,
    content_codes,
    load_semantic_ids,
    remove_items,
    save_semantic_ids,
)
from tesserec.semantic_ids.table import groups
from tesserec.types import SemanticIds, Vocabulary

CODES = torch.tensor([[1, 2], [0, 0], [1, 2], [1, 2], [0, 1]])


def digits(table):
    return table.codes_NL[:, -1].tolist()


def test_digit_follows_the_index_inside_a_bucket():
    table = build_semantic_ids(CODES, (2, 3), "f")
    assert table.codes_NL.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 2, 2], [0, 1, 0]]
    assert table.codebook_sizes == (2, 3, 16)
    assert table.has_digit
    assert table.table_revision == 0
    assert torch.equal(content_codes(table), CODES)


def test_digit_follows_popularity_then_the_index():
    assert digits(build_semantic_ids(CODES, (2, 3), "f", popularity_N=torch.tensor([1, 9, 5, 3, 0]))) == [2, 0, 0, 1, 0]
    assert digits(build_semantic_ids(CODES, (2, 3), "f", popularity_N=torch.tensor([1, 9, 1, 3, 0]))) == [1, 0, 2, 0, 0]
    with pytest.raises(DataError, match=r"popularity_N has shape \(4,\), expected \(5,\): a count an item"):
        build_semantic_ids(CODES, (2, 3), "f", popularity_N=torch.zeros(4))


def test_bucket_leaves_the_codes_as_they_are():
    table = build_semantic_ids(CODES.int(), [2, 3], "f", collisions="bucket")
    assert table.codes_NL.dtype == torch.int64
    assert torch.equal(table.codes_NL, CODES)
    assert table.codebook_sizes == (2, 3)
    assert not table.has_digit
    assert content_codes(table) is table.codes_NL


@pytest.mark.parametrize(
    ("largest", "capacity"), [(0, 16), (1, 16), (15, 16), (16, 32), (31, 32), (32, 64), (100, 128)]
)
def test_digit_has_room_for_one_more_in_every_bucket(largest, capacity):
    table = build_semantic_ids(torch.zeros(largest, 1, dtype=torch.int64), (4,), "f")
    assert table.codebook_sizes == (4, capacity)


def test_codes_outside_their_codebook_are_refused():
    with pytest.raises(DataError, match=r"level 1 has codes in \[0, 2\], legal: \[0, 1\]"):
        build_semantic_ids(CODES, (2, 2), "f")


def test_version_names_codebooks_sizes_and_digit_and_nothing_else():
    def version(codes=CODES, sizes=(2, 3), fingerprint="f", **options):
        return build_semantic_ids(codes, sizes, fingerprint, **options).codebook_version

    assert version() == version(codes=CODES.flip(0)) == version(popularity_N=torch.arange(5)) == version(CODES[:2])
    twenty = torch.zeros(20, 2, dtype=torch.int64)
    others = [version(sizes=(3, 3)), version(fingerprint="g"), version(collisions="bucket"), version(codes=twenty)]
    assert len({version(), *others}) == 5
    assert version(sizes=(2, 3, 16), codes=torch.zeros(1, 3), collisions="bucket") != version()
    text = b'{"codebooks": "f", "digit": true, "sizes": [2, 3, 16]}'  # as tables that exist were named
    assert version() == hashlib.sha256(text).hexdigest()[:16]


def test_added_items_take_the_lowest_free_digit_and_keep_the_version():
    table = build_semantic_ids(CODES, (2, 3), "f")
    larger = add_items(table, torch.tensor([[1, 2], [0, 2], [1, 2], [0, 0]]))
    assert larger.codes_NL[:5].equal(table.codes_NL)
    assert larger.codes_NL[5:].tolist() == [[1, 2, 3], [0, 2, 0], [1, 2, 4], [0, 0, 1]]
    assert larger.codebook_version == table.codebook_version
    assert larger.codebook_sizes == table.codebook_sizes
    assert larger.has_digit
    assert (table.table_revision, larger.table_revision) == (0, 1)
    assert add_items(larger, torch.tensor([[0, 1]])).table_revision == 2


def test_adding_nothing_changes_nothing():
    table = build_semantic_ids(CODES, (2, 3), "f")
    assert add_items(table, torch.zeros(0, 2, dtype=torch.int64)) is table


def test_added_items_of_a_table_without_digit_share_their_bucket():
    table = build_semantic_ids(CODES, (2, 3), "f", collisions="bucket")
    larger = add_items(table, torch.tensor([[1, 2]]))
    assert larger.codes_NL.tolist() == [*CODES.tolist(), [1, 2]]
    assert larger.table_revision == 1


def test_a_full_bucket_is_refused_by_name():
    table = build_semantic_ids(torch.zeros(15, 1, dtype=torch.int64), (2,), "f")
    assert digits(add_items(table, torch.tensor([[0]])))[-1] == 15
    with pytest.raises(
        DataError, match=r"new item 2: the bucket \(0,\) is full, all 16 digits are taken: give it other codes"
    ):
        add_items(table, torch.tensor([[1], [0], [0]]))


def test_added_codes_must_fit_the_codebooks():
    table = build_semantic_ids(CODES, (2, 3), "f")
    with pytest.raises(DataError, match=r"codes_NL has shape \(1, 3\), expected \[items, 2\]"):
        add_items(table, torch.zeros(1, 3))
    with pytest.raises(DataError, match=r"level 1 has codes in \[3, 3\], legal: \[0, 2\]"):
        add_items(table, torch.tensor([[0, 3]]))


def test_removed_items_leave_the_others_as_they_are_and_free_their_digit():
    table = build_semantic_ids(CODES, (2, 3), "f")
    smaller = remove_items(table, torch.tensor([2, 1]))
    assert smaller.codes_NL.tolist() == [[1, 2, 0], [1, 2, 2], [0, 1, 0]]
    assert smaller.table_revision == 1
    assert smaller.codebook_version == table.codebook_version
    assert add_items(smaller, torch.tensor([[1, 2]])).codes_NL[-1].tolist() == [1, 2, 1]
    assert remove_items(table, torch.tensor([], dtype=torch.int64)) is table
    assert len(remove_items(table, torch.tensor([0, 4]))) == 3


@pytest.mark.parametrize(("items", "low", "high"), [([5], 5, 5), ([-1, 2], -1, 2)])
def test_items_to_remove_must_exist(items, low, high):
    table = build_semantic_ids(CODES, (2, 3), "f")
    with pytest.raises(DataError, match=f"items to remove reach from {low} to {high}: legal: 0 to 4"):
        remove_items(table, torch.tensor(items))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=30), st.integers(0, 29))
def test_every_item_has_a_tuple_of_its_own_however_the_table_grew(rows, first):
    codes = torch.tensor(rows)
    table = build_semantic_ids(codes[: first + 1], (3, 2), "f")
    try:
        grown = add_items(table, codes[first + 1 :])
    except DataError:
        assert torch.unique(codes, dim=0, return_counts=True)[1].max() > table.codebook_sizes[-1]
        return
    assert len(torch.unique(grown.codes_NL, dim=0)) == len(codes)
    assert torch.equal(content_codes(grown), codes)


def test_groups_are_numbered_in_lexicographic_order_whatever_the_sizes():
    codes = torch.tensor([[2, 0, 1], [0, 1, 0], [2, 0, 0], [0, 1, 0]])
    expected = torch.unique(codes, dim=0, return_inverse=True)[1].tolist()
    assert expected == [2, 0, 1, 0]
    for sizes in [(3, 2, 2), (1 << 40, 1 << 40, 1 << 40), (1 << 31, 1 << 31, 4), (3, 2, 1 << 60)]:
        assert groups(codes, sizes).tolist() == expected
    far = torch.tensor([[(1 << 31) - 1, (1 << 31) - 1, 3], [0, 0, 0], [(1 << 31) - 1, 0, 0]])
    assert groups(far, (1 << 31, 1 << 31, 4)).tolist() == [2, 0, 1]


@pytest.mark.parametrize("ids", [["a", "b", "c", "d", "e"], [7, 3, 9, 1, 5]])
@pytest.mark.parametrize("collisions", ["digit", "bucket"])
def test_a_saved_table_comes_back(tmp_path, ids, collisions):
    items, path = Vocabulary.of(ids), tmp_path / "semantic_ids.parquet"
    table = remove_items(add_items(build_semantic_ids(CODES, (2, 3), "f", collisions), CODES[:1]), torch.tensor([5]))
    save_semantic_ids(path, table, items)
    back = load_semantic_ids(path, items, table.codebook_version)
    assert torch.equal(back.codes_NL, table.codes_NL)
    assert back.codes_NL.dtype == torch.int64
    assert (back.codebook_sizes, back.codebook_version) == (table.codebook_sizes, table.codebook_version)
    assert (back.table_revision, back.has_digit) == (2, collisions == "digit")
    assert isinstance(back, SemanticIds)
    frame = pq.read_table(path)
    assert frame.column_names == ["item_id", "codes"]
    assert frame["item_id"].to_pylist() == ids
    assert frame["codes"].to_pylist() == table.codes_NL.tolist()


def test_a_table_of_other_codebooks_is_refused_by_name(tmp_path):
    items, path = Vocabulary.of([1, 2, 3, 4, 5]), tmp_path / "sids.parquet"
    table = build_semantic_ids(CODES, (2, 3), "f")
    save_semantic_ids(path, table, items)
    assert load_semantic_ids(path, items).codebook_version == table.codebook_version
    message = (
        f"sids.parquet has codebook version {table.codebook_version}, the model was trained on 0123: use the table"
    )
    with pytest.raises(VersionMismatchError, match=message):
        load_semantic_ids(path, items, "0123")


def test_a_table_of_other_items_is_refused_by_name(tmp_path):
    path = tmp_path / "sids.parquet"
    table = build_semantic_ids(CODES, (2, 3), "f")
    with pytest.raises(DataError, match="5 Semantic IDs for 2 items: save them with the catalog they are of"):
        save_semantic_ids(path, table, Vocabulary.of([1, 2]))
    save_semantic_ids(path, table, Vocabulary.of([1, 2, 3, 4, 5]))
    with pytest.raises(DataError, match=r"sids.parquet holds 5 items, the catalog 2: load it with the catalog"):
        load_semantic_ids(path, Vocabulary.of([1, 2]))
    with pytest.raises(DataError, match=r"sids.parquet has item 4 in row 3, the catalog 6: load it with the catalog"):
        load_semantic_ids(path, Vocabulary.of([1, 2, 3, 6, 5]))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "own.parquet"
    table = pa.table({"item_id": [1], "codes": [[0]]})
    pq.write_table(table, path)
    with pytest.raises(
        DataError, match=r"own.parquet is not a table of Semantic IDs: read codes of your own with Codes"
    ):
        load_semantic_ids(path, Vocabulary.of([1]))
    about = json.dumps({"format": 2}).encode()
    pq.write_table(table.replace_schema_metadata({b"tesserec.semantic_ids": about}), path)
    with pytest.raises(DataError, match=r"own.parquet has format 2, this version of tesserec reads 1: update tesserec"):
        load_semantic_ids(path, Vocabulary.of([1]))
