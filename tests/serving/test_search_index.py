"""Search finds what it should, in one order, and any text is a query."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.serving.search_index import SearchIndex

ITEMS = [
    (0, "Red lamp", "A red lamp for the kitchen"),
    (1, "Blue lamps", "Running lamps, blue"),
    (2, "Café table", "A round table for the garden"),
    (3, "Garden chair", "Oak; goes with every table"),
    (4, "Garden chair", "Oak; goes with every table"),
    (5, "", ""),
]
ALL = torch.ones(len(ITEMS), dtype=torch.bool)


@pytest.fixture
def index() -> Iterator[SearchIndex]:
    made = SearchIndex()
    made.put(ITEMS)
    yield made
    made.close()


def found(index: SearchIndex, words: str, limit: int = 10, mask: torch.Tensor = ALL) -> list[int]:
    return [item for item, _ in index.search(words, limit, mask)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("red lamp", [0]),
        ("LAMP red", [0]),
        ("lamps run", [1]),
        ("cafe", [2]),
        ("Cafe\u0301", [2]),
        ("ｃａｆｅ", [2]),
        ("la", [0, 1]),
        ("la ", []),
        ("red la", [0]),
        ("re lamp", [0, 1]),
        ("garden", [3, 4, 2]),
        ("chair garden", [3, 4]),
        ("lamp spaceship", [0, 1]),
        ("spaceship", []),
        ("red AND", [0]),
        ("lamp NOT red", [0, 1]),
        ("title:lamp", [0, 1]),
        ('"red', [0]),
        ("red-lamp!", [0]),
        ("lamp lamp lamp", [0, 1]),
        ("*", []),
        ("", []),
        ("🙂", []),
        ("red 🙂", [0]),
        ("_", []),
        ("a\x00lamp", [0]),
        ("\ud800", []),
    ],
)
def test_what_is_found(index: SearchIndex, words: str, expected: list[int]) -> None:
    assert sorted(found(index, words)) == sorted(expected)


def test_order_and_scores(index: SearchIndex) -> None:
    scored = index.search("garden", 10, ALL)
    scores = [score for _, score in scored]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    assert scores[0] == scores[1], "ties are in the order of indices"
    assert scores[1] > scores[2], "in the title it counts twice"


def test_limits_and_masks(index: SearchIndex) -> None:
    assert found(index, "garden", 2) == [3, 4]
    assert found(index, "garden", 0) == []
    assert found(index, "garden", 1, torch.arange(6) == 2) == [2], "it looks on until there are enough"
    assert found(index, "garden", 10, ALL[:3]) == [2], "indices beyond the mask are not there yet"
    assert found(index, "garden", 10, ~ALL) == []
    assert found(index, "red lamp", 10, torch.arange(6) == 1) == [1], "any word, where none that is allowed has all"


def test_changes_are_found_at_once(index: SearchIndex) -> None:
    index.put([(0, "Violet kettle", ""), (6, "Kettle", "new")])
    more = torch.ones(7, dtype=torch.bool)
    assert found(index, "kettle", mask=more) == [0, 6]
    assert found(index, "red lamp", mask=more) == [1], "what it was is forgotten"
    index.remove([0, 6, 99])
    assert found(index, "kettle", mask=more) == []
    index.put([(6, "Kettle", "back")])
    assert found(index, "kettle", mask=more) == [6]


def test_a_change_that_fails_leaves_nothing(index: SearchIndex) -> None:
    def broken() -> Iterator[tuple[int, str, str]]:
        yield 0, "Violet kettle", ""
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        index.put(broken())
    assert found(index, "kettle") == []
    assert found(index, "red lamp") == [0]


def test_many_words() -> None:
    index = SearchIndex()
    index.put([(0, "lamp", "")])
    assert found(index, " ".join(["lamp"] * 500), mask=ALL[:1]) == [0]
    assert found(index, " ".join(f"w{n}" for n in range(500)) + " lamp", mask=ALL[:1]) == [], "32 words are read"
    index.close()


SYNTAX = st.sampled_from(
    ["red", "lamp", "AND", "OR", "NOT", "NEAR(", ")", '"', "*", "^", ":", "+", "{", "}", "-", "\x00"]
)


@given(st.text(max_size=40) | st.lists(SYNTAX, max_size=10).map(" ".join))
@settings(max_examples=300)
def test_any_text_is_a_query(words: str) -> None:
    for item, score in SHARED.search(words, 10, ALL):
        assert 0 <= item < len(ITEMS)
        assert score > 0


SHARED = SearchIndex()
SHARED.put(ITEMS)


def test_searches_and_changes_at_the_same_time(index: SearchIndex) -> None:
    def change(item: int) -> None:
        for n in range(20):
            index.put([(item, f"lamp w{n}", "x")])
            assert item in found(index, "lamp")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(6)))
    assert sorted(found(index, "lamp")) == list(range(6))
    assert sorted(found(index, "w19")) == list(range(6)), "each item is what it was last put as"
    assert found(index, "w18") == []
