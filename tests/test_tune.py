"""The search for settings: what it tries, what it records, when it stops."""

import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import shop
from benchmarks.accuracy import tune
from tesserec.bench_suite import read_suite
from tesserec.errors import RecipeError

SUITE = """
[datasets.shop]
events = "events.parquet"
positive_kinds = ["purchase"]
[[grid]]
datasets = ["shop"]
protocols = ["last_out"]
methods = ["cooccurrence"]
"""

METHOD = f"""
[retriever]
class = "{shop.COOCCURRENCE}"
window = 1
[search]
"retriever.window" = {{ low = 2, high = 8, log = true, int = true }}
"retriever.popularity.window_days" = [7.0, 14.0]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "cooccurrence.toml").write_text(METHOD)
    (tmp_path / "suite.toml").write_text(SUITE)
    shop.events().write_parquet(tmp_path / "events.parquet")
    return tmp_path


def search(place: Path, cpu_seconds: float, *more: str) -> list[dict[str, Any]]:
    """The lines after a search."""
    given = [
        "cooccurrence",
        "--dataset",
        "shop",
        "--cpu-seconds",
        str(cpu_seconds),
        "--suite",
        str(place / "suite.toml"),
    ]
    assert tune.main([*given, "--results", str(place / "tuning"), *more]) == 0
    lines = (place / "tuning" / "shop.last_out.cooccurrence.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_search_starts_with_the_settings_as_they_are_and_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = search(place, 0)
    assert list(first) == ["search", "trial", "settings", "ndcg10", "recall10", "cpu_s", "seed", "commit", "date"]
    assert (first["trial"], first["settings"], first["seed"]) == (0, {}, 0)
    lines = search(place, first["cpu_s"] + 1e-6)
    assert [line["trial"] for line in lines] == [0, 1]
    assert search(place, first["cpu_s"]) == lines, "the budget was spent before"
    assert list(lines[1]["settings"]) == ["retriever.window", "retriever.popularity.window_days"]
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(("# the method's own settings", "retriever.popularity.window_days = "))
    assert "2 trials" in out
    other = search(place, 0, "--seed", "1")
    assert [line["trial"] for line in other] == [0, 1, 0], "another seed is another search"


def test_the_test_part_is_not_looked_at(place: Path) -> None:
    """Other test targets, the same figures: the last event of everybody is replaced."""
    (before,) = search(place, 0)
    events = shop.events()
    last = pl.col("user_id") != pl.col("user_id").shift(-1).fill_null("")
    events.with_columns(item_id=pl.when(last).then(pl.lit("i00")).otherwise("item_id")).write_parquet(
        place / "events.parquet"
    )
    after = search(place, 0)[-1]
    assert after["search"] != before["search"]
    assert (after["ndcg10"], after["recall10"]) == (before["ndcg10"], before["recall10"])


def test_values_are_drawn_from_lists_and_ranges() -> None:
    generator = random.Random(0)
    space = {"a": [1, 2], "b": {"low": 1e-4, "high": 1.0, "log": True}, "c": {"low": 3, "high": 5, "int": True}}
    draws = [tune.drawn(space, generator) for _ in range(300)]
    assert {draw["a"] for draw in draws} == {1, 2}
    assert {draw["c"] for draw in draws} == {3, 4, 5}
    assert all(1e-4 <= draw["b"] <= 1 for draw in draws)
    assert 120 < sum(draw["b"] < 1e-2 for draw in draws) < 180, "half of the logarithms"
    assert tune.nested({"a.b": 1, "a.c.d": 2, "e": 3}) == {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    with pytest.raises(RecipeError, match=r'search\."x" = \{.low.: 1\}: expected a list, or'):
        tune.drawn({"x": {"low": 1}}, generator)


def test_a_method_without_a_search_and_a_data_set_that_is_not_there(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["cooccurrence", "--cpu-seconds", "0", "--suite", str(place / "suite.toml"), "--dataset"]
    assert tune.main([*given, "shp"]) == 1
    assert "'shp' is not a data set of this suite; did you mean shop?" in capsys.readouterr().err
    (place / "methods" / "cooccurrence.toml").write_text(METHOD.split("[search]", maxsplit=1)[0])
    assert tune.main([*given, "shop"]) == 1
    assert "cooccurrence has no [search] table: say which settings may vary" in capsys.readouterr().err


def test_the_best_settings_are_lines_of_the_method_file(place: Path) -> None:
    run = read_suite(place / "suite.toml").run("shop", "last_out", "cooccurrence")
    assert tune.as_toml(run, {"ndcg10": 0.25, "settings": {"retriever.window": 3}}).splitlines() == [
        '[tuned."shop.last_out"]  # validation NDCG@10 0.2500',
        "retriever.window = 3",
    ]
