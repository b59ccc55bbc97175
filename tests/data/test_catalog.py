"""Item tables: what comes out, the text rule, and what is refused."""

import polars as pl
import pyarrow as pa
import pytest
import torch

from tesserec.data.catalog import align_catalog, catalog_of, read_catalog
from tesserec.data.interactions import read_events
from tesserec.errors import DataError
from tesserec.types import Vocabulary


def test_rows_follow_the_sorted_ids_and_keep_every_column():
    catalog = read_catalog(pl.DataFrame({"colour": ["r", "g", "b"], "asin": ["y", "z", "x"], "name": ["Y", None, "X"]}))
    assert catalog.items.ids.to_pylist() == ["x", "y", "z"]
    assert catalog.frame.to_dicts() == [
        {"item_id": "x", "colour": "b", "title": "X", "text": "X"},
        {"item_id": "y", "colour": "r", "title": "Y", "text": "Y"},
        {"item_id": "z", "colour": "g", "title": None, "text": ""},
    ]
    assert catalog.available_N is None
    assert catalog.titles == ["X", "Y", "z"]


def test_text_is_made_of_what_there_is():
    catalog = read_catalog(
        pl.DataFrame(
            {
                "item_id": [1, 2, 3, 4],
                "title": ["Soap", " ", None, "Oil"],
                "brand": ["Acme", "Acme", None, None],
                "categories": [["Bath", "Soap"], None, [], ["Oil", None]],
                "description": ["Clean.", None, "Only this", ["a", "b"][0]],
            }
        )
    )
    assert catalog.texts == [
        "Soap. Brand: Acme. Categories: Bath, Soap. Clean.",
        "Brand: Acme",
        "Only this",
        "Oil. Categories: Oil. a",
    ]


def test_paths_of_categories_and_lists_of_texts_are_joined():
    table = pa.table({"item_id": [1], "genres": [[["A", "B"], ["C"]]], "description": [["one", "two"]]})
    catalog = read_catalog(table)
    assert catalog.texts == ["Categories: A > B, C. one, two"]
    assert catalog.frame["description"].to_list() == ["one, two"]
    assert catalog.frame["categories"].to_list() == [[["A", "B"], ["C"]]]


def test_a_text_column_is_left_alone_and_nothing_gives_nothing():
    catalog = read_catalog(pl.DataFrame({"item_id": [1, 2], "title": ["a", "b"], "text": ["own", None]}))
    assert catalog.texts == ["own", ""]
    assert read_catalog(pl.DataFrame({"item_id": [1], "lat": [0.5]})).texts == [""]


def test_known_columns_are_typed():
    table = {
        "item_id": [2, 1],
        "title": [1984, 2001],
        "price": ["2", "1.5"],
        "available": ["No", "TRUE"],
        "domain": [1, 2],
    }
    catalog = read_catalog(pl.DataFrame(table))
    assert catalog.frame["title"].to_list() == ["2001", "1984"]
    assert catalog.frame["price"].to_list() == [1.5, 2.0]
    assert catalog.frame["domain"].to_list() == ["2", "1"]
    assert catalog.available_N.tolist() == [True, False]
    assert catalog.available_N.dtype == torch.bool
    numbers = read_catalog(pl.DataFrame({"item_id": [1, 2, 3, 4], "available": [1, 0, 0, 1], "price": [None, 0, 1, 2]}))
    assert numbers.available_N.tolist() == [True, False, False, True]
    assert numbers.frame["price"].to_list() == [None, 0.0, 1.0, 2.0]


def test_columns_may_replace_one_of_ours():
    table = pl.DataFrame({"item_id": [1], "title": ["deutsch"], "title_en": ["english"]})
    assert read_catalog(table, columns={"title": "title_en"}).frame.columns == ["item_id", "title", "text"]
    assert read_catalog(table, columns={"title": "title_en"}).titles == ["english"]


def test_text_files_give_the_same_catalog_as_frames(tmp_path, assert_same):
    frame = pl.DataFrame({"item_id": [1, 2], "title": ["A, b", "C"], "price": [1.5, None], "n": [3, 4]})
    frame.write_csv(tmp_path / "t.csv")
    (tmp_path / "t.item").write_text(
        "item_id:token\ttitle:token_seq\tprice:float\tn:float\n1\tA, b\t1.5\t3\n2\tC\t\t4\n", encoding="utf-8"
    )
    expected = read_catalog(frame)
    assert_same(read_catalog(tmp_path / "t.csv"), expected)
    assert_same(read_catalog(tmp_path / "t.item"), expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": ["x"]}, r"the polars DataFrame has the columns name: none is item_id; say which is with columns"),
        ({"item_id": pl.Series([], dtype=pl.Int64)}, r"the polars DataFrame holds no items: give at least one row"),
        ({"item_id": [1, None]}, r"column item_id is null in row 1"),
        (
            {"item_id": ["b", "a", "b", "a"]},
            r"column item_id is 'a' in rows 1 and 3 \(2 items occur more than once\): keep one row an item",
        ),
        ({"item_id": [3, 1], "price": ["1", "$2"]}, r"column price is '\$2' in row 1: expected a number of at least 0"),
        ({"item_id": [1, 2], "price": [0.0, -0.5]}, r"column price is -0\.5 in row 1: expected"),
        ({"item_id": [1], "price": [float("nan")]}, r"column price is nan in row 0: expected"),
        ({"item_id": [1, 2], "available": [True, None]}, r"column available is None in row 1: expected true or false"),
        ({"item_id": [1], "available": ["maybe"]}, r"column available is 'maybe' in row 0: expected true or false"),
    ],
)
def test_what_cannot_be_used_is_refused(table, message):
    with pytest.raises(DataError, match=message):
        read_catalog(pl.DataFrame(table))


def test_a_catalog_of_nothing_but_ids():
    events = read_events(pl.DataFrame({"user_id": [1, 1], "item_id": ["b", "a"], "timestamp": [1, 2]}))
    catalog = catalog_of(events)
    assert catalog.items is events.items
    assert catalog.frame.to_dict(as_series=False) == {"item_id": ["a", "b"]}
    assert catalog.titles == ["a", "b"]


def test_alignment_takes_rows_in_the_order_asked_for():
    catalog = read_catalog(pl.DataFrame({"item_id": [1, 2, 3], "title": ["a", "b", "c"], "available": [1, 0, 1]}))
    items = Vocabulary.of([3, 2])
    aligned = align_catalog(catalog, items)
    assert aligned.items is items
    assert aligned.titles == ["c", "b"]
    assert aligned.available_N.tolist() == [True, False]
    assert align_catalog(read_catalog(pl.DataFrame({"item_id": [1]})), Vocabulary.of([1])).available_N is None
    with pytest.raises(DataError, match=r"the catalog lacks 2 of 3 items, 9 among them: add their rows"):
        align_catalog(catalog, Vocabulary.of([1, 9, 8]))
