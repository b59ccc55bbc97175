"""Filters: compared row by row with plain Python, and everything that is no filter is refused."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tesserec.errors import DataError, FilterError
from tesserec.serving.filters import MAX_DEPTH, MAX_LENGTH, compile_filter

FRAME = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "price": [1.0, None, 20.0],
        "stock": pl.Series([1, 2, None], dtype=pl.UInt8),
        "title": ["Red cup", None, "blue ΒΑΣΗ"],
        "organic": [True, None, False],
        "colors": [["red"], None, ["blue", None]],
        "released": [date(2024, 1, 1), None, date(2024, 6, 1)],
        "seen": pl.Series(
            [datetime(2024, 1, 1, 12, tzinfo=UTC), None, datetime(2024, 6, 1, tzinfo=UTC)],
            dtype=pl.Datetime("ms", "UTC"),
        ),
        "brand": pl.Series(["X", None, "Y"], dtype=pl.Categorical),
        "unused": [None, None, None],
        "class": ["x", "y", "x"],
        "unit price": [1.0, 2.0, float("nan")],
        "size": [{"w": 1}, {"w": 2}, {"w": 3}],
        "first": [True, False, False],
    }
)


def rows(text: str, frame: pl.DataFrame = FRAME) -> str:
    """The ids of the rows that a filter holds for, as one word."""
    truth = frame.select(compile_filter(text, frame.schema).alias("truth"))["truth"]
    assert truth.dtype == pl.Boolean
    assert len(truth) == len(frame)
    assert truth.null_count() == 0
    return "".join(frame.filter(truth)["item_id"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price < 10", "a"),
        ("10 > price", "a"),
        ("price <= 1 or price >= 20", "ac"),
        ("price == +1", "a"),
        ("price != 1.0", "c"),
        ("price > -1", "ac"),
        ("stock > 1000", ""),
        ("stock == 2", "b"),
        ("1 < stock <= 2", "b"),
        ("stock < 1.5", "a"),
        ("price < stock", ""),
        ("price == stock", "a"),
        ("stock in [1, 2.0]", "ab"),
        ("stock not in (1, 3)", "b"),
        ("stock in []", ""),
        ("stock not in []", "ab"),
        ('title == "Red cup"', "a"),
        ("title == 'red cup'", ""),
        ('title < "b"', "a"),
        ('title in ["Red cup", "x"]', "a"),
        ('contains(title, "RED")', "a"),
        ('contains(title, "βαση")', "c"),
        ('starts_with(title, "red")', "a"),
        ('starts_with(title, "cup")', ""),
        ('contains(title, ".")', ""),
        ("organic", "a"),
        ("not organic", "c"),
        ("organic == False", "c"),
        ("organic == true", "a"),
        ("organic != true", "c"),
        ("organic in [true]", "a"),
        ("first", "a"),
        ("first == organic", "ac"),
        ('"red" in colors', "a"),
        ('"red" not in colors', "c"),
        ('not ("red" in colors)', "c"),
        ('released == "2024-01-01"', "a"),
        ('released > "2024-03-01T12:00:00Z"', "c"),
        ("released < 1706745600", "a"),
        ('seen >= "2024-01-01T13:00:00+01:00"', "ac"),
        ('seen > "2024-01-01T12:00"', "c"),
        ('seen in ["2024-06-01"]', "c"),
        ("released < seen", "a"),
        ('brand == "Y"', "c"),
        ('contains(brand, "x")', "a"),
        ("is_missing(price)", "b"),
        ("not is_missing(colors)", "ac"),
        ("is_missing(unused)", "abc"),
        ("unused == 3", ""),
        ("price == unused", ""),
        ("not unused", ""),
        ("unused in [1]", ""),
        ('"x" in unused', ""),
        ('contains(unused, "x")', ""),
        ('attribute("class") == "x"', "ac"),
        ('attribute("unit price") >= 0', "ab"),
        ('is_missing(attribute("unit price"))', "c"),
        ('item_id in ["a", "c"]', "ac"),
        ('  price < 10\n and\tcontains(title, "r") ', "a"),
        ('title == "a \\"quoted\\" \\\\ word"', ""),
    ],
)
def test_what_filters_mean(text: str, expected: str) -> None:
    assert rows(text) == expected


def test_a_missing_value_makes_neither_a_comparison_nor_its_negation_true() -> None:
    assert rows("price < 10") == "a"
    assert rows("not price < 10") == "c"
    assert rows("not (price < 10 and item_id == 'b')") == "ac", "open and true is open"
    assert rows("not (price < 10 and item_id == 'a')") == "bc", "open and false is false"
    assert rows("price < 10 or item_id == 'b'") == "ab", "open or true is true"
    assert rows("not (price < 10 or item_id == 'x')") == "c"


def test_a_column_may_be_called_true() -> None:
    frame = FRAME.with_columns(true=pl.lit(True))
    assert rows("true", frame) == "abc"


def test_an_empty_frame() -> None:
    assert rows("price < 10", FRAME.clear()) == ""


REFUSED = {
    'price == "x"': r"character 10: price is a number, 'x' is text: compare it with a number, such as 10",
    '"x" == price': r"character 1: price is a number, 'x' is text",
    "title == 3": 'title is text, 3 is a number: compare it with text, such as "mugs"',
    "organic == 1": "organic is true or false, 1 is a number: compare it with true or false, such as true",
    "price == true": "price is a number, True is true or false",
    "released == true": "released is a time, True is true or false",
    "price in [1, 'x']": "character 14: price is a number, 'x' is text",
    "title < price": "title is text, price is a number: compare alike",
    "released == 'soon'": "character 13: 'soon' is no time: give seconds since 1970 or ISO 8601",
    "released < 1e300": r"1e\+300 is no time",
    "organic < true": "organic is true or false and has no order: use == or !=",
    'colors == "red"': 'colors is a list of texts: ask for one, such as "red" in colors',
    'colors in ["red"]': "colors is a list of texts: ask for one",
    "3 in colors": "colors is a list of texts, 3 is not text",
    '"red" in title': r'character 10: title is text, not a list: write contains\(title, "red"\)',
    "1 in price": r"price is a number, not a list: write price in \[...\]",
    "title in colors": 'title is an attribute: write a constant here, such as 10 or "red"',
    'title in "x"': "'x' is a constant: name an attribute here",
    "contains(price, 'x')": "contains looks into text, price is a number: compare price with ==",
    "starts_with(colors, 'x')": 'starts_with looks into text, colors is a list of texts: write "red" in colors',
    "contains(title, 3)": "contains looks for text, 3 is not",
    "contains(title)": "contains takes 2 arguments, not 1",
    "contains(title, part)": "there is no attribute part",
    "attribute(title)": "attribute takes a name in quotes",
    "contain(title, 'x')": "there is no function contain; did you mean contains",
    "prize < 3": "character 1: there is no attribute prize; did you mean price",
    "title == 'é' and prize < 3": "character 18: there is no attribute prize",
    "  \n prize < 3": "character 5: there is no attribute prize",
    "size == 3": "attribute size has type Struct",
    "price": "price is a number, not something true or false: compare it",
    "true": "True is a constant, not something true or false",
    "price < 1 and 'x'": "character 15: 'x' is a constant",
    "1 < 2": "1 and 2 are both constants: name an attribute to compare",
    "price is 3": "is and is not have no meaning here",
    "price == None": r"None cannot be compared: use is_missing\(...\)",
    "-True == organic": "True has no sign",
    "price < 99999999999999999999": "this number is too large",
    "price < 1e999": "this number is too large",
    "price + 1 < 2": "character 1: this does not belong here; write it such as",
    "-price < 2": "this does not belong here",
    "[x for x in title]": "this does not belong here",
    "title if organic else title": "this does not belong here",
    "title.lower": r"character 6: cannot read '.lower'",
    "price < 1if": "character 9: cannot read '1if'",
    "title == f'x'": "cannot read",
    "title == 'a\\d'": "cannot read",
    "price < (1": r"character 9: '\(' was never closed",
    "price <": "invalid syntax",
    "price < 007": "leading zeros",
    "(" * 300 + "organic" + ")" * 300: "too many nested parentheses",
    "title == '\ud800'": "the filter cannot be read",
    "   ": "the filter is empty",
    "not " * (MAX_DEPTH + 1) + "organic": f"more than {MAX_DEPTH} levels within each other",
    "organic or " * 100 + "organic": f"1107 characters, more than {MAX_LENGTH}",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: ascii(text[:30]))
def test_refusals_say_where_and_why(text: str) -> None:
    with pytest.raises(FilterError, match=REFUSED[text]):
        compile_filter(text, FRAME.schema)


def test_a_filter_error_is_a_data_error() -> None:
    assert issubclass(FilterError, DataError)


def test_the_longest_and_deepest_filters_run() -> None:
    assert rows(" or ".join(["organic"] * 90)) == "a"
    assert rows("not " * (MAX_DEPTH - 2) + "organic") == "a"
    ids = ", ".join(f"'{n}'" for n in range(150))
    assert rows(f"item_id in [{ids}, 'b']") == "b"


WORDS = st.sampled_from(["", "a", "ab", "B", "ß", "É", "aB", "0", "true"])
NUMBERS = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -1.5, 2.0]))
SECONDS = st.integers(-2, 2).map(lambda n: n * 43_200)
Row = dict[str, Any]
Truth = Callable[[Row], bool | None]
ROWS = st.fixed_dictionaries(
    {
        "f": st.none() | st.sampled_from([-1.5, 0.0, 0.5, 2.0, float("nan")]),
        "i": st.none() | st.integers(-3, 3),
        "s": st.none() | WORDS,
        "b": st.none() | st.booleans(),
        "t": st.none() | SECONDS,
        "l": st.none() | st.lists(st.none() | WORDS, max_size=3),
    }
)
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def value(row: Row, name: str) -> Any:
    found = row[name]
    return None if isinstance(found, float) and found != found else found


def both(name: str, other: Any, truth: Callable[[Any, Any], bool], *, column: bool = False) -> Truth:
    """``truth(a, b)`` where neither is missing, else open."""

    def answer(row: Row) -> bool | None:
        a, b = value(row, name), value(row, other) if column else other
        return None if a is None or b is None else truth(a, b)

    return answer


def iso(seconds: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return moment.astimezone(timezone(timedelta(hours=2))).isoformat()


@st.composite
def leaves(draw: st.DrawFn) -> tuple[str, Truth]:
    shape = draw(
        st.sampled_from(["number", "word", "time", "flag", "in", "list", "text", "missing", "columns", "chain"])
    )
    sign, fewer = draw(st.sampled_from(sorted(SIGNS))), draw(st.sampled_from(["==", "!="]))
    if shape == "number":
        name, other = draw(st.sampled_from("fi")), draw(NUMBERS)
        if draw(st.booleans()):
            return f"{other} {sign} {name}", both(name, other, lambda a, b: SIGNS[sign](b, a))
        return f"{name} {sign} {other}", both(name, other, SIGNS[sign])
    if shape == "word":
        word = draw(WORDS)
        return f's {sign} "{word}"', both("s", word, SIGNS[sign])
    if shape == "time":
        moment = draw(SECONDS)
        text = str(moment) if draw(st.booleans()) else f'"{iso(moment)}"'
        return f"t {sign} {text}", both("t", moment, SIGNS[sign])
    if shape == "flag":
        flag = draw(st.booleans())
        return draw(
            st.sampled_from([("b", lambda row: row["b"]), (f"b {fewer} {flag}", both("b", flag, SIGNS[fewer]))])
        )
    if shape == "in":
        word, name, values = draw(
            st.tuples(st.sampled_from(["in", "not in"]), st.just("s"), st.lists(WORDS, max_size=3))
            | st.tuples(st.sampled_from(["in", "not in"]), st.sampled_from("fi"), st.lists(NUMBERS, max_size=3))
        )
        shown = ", ".join(f'"{v}"' if name == "s" else str(v) for v in values)
        return f"{name} {word} [{shown}]", both(name, values, lambda a, b: (a in b) == (word == "in"))
    if shape == "list":
        word, element = draw(st.sampled_from(["in", "not in"])), draw(WORDS)
        return f'"{element}" {word} l', both("l", element, lambda a, b: (b in a) == (word == "in"))
    if shape == "text":
        part = draw(WORDS)
        if draw(st.booleans()):
            return f'contains(s, "{part}")', both("s", part.lower(), lambda a, b: b in a.lower())
        return f'starts_with(s, "{part}")', both("s", part.lower(), lambda a, b: a.lower().startswith(b))
    if shape == "missing":
        name = draw(st.sampled_from("fisbtl"))
        return f"is_missing({name})", lambda row: value(row, name) is None
    if shape == "columns":
        return f"f {sign} i", both("f", "i", SIGNS[sign], column=True)
    low = draw(NUMBERS)
    first, second = both("i", low, lambda a, b: b <= a), both("i", "f", SIGNS[sign], column=True)
    return f"{low} <= i {sign} f", lambda row: kleene([first(row), second(row)], False)


def kleene(parts: list[bool | None], decides: bool) -> bool | None:
    """``and`` (False decides) and ``or`` (True decides) of three values."""
    return decides if decides in parts else None if None in parts else not decides


def joined(parts: list[tuple[str, Truth]], word: str) -> tuple[str, Truth]:
    text = "(" + f" {word} ".join(text for text, _ in parts) + ")"
    return text, lambda row: kleene([truth(row) for _, truth in parts], word == "or")


def negated(part: tuple[str, Truth]) -> tuple[str, Truth]:
    def answer(row: Row) -> bool | None:
        truth = part[1](row)
        return None if truth is None else not truth

    return f"not {part[0]}", answer


EXPRESSIONS = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.builds(joined, st.lists(inner, min_size=2, max_size=3), st.sampled_from(["and", "or"])), inner.map(negated)
    ),
    max_leaves=6,
)
SCHEMA = {
    "f": pl.Float32, "i": pl.Int16, "s": pl.String, "b": pl.Boolean, "t": pl.Int64, "l": pl.List(pl.String),
}  # fmt: skip


def check_like_python(expression: tuple[str, Truth], table: list[Row]) -> None:
    text, truth = expression
    frame = pl.DataFrame(table, schema=SCHEMA).with_columns(pl.from_epoch("t", time_unit="s"))
    if len(text) > MAX_LENGTH:
        with pytest.raises(FilterError, match="characters, more than"):
            compile_filter(text, frame.schema)
        return
    found = frame.select(compile_filter(text, frame.schema)).to_series().to_list()
    assert found == [truth(row) is True for row in table], text


@given(EXPRESSIONS, st.lists(ROWS, min_size=1, max_size=5))
@settings(max_examples=120)
def test_the_same_as_row_by_row_in_python(expression: tuple[str, Truth], table: list[Row]) -> None:
    check_like_python(expression, table)


@pytest.mark.prove
@given(EXPRESSIONS, st.lists(ROWS, min_size=1, max_size=5))
@settings(max_examples=5_000)
def test_the_same_as_row_by_row_in_python_at_length(expression: tuple[str, Truth], table: list[Row]) -> None:
    check_like_python(expression, table)


PIECES = ["price", "title", "colors", "organic", "released", "unused", "size", "(", ")", "[", "]", ",", "==", "<", "in",
          "not", "and", "or", "is", "if", "else", "lambda", "for", "1", "-", "+", "1e9", "'x'", '"\\"', "contains",
          "is_missing", "attribute", "true", "None", "yield", "await", "\\", "\n", "#", ".", ":", "=",
          "\x00"]  # fmt: skip
ANY_TEXT = st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)


def check_any_text(text: str) -> None:
    try:
        expression = compile_filter(text, FRAME.schema)
    except FilterError:
        return
    assert FRAME.select(expression).to_series().dtype == pl.Boolean


@given(ANY_TEXT)
@settings(max_examples=300)
def test_any_text_is_a_filter_or_a_filter_error(text: str) -> None:
    check_any_text(text)


@pytest.mark.prove
@given(ANY_TEXT)
@settings(max_examples=5_000)
def test_any_text_is_a_filter_or_a_filter_error_at_length(text: str) -> None:
    check_any_text(text)
