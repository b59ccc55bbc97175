"""The scripts of the claims on a shop of eight topics: a cell of each, figures of two, what they measure by hand."""

import itertools
import json

import polars as pl
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from benchmarks import _record
from benchmarks.claims import cold_auc, crab, expansion, rq_fsq
from benchmarks.claims._cells import Cell, cells_of
from tesserec.types import PAD, SemanticIds

DAY_S = 86_400
TOPICS = ("lamp", "spade", "pencil", "cradle", "kettle", "rug", "drum", "scarf")
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
    """96 users, each of one topic, buy eight of its twelve items, of which one is rare and two come late.

    Nobody buys the other 360 items; there have to be more items than codes of a level. Makers are of no consequence.
    """
    folder = tmp_path_factory.mktemp("shop")
    words = [*WORDS, *(f"{first} {second}" for first, second in itertools.combinations(WORDS[:10], 2))]
    names = itertools.product(TOPICS, words)
    items = [{"item_id": f"{t}-{w}", "title": f"{t} {t} {w} maker{i % 29}"} for i, (t, w) in enumerate(names)]
    generator = torch.Generator().manual_seed(0)
    events = []
    for user in range(96):
        early = torch.randperm(9, generator=generator)[:7].tolist()
        late = 9 + int(torch.randint(3, (), generator=generator))
        if user < len(TOPICS):
            early[0], late = 9, 10
        for day, word in enumerate((*early, late)):
            item = f"{TOPICS[user % len(TOPICS)]}-{WORDS[word]}"
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
        (cold_auc, "pieces_3840.seed0", 0.55),
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
    (file,) = (tmp_path / "work").iterdir()
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"commit": line["commit"]}


@pytest.mark.parametrize(
    ("script", "first", "second", "figures"),
    [
        (rq_fsq, "ids", "dense", {"rq_fsq.ids_over_dense": "auc"}),
        (cold_auc, "memory_3840", "hashed_3840", {"prefixmem.cold_auc": "cold_auc", "prefixmem.auc": "auc"}),
        (cold_auc, "pieces_3840", "hashed_3840", {"sentencepiece.cold_auc": "cold_auc", "sentencepiece.auc": "auc"}),
        (expansion, "codes_50", "hashed_50", {"expansion.recall50_over_hashed": "recall50"}),
        (crab, "split_10", "plain", {"crab.exposure_gap": "exposure", "crab.ndcg10": "ndcg10"}),
    ],
)
def test_a_figure_is_the_first_side_less_the_second(script, first, second, figures, shop, tmp_path):
    for only in (second, first):
        assert script.main(arguments(shop, tmp_path, "--only", f"{only}.*")) == 0
    found = {line["figure"]: line for line in lines(tmp_path)}
    sides = [load_file(next((tmp_path / "work").glob(f"*.{name}.seed0.*"))) for name in (first, second)]
    for figure, metric in figures.items():
        line = found[f"claims.{figure}"]
        assert line["value"] == pytest.approx(float((sides[0][metric] - sides[1][metric]).nanmean()))
        assert line["value"] != 0
        assert line["low"] <= line["value"] <= line["high"]
        assert "arXiv" in line["protocol"]
    assert not any(name.startswith("claims.rq_fsq.auc_over") for name in found), "sides that were not run"


