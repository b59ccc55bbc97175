"""The scripts of the claims on a shop of four topics: a cell of each, figures of two, what they measure by hand."""

import json

import polars as pl
import pytest
import torch

from benchmarks.claims import cold_auc, crab, expansion, rq_fsq
from benchmarks.claims._cells import cells_of
from tesserec.types import PAD, SemanticIds

DAY_S = 86_400
TOPICS = ("lamp", "spade", "pencil", "cradle")
WORDS = ("red", "blue", "oak", "steel", "tiny", "large", "round", "flat", "soft", "loud", "new", "old")
SUITE = """
[datasets.shop]
events = "events.parquet"
items = "items.parquet"
t1 = {t1}
t2 = {t2}
[[grid]]
datasets = ["shop"]
protocols = ["last_out"]
methods = ["popularity"]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """96 users, each of one topic, buy eight of its twelve items, the last two of which come late."""
    folder = tmp_path_factory.mktemp("shop")
    items = [{"item_id": f"{t}-{w}", "title": f"{t} {t} {w}"} for t in TOPICS for w in WORDS]
    generator = torch.Generator().manual_seed(0)
    events = []
    for user in range(96):
        early = torch.randperm(10, generator=generator)[:7].tolist()
        late = 10 + int(torch.randint(2, (), generator=generator))
        for day, word in enumerate((*early, late)):
            item = f"{TOPICS[user % 4]}-{WORDS[word]}"
            events.append({"user_id": f"u{user}", "item_id": item, "timestamp": (10 + day) * DAY_S})
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame(events).write_parquet(folder / "events.parquet")
    (folder / "methods").mkdir()
    (folder / "methods" / "popularity.toml").write_text(
        '[retriever]\nclass = "tesserec.retrievers.popularity:Popularity"\n'
    )
    (folder / "suite.toml").write_text(SUITE.format(t1=16 * DAY_S, t2=17 * DAY_S))
    return folder


def arguments(shop, tmp_path, *more):
    places = ["--data", str(shop), "--suite", str(shop / "suite.toml"), "--dataset", "shop"]
    return [*places, "--work", str(tmp_path / "work"), "--results", str(tmp_path), "--seeds", "1", *more]


def lines(tmp_path):
    return [json.loads(line) for line in (tmp_path / "claims.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("script", "cell", "least"),
    [
        (rq_fsq, "dense.seed0", 0.7),
        (cold_auc, "pieces_3840.seed0", 0.6),
        (expansion, "codes_50.seed0", 0.0),
        (crab, "split_10.seed0", 0.0),
    ],
)
def test_one_cell_is_run_once_and_recorded(script, cell, least, shop, tmp_path):
    name = script.__name__.rpartition(".")[2]
    for _ in range(2):
        assert script.main(arguments(shop, tmp_path, "--only", cell)) == 0
    (line,) = [line for line in lines(tmp_path) if ".cells." in line["figure"]]
    assert line["figure"] == f"claims.{name}.cells.{cell}"
    assert least <= line["low"] <= line["value"] <= line["high"] <= 1
    assert (line["dataset"], line["seeds"]) == ("shop", [0])
    assert line["command"] == f"python -m benchmarks.claims.{name} --data DATA --dataset shop --only '{cell}'"
    assert len(list((tmp_path / "work").iterdir())) == 1


def test_figures_compare_cells_request_by_request(shop, tmp_path):
    for only in ("ids.*", "dense.*"):
        assert rq_fsq.main(arguments(shop, tmp_path, "--only", only)) == 0
    found = {line["figure"]: line for line in lines(tmp_path)}
    line = found["claims.rq_fsq.ids_over_dense"]
    cells = [found[f"claims.rq_fsq.cells.{name}.seed0"]["value"] for name in ("ids", "dense")]
    assert line["value"] == pytest.approx(cells[0] - cells[1])
    assert line["low"] <= line["value"] <= line["high"]
    assert "claims.rq_fsq.auc_over_dense" not in found
    assert "claims.rq_fsq.compression" not in found


@pytest.mark.parametrize(
    ("script", "cells", "figures"),
    [
        (crab, ("plain.*", "split_10.*"), ("exposure_gap", "code_exposure", "ndcg10", "gini10", "exposure_gap_before")),
        (expansion, ("codes_50.*", "hashed_50.*"), ("recall50_over_hashed", "times_hashed")),
    ],
)
def test_each_effect_has_its_figure(script, cells, figures, shop, tmp_path):
    for only in cells:
        assert script.main(arguments(shop, tmp_path, "--only", only)) == 0
    claim = script.__name__.rpartition(".")[2]
    found = {line["figure"]: line for line in lines(tmp_path)}
    for figure in figures:
        line = found[f"claims.{claim}.{figure}"]
        assert line["low"] <= line["value"] <= line["high"]
        assert "arXiv" in line["protocol"]


def test_an_unknown_data_set_is_refused(shop, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cells_of("crab", None, [*arguments(shop, tmp_path), "--dataset", "shoop"])
    assert "no data set 'shoop'" in capsys.readouterr().err


def test_withheld_items_come_last_and_nothing_else_changes(shop, tmp_path):
    cells = cells_of("expansion", None, arguments(shop, tmp_path))
    moved = expansion.withheld_last(cells)
    num_warm = len(moved.train.items)
    assert sorted(moved.catalog.items.ids.to_pylist()) == sorted(cells.catalog.items.ids.to_pylist())
    assert moved.catalog.frame["item_id"].to_list() == moved.catalog.items.ids.to_pylist()
    assert int(moved.train.item_counts().min()) > 0
    assert int(moved.holdout.requests.history.items.max()) < num_warm <= int(moved.holdout.relevant.values.min())
    bought = {
        (u, cells.interactions.items.ids[i].as_py())
        for u, i in zip(cells.interactions.user_E.tolist(), cells.interactions.item_E.tolist(), strict=True)
    }
    for user, item in zip(moved.train.user_E.tolist(), moved.train.item_E.tolist(), strict=True):
        assert (user, moved.train.items.ids[item].as_py()) in bought


def test_over_popular_items_and_their_share_of_lists_by_hand():
    table = SemanticIds(torch.tensor([[0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 2, 1]]), (1, 3, 2), "books")
    items_N = crab.over_popular(table, torch.tensor([1, 1, 3, 2]))  # shares 1/7, 1/7, 5/7 of three codes in use
    assert items_N.tolist() == [False, False, True, True]
    lists_BK = torch.tensor([[0, 2, 3], [1, PAD, PAD], [PAD, PAD, PAD]])
    share_B = crab.share_of_lists(lists_BK, items_N)
    assert share_B[:2].tolist() == [pytest.approx(2 / 3), 0.0]
    assert share_B[2].isnan()
