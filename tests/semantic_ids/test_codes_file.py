"""Codes of the user's own: every layout, every refusal."""

import dataclasses
import json

import polars as pl
import pytest

from tesserec.config import build
from tesserec.errors import DataError, RecipeError
from tesserec.semantic_ids import CodesFile
from tesserec.types import Vocabulary

ITEMS = Vocabulary.of(["a", "b"])
CODES = {"b": [1, 10], "a": [0, 3], "z": [7, 7]}


def write_json(folder, content):
    path = folder / "codes.json"
    path.write_text(json.dumps(content))
    return CodesFile(path=path)


def test_every_layout_gives_the_same_codes_in_catalog_order(tmp_path):
    wide = pl.DataFrame({"item_id": list(CODES), "code_1": [10, 3, 7], "code_0": [1, 0, 7], "note": ["x", "y", "z"]})
    wide.write_csv(tmp_path / "wide.csv")
    wide.write_csv(tmp_path / "wide.tsv", separator="\t")
    wide.write_parquet(tmp_path / "wide.parquet")
    pl.DataFrame({"item_id": list(CODES), "codes": list(CODES.values())}).write_parquet(tmp_path / "list.parquet")
    sources = [CodesFile(path=tmp_path / n) for n in ("wide.csv", "wide.tsv", "wide.parquet", "list.parquet")]
    hashes = set()
    for source in [write_json(tmp_path, CODES), *sources]:
        codes, sizes, content = source.read(ITEMS)
        assert codes.tolist() == [[0, 3], [1, 10]]
        assert sizes == (2, 11)
        hashes.add(content)
    assert len(hashes) == 1


def test_columns_are_ordered_by_number_not_by_letter(tmp_path):
    row = {"item_id": [1], **{f"code_{i}": [i] for i in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)}}
    pl.DataFrame(row).write_csv(tmp_path / "codes.csv")
    assert CodesFile(path=tmp_path / "codes.csv").read(Vocabulary.of([1]))[0].tolist() == [list(range(11))]