def drawn(variants, metrics, num_requests, num_items=96):
    """Two cells of each variant, of other values each; the first variant's lists hold one item only."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for place, name in enumerate(variants):
        found[name] = {}
        for seed in (0, 1):
            values = {m: torch.rand(num_requests, generator=generator, dtype=torch.float64) for m in metrics}
            values["lists"] = torch.randint(num_items, (num_requests, 10), generator=generator).double() * (place > 0)
            found[name][seed] = Cell(values, _record.commit(), is_new=True)
    return found


def mean(side, metric):
    return float(torch.stack([side[seed].values[metric] for seed in (0, 1)]).mean())


def sides_of(strengths, main, figures):
    """Name of each figure at each strength → its sides and metric."""
    return {
        name + ("" if end == main else f"_{end}"): (first, second, metric)
        for end, (first, second) in strengths.items()
        for name, metric in figures.items()
    }


RQ_FSQ = {
    **{"auc_over_dense_15x": ("rq_fsq_15x", "dense"), "auc_over_dense": ("rq_fsq_30x", "dense")},
    **{"auc_over_dense_60x": ("rq_fsq_60x", "dense"), "auc_over_ids": ("rq_fsq_30x", "ids")},
    **{f"auc_over_{name}": ("rq_fsq_30x", name) for name in ("kmeans_341x", "kmeans_30x")},
    **{f"{name}_over_dense": (name, "dense") for name in ("codes_fsq_30x", "wide_fsq_30x", "grid_33x", "ids")},
}
AUC = {name: name for name in ("cold_auc", "rare_auc", "auc")}
CRAB = {"exposure_gap": "exposure", **{name: name for name in ("code_exposure", "ndcg10", "recall10")}}
COLD = {
    **sides_of(
        {n: (f"memory_{n}", f"hashed_{n}") for n in (1536, 3840, 13056)},
        3840,
        {f"prefixmem.{name}": name for name in AUC},
    ),
    **sides_of(
        {n: (f"pieces_{n}", f"hashed_{n}") for n in (1536, 3840, 13056)},
        3840,
        {f"sentencepiece.{name}": name for name in AUC},
    ),
}
EXPANDED = {n: (f"codes_{n}", f"hashed_{n}") for n in (5, 50, 500)}
SPLIT = {f"split_{n}": (f"split_{n}", "plain") for n in (5, 10, 20)}


@pytest.mark.parametrize(
    ("script", "wanted", "more"),
    [
        (rq_fsq, {f"rq_fsq.{name}": (*pair, "auc") for name, pair in RQ_FSQ.items()}, 1),
        (cold_auc, COLD, 0),
        (expansion, sides_of(EXPANDED, 50, {"expansion.recall50_over_hashed": "recall50"}), 3),
        (crab, sides_of(SPLIT, "split_10", {f"crab.{name}": metric for name, metric in CRAB.items()}), 4),
    ],
)
def test_every_figure_has_its_sides(script, wanted, more, shop, tmp_path):
    cells = cells_of(script.__name__.rpartition(".")[2], None, arguments(shop, tmp_path, "--seeds", "2"))
    variants = dict.fromkeys(name for first, second, _ in wanted.values() for name in (second, first))
    given = [crab.shop_of(cells)] if script is crab else []
    num_requests = len(given[0].holdout) if given else 50
    found = drawn(variants, {metric for *_, metric in wanted.values()}, num_requests)
    script.save(cells, *given, found)
    told = {line["figure"]: line for line in lines(tmp_path)}
    assert len(told) == len(wanted) + more
    for name, (first, second, metric) in wanted.items():
        line = told[f"claims.{name}"]
        assert line["value"] == pytest.approx(mean(found[first], metric) - mean(found[second], metric)), name
        assert "; cells of " not in line["protocol"]


def test_times_hashed_and_compression_are_ratios(shop, tmp_path):
    cells = cells_of("expansion", None, arguments(shop, tmp_path, "--seeds", "2"))
    found = drawn([name for pair in EXPANDED.values() for name in pair], {"recall50"}, 50)
    expansion.save(cells, found)
    found |= drawn(rq_fsq.VARIANTS, {"auc"}, 50)
    rq_fsq.save(cells, found)
    told = {line["figure"]: line for line in lines(tmp_path)}
    for end, (codes, hashed) in EXPANDED.items():
        line = told["claims.expansion.times_hashed" + ("" if end == 50 else f"_{end}")]
        assert line["value"] == pytest.approx(
            (mean(found[codes], "recall50") + 0.01) / (mean(found[hashed], "recall50") + 0.01)
        )
    assert told["claims.rq_fsq.compression"]["value"] == pytest.approx(256 * 32 / (62 * 4 + 3 * 8))


def test_the_gap_before_and_the_change_of_gini_by_hand(shop, tmp_path):
    cells = cells_of("crab", None, arguments(shop, tmp_path, "--seeds", "2"))
    given = crab.shop_of(cells)
    found = drawn(("plain", *SPLIT), set(CRAB.values()), len(given.holdout))
    crab.save(cells, given, found)
    told = {line["figure"]: line for line in lines(tmp_path)}
    counts_N = given.parts.train.item_counts()
    shares = []
    for seed in (0, 1):
        code_N = crab.plain_table(given, seed)[0].codes_NL[:, 1].long()
        events_C = torch.bincount(code_N, counts_N.double())
        over_C = events_C > 2 * events_C.sum() / (events_C > 0).sum()
        shares.append(float(events_C[over_C].sum() / events_C.sum()))
    line = told["claims.crab.exposure_gap_before"]
    assert 0.05 < min(shares) <= max(shares) < 0.95
    assert line["value"] == pytest.approx(mean(found["plain"], "exposure") - sum(shares) / 2)
    assert told["claims.crab.gini10"]["value"] < -0.1, "one item is shown before, many after"
    assert told["claims.crab.code_exposure"]["protocol"].startswith("change of the share of the first ten places of")


def test_a_figure_is_recorded_again_only_with_a_cell_that_was_run_now(shop, tmp_path):
    cells = cells_of("cold_auc", None, arguments(shop, tmp_path, "--seeds", "2"))
    found = drawn(("pieces_3840", "hashed_3840"), set(AUC), 50)
    empty = {f"{kind}_{n}": {} for kind in ("hashed", "memory", "pieces") for n in cold_auc.ROWS}

    def save(*commits):
        given = {
            name: {seed: Cell(cell.values, commit, is_new) for seed, cell in found[name].items()}
            for name, (commit, is_new) in zip(found, commits, strict=True)
        }
        cold_auc.save(cells, empty | given)
        return lines(tmp_path)

    old, now = "0123456789ab", _record.commit()
    assert len(save((now, False), (now, False))) == 3, "a script that was stopped before its figures"
    assert len(save((now, False), (now, False))) == 3
    told = save((old, False), (now, True))
    assert len(told) == 6
    assert all(line["protocol"].endswith(f"; cells of {', '.join(sorted((old, now)))}") for line in told[3:])


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
