"""Other people's lists on a split that was exported."""

import logging
from pathlib import Path

import polars as pl
import pytest
import torch

from tesserec.data import SplitConfig, export_split, load_split, read_events, split
from tesserec.errors import DataError, UnknownIdError
from tesserec.evaluation import judge
from tesserec.evaluation.judge import read_lists
from tesserec.types import PAD, Candidates, Catalog, Filters, History, Holdout, Ragged, Requests, Vocabulary

USERS = Vocabulary.of(["ann", "bob", "cyd", "dee"])
ITEMS = Vocabulary.of([10, 20, 30, 40, 50])
ROWS = {
    "user_id": ["cyd", "ann", "ann", "ann", "cyd"],
    "item_id": [50, 10, 20, 30, 40],
    "score": [0.5, 0.1, 0.9, 0.5, 0.7],
}


def holdout(*, exclude_history: bool = False, users: tuple[int, ...] = (2, 0, 1)) -> Holdout:
    """Requests of cyd, ann and bob: ann had 10 and 20, bob had 30."""
    history = Ragged.of([[], [0, 1], [2]])
    requests = Requests(
        History(history.offsets, history.values), user_B=torch.tensor(users), filters=Filters(exclude_history)
    )
    return Holdout(requests, Ragged.of([[4], [2], [0]]))


def read(rows: dict[str, list[object]], **settings: object) -> tuple[Candidates, dict[str, int]]:
    frame = pl.DataFrame(rows)
    return read_lists(frame, settings.pop("holdout", holdout()), users=USERS, items=ITEMS, **settings)  # type: ignore[arg-type]


def test_lists_by_user_and_score() -> None:
    found, notes = read(ROWS)
    assert found.items_BK.tolist() == [[3, 4, PAD], [1, 2, 0], [PAD, PAD, PAD]]
    assert found.scores_BK[1].tolist() == [-1, -2, -3]
    assert notes == {"requests_without_list": 1, "rows_without_request": 0, "rows_excluded": 0}


def test_lists_by_request_and_rank_with_other_names_of_columns() -> None:
    found, _ = read({"request_id": [1, 1, 0, 1], "item": [10, 20, 30, 40], "rank": [3, 1, 1, 2]})
    assert found.items_BK.tolist() == [[2, PAD, PAD], [1, 3, 0], [PAD, PAD, PAD]]
    found, _ = read({"who": ["ann"], "item": [10], "prediction": [1]}, columns={"user_id": "who"})
    assert found.items_BK.tolist() == [[PAD], [0], [PAD]]


def test_ties_survive_and_near_ties_do_not_become_ties() -> None:
    close = {"user_id": ["ann"] * 4, "item_id": [10, 20, 30, 40], "score": [1.0, 1.0 + 1e-12, 1.0, 0.5]}
    found, _ = read(close)
    assert found.items_BK[1].tolist() == [1, 0, 2, 3]
    assert found.scores_BK[1].tolist() == [-1, -2, -2, -3]
    tied, _ = read({"user_id": ["ann"] * 3, "item_id": [10, 20, 30], "rank": [2, 1, 2]})
    assert tied.scores_BK[1].tolist() == [-1, -2, -2]


def test_scores_count_where_ranks_agree() -> None:
    both = {"user_id": ["ann", "ann", "ann", "cyd"], "item_id": [10, 20, 30, 10], "score": [5, 5, 9, 9]}
    found, _ = read({**both, "rank": [3, 2, 1, 7]})
    assert found.items_BK[1].tolist() == [2, 0, 1]
    assert found.scores_BK[1].tolist() == [-1, -2, -2]
    with pytest.raises(DataError, match="row 2 has a better score than one of a better rank: correct them, or drop"):
        read({**both, "rank": [1, 2, 3, 1]})
    tied_ranks = {**both, "rank": [2, 2, 2, 1]}
    assert read(tied_ranks)[0].items_BK[1].tolist() == [2, 0, 1]


def test_only_the_best_of_a_list_are_kept() -> None:
    found, _ = read(ROWS, num_candidates=2)
    assert found.items_BK.tolist() == [[3, 4], [1, 2], [PAD, PAD]]