def test_the_hash_changes_with_ids_codes_and_sizes_only(tmp_path):
    source = write_json(tmp_path, CODES)
    first = source.read(ITEMS)[2]
    assert write_json(tmp_path, {**CODES, "z": [0, 0]}).read(ITEMS)[2] == first  # not in the catalog
    assert write_json(tmp_path, {**CODES, "a": [0, 4]}).read(ITEMS)[2] != first
    assert write_json(tmp_path, {**CODES, "c": [1, 10]}).read(Vocabulary.of(["a", "c"]))[2] != first
    larger = CodesFile(path=tmp_path / "codes.json", codebook_sizes=(2, 16))
    write_json(tmp_path, CODES)
    codes, sizes, content = larger.read(ITEMS)
    assert sizes == (2, 16)
    assert content != first
    assert codes.tolist() == [[0, 3], [1, 10]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [0]}, r"codes.json has no codes for 1 of 2 items, the first is 'b': add them"),
        ({"a": [0], "b": [1, 2]}, r"item 'b' has 2 codes, the first item 1: all need as many"),
        ({"a": [0], "b": [-1]}, r"the codes of item 'b' are \[-1\]: expected integers from 0"),
        ({"a": [0], "b": [1.5]}, r"the codes of item 'b' are \[1.5\]: expected integers from 0"),
        (
            {"a": [0], "b": [2_000_000_000]},
            r"'b' are \[2000000000\]: codes number the entries of a level from 0, expected",
        ),
        ({"a": [0], "b": [True]}, r"the codes of item 'b' are \[True\]: expected integers from 0"),
        ({"a": [0], "b": []}, r"the codes of item 'b' are \[\]: expected a list of integers"),
        ({"a": 3, "b": [1]}, r"the codes of item 'a' are 3: expected a list of integers"),
        ([["a", 0]], r'codes.json must hold an object such as \{"item id": \[3, 14, 15\]\}'),
    ],
)
def test_bad_codes_are_refused_by_name(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        write_json(tmp_path, content).read(ITEMS)


def test_an_item_twice_is_refused_with_its_rows(tmp_path):
    path = tmp_path / "codes.csv"
    pl.DataFrame({"item_id": ["z", "a", "z", "b", "a"], "code_0": [0, 1, 0, 2, 1]}).write_csv(path)
    with pytest.raises(DataError, match=r"codes.csv: item 'a' is in rows 1 and 4: keep one of them"):
        CodesFile(path=path).read(ITEMS)


def test_an_item_twice_in_json_is_refused(tmp_path):
    (tmp_path / "codes.json").write_text('{"a": [1, 2], "b": [2, 3], "a": [0, 0]}')
    for read in (lambda source: source.read(ITEMS), lambda source: source.items()):
        with pytest.raises(DataError, match=r"codes.json has the codes of item 'a' 2 times: keep one of them"):
            read(CodesFile(path=tmp_path / "codes.json"))


@pytest.mark.parametrize(
    ("columns", "absent"),
    [(("code_0", "code_2"), "code_1"), (("code_1", "code_2"), "code_0"), (("code_0", "code_1", "code_01"), "code_2")],
)
def test_a_gap_in_the_columns_is_refused(tmp_path, columns, absent):
    pl.DataFrame({"item_id": ["a"], **{name: [1] for name in columns}}).write_csv(tmp_path / "codes.csv")
    message = rf"codes.csv has the codes {', '.join(columns)}: expected code_0, .* without a gap, and {absent} is not"
    with pytest.raises(DataError, match=message):
        CodesFile(path=tmp_path / "codes.csv").items()


def test_null_codes_are_refused(tmp_path):
    path = tmp_path / "codes.csv"
    pl.DataFrame({"item_id": ["a", "b"], "code_0": [0, None]}).write_csv(path)
    with pytest.raises(DataError, match=r"the codes of item 'b' are \[None\]: expected integers from 0"):
        CodesFile(path=path).read(ITEMS)


@pytest.mark.parametrize("columns", [{"item": ["a"], "code_0": [1]}, {"item_id": ["a"], "code_x": [1]}])
def test_other_columns_are_refused(tmp_path, columns):
    path = tmp_path / "codes.csv"
    pl.DataFrame(columns).write_csv(path)
    with pytest.raises(
        DataError, match=r"codes.csv has columns .* expected item_id and either codes or code_0, code_1"
    ):
        CodesFile(path=path).read(ITEMS)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"codes.pkl: codes are read from .parquet, .csv, .tsv, .json files"):
        CodesFile(path=tmp_path / "codes.pkl").read(ITEMS)
    with pytest.raises(DataError, match=r"there is no file .*codes.csv: give the path of a file with the codes"):
        CodesFile(path=tmp_path / "codes.csv").read(ITEMS)


def test_is_named_in_a_recipe(tmp_path):
    assert build(CodesFile, {"path": "x.json", "codebook_sizes": [4, 4]}, "semantic_ids").codebook_sizes == (4, 4)
    with pytest.raises(RecipeError, match=r"semantic_ids.codebook_sizes.*0"):
        build(CodesFile, {"path": "x.json", "codebook_sizes": [0]}, "semantic_ids")


def several(tmp_path):
    path = tmp_path / "several.parquet"
    rows = {"item_id": [7, 5, 7, 5], "method": ["one", "one", "two", "two"], "codes": [[0, 1], [1, 1], [2], [3]]}
    pl.DataFrame(rows).write_parquet(path)
    return path


def test_the_largest_code_is_what_the_items_can_use(tmp_path):
    def read(code, *, num_rows=2, **settings):
        codes = {str(number): [0] for number in range(num_rows)}
        return dataclasses.replace(write_json(tmp_path, {**codes, "b": [code], "a": [0]}), **settings).read(ITEMS)

    for settings, largest in (
        ({}, 1 << 18),
        ({"num_rows": 100_000}, 4 * 100_002),
        ({"codebook_sizes": ((1 << 24) + 1,)}, 1 << 24),
    ):
        codes_NL, sizes, _ = read(largest, **settings)
        assert (codes_NL.tolist(), sizes) == ([[0], [largest]], (largest + 1,))
        remedy = "" if largest == 1 << 24 else ", or codebook_sizes in a recipe where there are so many"
        with pytest.raises(
            DataError, match=rf"'b' are \[{largest + 1}\]: .* expected at most {largest} .* new numbers{remedy}$"
        ):
            read(largest + 1, **settings)


def test_rows_of_one_tokenizer_are_chosen(tmp_path):
    for method, codes in (("one", [[0, 1], [1, 1]]), ("two", [[2], [3]])):
        source = CodesFile(path=several(tmp_path), where={"method": method})
        assert source.items().ids.to_pylist() == [7, 5]
        assert source.read(source.items())[0].tolist() == codes
    assert CodesFile(path=several(tmp_path), where={"item_id": "5", "method": "two"}).items().ids.to_pylist() == [5]
    assert build(CodesFile, {"path": "x.csv", "where": {"method": "one"}}, "semantic_ids").where == {"method": "one"}


def test_items_come_in_the_order_of_the_file(tmp_path):
    assert write_json(tmp_path, CODES).items().ids.to_pylist() == ["b", "a", "z"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({}, r"has 4 rows of 2 items, item 7 for one is in several: keep one row an item, or choose rows"),
        ({"metod": "one"}, r"several.parquet has no column 'metod'; did you mean method\?"),
        ({"method": "ones"}, r"has no row with method = 'ones'; did you mean one\?"),
    ],
)
def test_rows_that_cannot_be_chosen(tmp_path, where, message):
    with pytest.raises(DataError, match=message):
        CodesFile(path=several(tmp_path), where=where).items()


def test_files_without_usable_items_are_refused(tmp_path):
    with pytest.raises(DataError, match="holds no items: give at least one row"):
        write_json(tmp_path, {}).items()
    pl.DataFrame({"item_id": ["a", None], "codes": [[1], [2]]}).write_parquet(tmp_path / "null.parquet")
    with pytest.raises(DataError, match="item_id is null in row 1: give every row an item"):
        CodesFile(path=tmp_path / "null.parquet").items()
    with pytest.raises(DataError, match="which has no columns to choose rows by"):
        CodesFile(path=tmp_path / "codes.json", where={"method": "one"}).items()


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "codes.json").write_text("{")
    (tmp_path / "codes.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"codes.json is not readable as JSON"):
        CodesFile(path=tmp_path / "codes.json").read(ITEMS)
    with pytest.raises(DataError, match=r"codes.parquet is not readable as PARQUET"):
        CodesFile(path=tmp_path / "codes.parquet").read(ITEMS)


@pytest.mark.parametrize("name", ["codes.csv", "codes.tsv", "codes.parquet"])
def test_ids_that_are_no_whole_numbers_are_refused_with_their_row(tmp_path, name):
    path = tmp_path / name

    def write(ids):
        frame = pl.DataFrame({"item_id": ids, "code_0": range(len(ids))})
        if path.suffix == ".parquet":
            frame.write_parquet(path)
        else:
            frame.write_csv(path, separator="," if path.suffix == ".csv" else "\t")

    for ids in ([0.7, 1.7], [1.0, 2.5]):
        write(ids)
        row = int(ids[0] == 1)
        message = rf"{name}: column item_id is {ids[row]} in row {row}, not a whole number: give integers or strings"
        with pytest.raises(DataError, match=message):
            CodesFile(path=path).items()
        with pytest.raises(DataError, match=message):
            CodesFile(path=path).read(Vocabulary.of([0, 1, 2]))
    write([3.0, 1.0])
    assert CodesFile(path=path).items().ids.to_pylist() == [3, 1]
    assert CodesFile(path=path).read(Vocabulary.of([1, 3]))[0].tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("ids", "found"), [([1.0, float("nan")], "NaN in row 1"), ([float("inf"), None], "inf in row 0")]
)
def test_ids_that_are_no_finite_numbers_are_refused(tmp_path, ids, found):
    path = tmp_path / "codes.parquet"
    pl.DataFrame({"item_id": ids, "codes": [[1], [2]]}).write_parquet(path)
    with pytest.raises(DataError, match=f"(?i)column item_id is {found}, not a whole number"):
        CodesFile(path=path).items()


def test_ids_of_another_type_are_refused(tmp_path):
    path = tmp_path / "codes.parquet"
    pl.DataFrame({"item_id": [True, False], "codes": [[1], [2]]}).write_parquet(path)
    with pytest.raises(DataError, match="item_id has type Boolean: ids must be strings or integers, cast the column"):
        CodesFile(path=path).items()