def test_seen_items_are_removed_where_the_split_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, notes = read(ROWS, holdout=holdout(exclude_history=True))
    assert found.items_BK.tolist() == [[3, 4], [2, PAD], [PAD, PAD]]
    assert notes == {"requests_without_list": 1, "rows_without_request": 0, "rows_excluded": 2}
    assert [record.getMessage() for record in caplog.records] == [
        "the polars DataFrame: 1 requests without list",
        "the polars DataFrame: 2 rows excluded",
    ]


def test_nothing_is_left() -> None:
    rows = {"user_id": ["ann", "dee"], "item_id": [10, 10], "rank": [1, 1]}
    found, notes = read(rows, holdout=holdout(exclude_history=True))
    assert found.items_BK.tolist() == [[PAD], [PAD], [PAD]]
    assert notes == {"requests_without_list": 2, "rows_without_request": 1, "rows_excluded": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"user_id": ["ann"], "score": [1]}, "has no column item_id: it has user_id, score"),
        ({"item_id": [10], "score": [1]}, "has no column user_id or request: it has item_id, score"),
        ({"user_id": ["ann"], "item_id": [10]}, "has no column score or rank: it has user_id, item_id"),
        (
            {**ROWS, "score": [0.5, 0.1, float("nan"), 0.5, None]},
            "column score is nan in row 2: every row needs a finite number",
        ),
        ({**ROWS, "score": [0.5, 0.1, 1.0, 0.5, None]}, "column score is None in row 4: every row needs a finite"),
        ({**ROWS, "score": [float("-inf"), 0.1, 1.0, 0.5, 2]}, "column score is -inf in row 0"),
        ({**ROWS, "score": ["a", "b", "c", "d", "e"]}, r"column score has values that are no numbers \(.*string"),
        ({**ROWS, "score": [[1]] * 5}, r"column score has values that are no numbers \(.*list.*\): correct or cast it"),
        ({**ROWS, "user_id": ["ann", None, "ann", "ann", "ann"]}, "column user_id is null in row 1"),
        (
            {"user_id": ["ann", "ann", "cyd", "cyd"], "item_id": [10, 10, 50, 50], "rank": [1, 2, 1, 2]},
            r"item 50 is twice in one list \(rows 2 and 3\)",
        ),
        (
            {**ROWS, "item_id": [20, 10, 20, 30, 20]},
            r"item 20 is twice in one list \(rows 0 and 4\)",
        ),
        (
            {**ROWS, "item_id": [50, 20, 10, 20, 40]},
            r"item 20 is twice in one list \(rows 1 and 3\): drop the duplicate",
        ),
    ],
)
def test_unusable_rows_are_refused(rows: dict[str, list[object]], message: str) -> None:
    with pytest.raises(DataError, match=f"the polars DataFrame.*{message}"):
        read(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {**ROWS, "item_id": [50, 10, 60, 70, 60]},
            r"2 items are not in the split, such as 60 \(the first is in row 2\): use the ids of items.parquet",
        ),
        (
            {**ROWS, "user_id": ["ann", "ann", "ann", "eve", "ann"]},
            r"1 users are not in the split, such as 'eve' \(the first is in row 3\): use the ids of users.parquet",
        ),
        ({"request": [0, 3], "item_id": [10, 10], "rank": [1, 1]}, "request 3 in row 1 does not exist: .* 0 to 2"),
        ({"request": [0.0, 0.5], "item_id": [10, 10], "rank": [1, 1]}, "request 0.5 in row 1 does not exist"),
    ],
)
def test_unknown_ids_are_refused(rows: dict[str, list[object]], message: str) -> None:
    with pytest.raises(UnknownIdError, match=f"the polars DataFrame: {message}"):
        read(rows)


def test_requests_and_users_must_agree() -> None:
    rows = {"request": [0, 1], "user_id": ["cyd", "ann"], "item_id": [10, 10], "rank": [1, 1]}
    assert read(rows)[0].items_BK.tolist() == [[0], [0], [PAD]]
    with pytest.raises(DataError, match="row 1 gives a request of another user: correct or drop one column"):
        read({**rows, "user_id": ["cyd", "cyd"]})


def test_users_with_several_requests_are_told_apart_by_request() -> None:
    twice = holdout(users=(0, 0, 1))
    with pytest.raises(DataError, match="names users, but some have several requests: give the column request instead"):
        read(ROWS, holdout=twice)
    found, _ = read({"request": [1], "item_id": [10], "rank": [1]}, holdout=twice)
    assert found.items_BK.tolist() == [[PAD], [0], [PAD]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users 1 to 6 buy items 0 to 4 in turn, each starting at another; the last two are withheld."""
    rows = [(user, (user + step) % 5, 100 * user + step) for user in range(1, 7) for step in range(4)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    where = tmp_path_factory.mktemp("split")
    export_split(split(read_events(frame), SplitConfig(protocol="last_out")), where)
    return where


def answers(folder: Path, part: str) -> pl.DataFrame:
    """For each request of a part a wrong item first and then the target, but nothing for user 6."""
    table = pl.read_parquet(folder / f"{part}.parquet").filter(pl.col("user_id") != 6)
    user, target = table["user_id"].to_list(), [t[0] for t in table["targets"].to_list()]
    wrong = [
        next(i for i in range(5) if i != t and i not in h)
        for t, h in zip(target, table["history"].to_list(), strict=True)
    ]
    return pl.DataFrame({"user_id": user * 2, "item_id": wrong + target, "score": [0.9] * 5 + [0.2] * 5})


def test_a_file_is_judged_on_an_exported_split(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "recs.csv"
    answers(folder, "test").write_csv(path)
    found = judge(path, str(folder), ks=(1, 2))
    assert found.label == "recs"
    assert found.protocol["split"] == "last_out.test"
    assert (found.protocol["seen_items"], found.protocol["refit"]) == ("removed", False)
    assert found.metrics["recall1"].mean == 0
    assert found.metrics["recall2"].mean == pytest.approx(5 / 6)
    assert found.metrics["mrr2"].mean == pytest.approx(5 / 6 / 2)
    assert found.notes == {"requests_without_list": 1, "rows_without_request": 0, "rows_excluded": 0}


def test_validation_and_refit_are_named(folder: Path) -> None:
    found = judge(answers(folder, "validation"), folder, part="validation", ks=(2,), label="mine")
    assert (found.label, found.protocol["split"]) == ("mine", "last_out.validation")
    assert found.metrics["recall2"].mean == pytest.approx(5 / 6)
    refit = judge(answers(folder, "test"), folder, refit=True, ks=(2,))
    assert (refit.label, refit.protocol["refit"]) == ("recommendations", True)
    parts = load_split(folder)
    assert len(parts.refit) > len(parts.train)
    plain = judge(answers(folder, "test"), folder, ks=(2,))
    assert plain.aggregates["novelty2"].mean != refit.aggregates["novelty2"].mean


def test_a_catalog_adds_slices_by_domain(folder: Path) -> None:
    items = load_split(folder).train.items
    domains = ["a", "b"] * len(items)
    catalog = Catalog(items, pl.DataFrame({"domain": domains[: len(items)]}))
    found = judge(answers(folder, "test"), folder, catalog=catalog, ks=(2,))
    assert {name for name in found.slices if name.startswith("domain:")} == {"domain:a", "domain:b"}


def test_settings_reach_the_lists(folder: Path) -> None:
    renamed = answers(folder, "test").rename({"user_id": "who"})
    found = judge(renamed, folder, ks=(2,), num_candidates=1, columns={"user_id": "who"}, seed=3)
    assert found.metrics["recall2"].mean == 0
    assert found.items_BK is not None
    assert found.items_BK.shape == (6, 1)
    other = judge(renamed, folder, ks=(2,), num_candidates=1, columns={"user_id": "who"})
    assert other.aggregates != found.aggregates
    zero = judge(renamed, folder, ks=(2,), num_candidates=1, columns={"user_id": "who"}, seed=0)
    assert other.to_json() == zero.to_json()
