"""The runner of suites: what is run, what it leaves behind, and what is not done twice."""

import gc
import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
import torch

import shop
from tesserec.bench import carry_out, done_runs, read_dataset, run_one
from tesserec.bench_codes import _overlaps, measured_content
from tesserec.bench_results import Places, lines_of
from tesserec.bench_suite import Run, Suite, merged, read_suite
from tesserec.data.interactions import read_events, shuffle_ties
from tesserec.errors import DataError, RecipeError
from tesserec.evaluation.metrics import ndcg, order_ranks, recall
from tesserec.semantic_ids import build_semantic_ids

SUITE = """
[datasets.shop]
events = "events.parquet"
items = "items.parquet"
positive_kinds = ["purchase"]

[[grid]]
datasets = ["shop"]
protocols = ["last_out", "global_time"]
methods = ["popularity", "cooccurrence", "mosaic"]
seeds = [0, 1]
refit = [false, true]
"""

METHODS = {
    "popularity": f'retriever.class = "{shop.POPULARITY}"\n[tuned."shop.last_out"]\nretriever.window_days = 20.0\n',
    "cooccurrence": f'retriever.class = "{shop.COOCCURRENCE}"\n[refit.retriever]\nwindow = 3\n',
    "mosaic": """
[embedder]
class = "tesserec.embedders.tfidf_svd:TfidfSVD"
num_features = 8
[semantic_ids]
class = "tesserec.semantic_ids.rq_kmeans:ResidualKMeans"
num_levels = 2
codebook_size = 4
[retriever]
class = "tesserec.retrievers.mosaic:Mosaic"
model = { width = 8, num_layers = 1, num_heads = 1 }
training = { epochs = 2 }
[views.mosaic_generative]
answer = "generative"
[views.mosaic_dense]
answer = "dense"
""",
    "broken": """
[embedder]
class = "tesserec.embedders.vectors_file:VectorsFile"
path = "nowhere.parquet"
[retriever]
class = "tesserec.retrievers.popularity:Popularity"
""",
}


def suite_in(folder: Path, text: str = SUITE, **methods: str) -> Suite:
    """A suite on the shop's files, with its methods and others."""
    shop.events().write_parquet(folder / "events.parquet")
    shop.items().write_parquet(folder / "items.parquet")
    (folder / "methods").mkdir(exist_ok=True)
    for name, method in {**METHODS, **methods}.items():
        (folder / "methods" / f"{name}.toml").write_text(method)
    (folder / "suite.toml").write_text(text)
    return read_suite(folder / "suite.toml")


def places(folder: Path) -> Places:
    return Places(folder / "suite.toml", folder / "out", folder / "work")


def chosen(suite: Suite, *names: str) -> list[Run]:
    return suite.runs(names)


def rank_column(folder: Path, name: str) -> torch.Tensor:
    ranks = pl.read_parquet(folder / f"{name}.parquet")
    assert ranks.schema == {"rank": pl.Float32}
    return torch.from_numpy(ranks["rank"].fill_null(float("inf")).to_numpy().copy()).double()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite whose mosaic was run on both protocols, with a refit on one."""
    folder = tmp_path_factory.mktemp("suite")
    suite = suite_in(folder)
    for run in chosen(suite, "shop.last_out.mosaic.*seed0", "shop.global_time.mosaic.seed0"):
        run_one(run, places(folder))
    return folder


def test_a_grid_is_a_product_and_seeds_are_for_what_draws(tmp_path: Path) -> None:
    names = [run.name for run in suite_in(tmp_path).runs()]
    assert len(names) == len(set(names)) == 2 * (2 + 2 + 4)
    assert names[:3] == [
        "shop.last_out.popularity.seed0",
        "shop.last_out.popularity.refit.seed0",
        "shop.last_out.cooccurrence.seed0",
    ]
    assert [name for name in names if "global_time.mosaic" in name] == [
        "shop.global_time.mosaic.seed0",
        "shop.global_time.mosaic.refit.seed0",
        "shop.global_time.mosaic.seed1",
        "shop.global_time.mosaic.refit.seed1",
    ]
    assert not any("broken" in name for name in names), "no grid names it"


@pytest.mark.parametrize(
    ("keys", "windows"),
    [
        (["shop"], (30, 30)),
        (["*.last_out"], (30, 14)),
        (["sh*.*_out", "toys"], (30, 14)),
        (["shop", "shop.last_out"], (31, 30)),
        (["*", "*.global_time", "shop.global_time"], (30, 32)),
        (["shop.last_out", "shop"], (31, 31)),
        (["sho", "Shop.last_out"], (14, 14)),
    ],
)
def test_what_is_tuned_may_be_for_several(tmp_path: Path, keys: list[str], windows: tuple[int, int]) -> None:
    tables = [f'[tuned."{key}".retriever]\nwindow_days = {30.0 + i}\n' for i, key in enumerate(keys)]
    suite = suite_in(tmp_path, popularity="\n".join([f'retriever.class = "{shop.POPULARITY}"', *tables]))
    runs = [suite.run("shop", protocol, "popularity") for protocol in PROTOCOLS]
    assert tuple(run.recipe["retriever"].get("window_days", 14) for run in runs) == windows


def test_settings_are_merged_in_order(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    window = {name: suite.run("shop", name, "popularity").recipe["retriever"]["window_days"] for name in PROTOCOLS}
    assert window == {"last_out": 20, "global_time": 14}
    plain, again = (suite.run("shop", "last_out", "cooccurrence", refit=refit) for refit in (False, True))
    assert (plain.recipe["retriever"]["window"], again.recipe["retriever"]["window"]) == (8, 3)
    assert again.plain == plain
    assert again.tables["warm_start"] == plain.digest != again.digest
    assert again.parsed().evaluation.refit
    assert suite.run("shop", "last_out", "mosaic").parsed("mosaic_dense").retriever.answer == "dense"  # type: ignore[attr-defined]  # Mosaic's
    below = {"class": "a", "x": 1, "part": {"y": 1, "z": 2}}
    assert merged(below, {"part": {"y": 3}}) == {"class": "a", "x": 1, "part": {"y": 3, "z": 2}}
    assert merged(below, {"class": "b"}) == {"class": "b"}
    assert merged({"embedder": below}, {"embedder": {"class": "a", "x": 2}})["embedder"]["part"] == {"y": 1, "z": 2}


PROTOCOLS = ("last_out", "global_time")


def test_the_clock_of_codes_does_not_count_what_was_there_before(tmp_path: Path) -> None:
    recipe = suite_in(tmp_path).run("shop", "last_out", "mosaic").parsed()
    interactions, catalog = shop.data()
    gc.disable()
    try:
        for _ in range(500_000):  # what only the collector frees: a tenth of a second or more
            cycle: list[object] = []
            cycle.append(cycle)
        made = measured_content(recipe, catalog, interactions, lambda task, done, total, note="": None)
    finally:
        gc.enable()
    assert made.costs is not None
    assert 0 < made.costs["cpu_s"] < made.costs["seconds"] + 0.02


def test_a_line_says_what_was_done(place: Path) -> None:
    line = lines_of(place / "out")["shop.last_out.mosaic.refit.seed0"]
    assert list(line) == [
        *("run", "dataset", "protocol", "method", "views", "refit", "seed", "recipe", "recipe_digest", "data_hash"),
        *("split", "train_cpu_s", "train_s", "peak_rss_bytes", "training_log", "tokenizer"),
        *(
            "codes",
            "parameters",
            "retrieve_s_per_1000",
            "metrics",
            "slices",
            "commit",
            "machine",
            "versions",
            "date",
            "command",
        ),
    ]
    assert (line["method"], line["views"]) == ("mosaic", ["mosaic_generative", "mosaic_dense"])
    assert (line["refit"], line["seed"], line["split"]["test"]["requests"]) == (True, 0, 48)
    assert line["recipe"]["data"]["events"] == "events.parquet"
    assert line["recipe"]["retriever"]["training"]["epochs"] == 2
    assert line["recipe"]["warm_start"] == lines_of(place / "out")["shop.last_out.mosaic.seed0"]["recipe_digest"]
    assert len(line["training_log"]) == 2
    assert "validation" not in line["training_log"][0], "a refit has none"
    assert line["train_cpu_s"] > 0
    assert line["peak_rss_bytes"] > 1e7
    assert line["commit"] is None
    assert line["command"] == "tesserec bench suite.toml --data DATA --only shop.last_out.mosaic.refit.seed0"
    for part in ("retrieve_s_per_1000", "metrics", "slices"):
        assert list(line[part]) == ["mosaic", "mosaic_generative", "mosaic_dense"]


def test_a_line_says_what_its_codes_took_and_are_like(place: Path, tmp_path: Path) -> None:
    """A refit has the codes of its plain run; what was made before codes were measured has no costs."""
    lines = lines_of(place / "out")
    plain, again = (lines[f"shop.last_out.mosaic{refit}.seed0"] for refit in ("", ".refit"))
    assert (plain["tokenizer"], plain["codes"]) == (again["tokenizer"], again["codes"])
    assert plain["tokenizer"]["seconds"] > 0
    assert plain["tokenizer"]["peak_rss_bytes"] > 1e7
    codes = plain["codes"]
    assert [level["codebook_size"] for level in codes["levels"]] == [4, 4]
    assert all(1 <= level["effective_capacity"] <= level["num_used"] for level in codes["levels"])
    assert all(0.25 <= level["most_popular_share"] <= 1 for level in codes["levels"])
    assert [prefix["depth"] for prefix in codes["prefixes"]] == [1, 2]
    assert 0 < codes["explained_share"] <= 1
    suite = suite_in(tmp_path)
    shutil.copytree(place / "work", tmp_path / "work")
    (tmp_path / "work" / plain["run"] / "content" / "tokenizer.json").unlink()
    old = run_one(suite.run("shop", "last_out", "mosaic"), places(tmp_path))
    assert (old["tokenizer"], old["codes"]) == (None, codes)
    assert run_one(suite.run("shop", "last_out", "popularity"), places(tmp_path))["codes"] is None


def test_the_overlap_of_codes_is_that_of_what_each_level_adds() -> None:
    """Two levels of two codes far apart, in even use: no code is confused; the noise is the spread of the vectors."""
    vectors_ND = torch.tensor([[100.0, 10], [100, -10], [-100, 10], [-100, -10]]).repeat(1, 8)
    table = build_semantic_ids(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), (2, 2), "x")
    found = list(_overlaps(table, vectors_ND))
    assert [one.noise for one in found] == pytest.approx([(5050.0) ** 0.5] * 2)
    far = [8 * (2 * length) ** 2 / (8 * 5050) for length in (100, 10)]
    assert [one.expected_overlap for one in found] == pytest.approx([(1 + math.exp(-d)) / 2 for d in far])


@pytest.mark.parametrize("start", ["shop.last_out", "shop.global_time"])
def test_ranks_give_the_metrics_of_the_line(place: Path, start: str) -> None:
    line = lines_of(place / "out")[f"{start}.mosaic.seed0"]
    targets = pl.read_parquet(place / "out" / f"{start}.targets.parquet")
    assert targets.schema == {
        "request": pl.Int32,
        "items": pl.String,
        "history": pl.Int32,
        "repeated": pl.Boolean,
        "other_day": pl.Boolean,
    }
    assert targets["request"].is_sorted()
    counts_B = torch.bincount(torch.from_numpy(targets["request"].to_numpy().copy()).long())
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_B.cumsum(0)])
    for name in ("mosaic", "mosaic_generative", "mosaic_dense"):
        ranks_M = rank_column(place / "out", f"{start}.{name}.seed0")
        ranks = order_ranks(offsets, ranks_M)
        found = {
            f"{what.__name__}{k}": float(what(ranks, k).float().mean()) for what in (recall, ndcg) for k in (5, 10)
        }
        assert found == pytest.approx(line["metrics"][name], abs=1e-6)
        for part, keep in (("items:tail", targets["items"] == "tail"), ("targets:repeated", targets["repeated"])):
            kept = order_ranks(offsets, ranks_M, torch.tensor(keep.to_list()))
            assert line["slices"][name][part]["requests"] == int((kept.num_relevant_B > 0).sum()) > 0
            assert line["slices"][name][part]["ndcg10"] == pytest.approx(float(ndcg(kept, 10).nanmean()), abs=1e-6)
    assert line["metrics"]["mosaic_dense"] != line["metrics"]["mosaic_generative"]


def test_other_day_is_the_stricter_protocol(place: Path, tmp_path: Path) -> None:
    """In the shop, the last two events of everybody are one basket; here every fourth customer's are not."""
    assert not pl.read_parquet(place / "out" / "shop.last_out.targets.parquet")["other_day"].any()
    assert pl.read_parquet(place / "out" / "shop.global_time.targets.parquet")["other_day"].null_count() == 66
    suite = suite_in(tmp_path)
    events = shop.events()
    last = (pl.col("user_id") == pl.col("user_id").shift(-1)).not_() & pl.col("user_id").str.ends_with("3")
    late = pl.when(last).then(pl.col("timestamp") + 1).otherwise(pl.col("timestamp")).alias("timestamp")
    untimed = pl.when((pl.col("user_id") == "u13") & last).then(None).otherwise(late).alias("timestamp")
    events.with_columns(untimed, order=pl.int_range(pl.len())).write_parquet(tmp_path / "events.parquet")
    run_one(suite.run("shop", "last_out", "popularity"), places(tmp_path))
    targets = pl.read_parquet(tmp_path / "out" / "shop.last_out.targets.parquet")
    assert targets["other_day"].arg_true().to_list() == [3, 23, 33, 43]
    assert targets["history"].to_list() == [11] * 48
    assert targets["repeated"].all()


def test_what_is_done_is_not_done_again(place: Path, tmp_path: Path) -> None:
    suite = read_suite(place / "suite.toml")
    runs = chosen(suite, "shop.last_out.mosaic.*seed0")
    assert done_runs(runs, place / "out") == {run.name for run in runs}
    said: list[str] = []
    assert carry_out(runs, places(place), 1, said.append) == {}
    assert said == ["0 runs to do, 2 done already"]
    assert done_runs(runs, tmp_path) == set()


def test_other_settings_or_data_are_run_again(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    run = suite.run("shop", "last_out", "popularity")
    again = suite.run("shop", "last_out", "popularity", refit=True)
    for one in (run, again):
        run_one(one, places(tmp_path))
    assert done_runs([run, again], tmp_path / "out") == {run.name, again.name}
    suite = suite_in(tmp_path, popularity=METHODS["popularity"].replace("20.0", "30.0"))
    changed = [suite.run("shop", "last_out", "popularity", refit=refit) for refit in (False, True)]
    assert done_runs(changed, tmp_path / "out") == set(), "a refit starts from the plain run"
    shop.events(range(5)).write_parquet(tmp_path / "events.parquet")
    assert done_runs([run], tmp_path / "out") == set()
    shop.events().write_parquet(tmp_path / "events.parquet")
    assert done_runs([run], tmp_path / "out") == {run.name}
    (tmp_path / "out" / f"{run.name}.parquet").unlink()
    assert done_runs([run], tmp_path / "out") == set()


def test_a_refit_starts_from_the_plain_state_and_makes_it_where_it_is_gone(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    plain, again = (suite.run("shop", "last_out", "mosaic", refit=refit) for refit in (False, True))
    first = run_one(plain, places(tmp_path))
    state = tmp_path / "work" / plain.name / "fitted" / "state.safetensors"
    assert state.is_file()
    assert not (tmp_path / "work" / plain.name / "checkpoints").exists()
    with_state = run_one(again, places(tmp_path))
    assert not (tmp_path / "work" / again.name).exists()
    state.unlink()
    (state.parent / "costs.json").unlink()
    state.parent.rmdir()
    without = run_one(again, places(tmp_path))
    assert without["metrics"] == with_state["metrics"] != first["metrics"]
    assert state.is_file()


def test_a_stopped_fit_goes_on_and_counts_what_it_took_before(tmp_path: Path) -> None:
    suite = suite_in(tmp_path)
    run = suite.run("shop", "last_out", "mosaic")
    whole = run_one(run, places(tmp_path))
    work = tmp_path / "work" / run.name
    (work / "fitted").rename(tmp_path / "kept")
    (work / "spent.json").write_text("[1000.0, 2000.0]")
    again = run_one(run, places(tmp_path))
    assert again["metrics"] == whole["metrics"]
    assert 1000 < again["train_cpu_s"] < 1100
    assert 2000 < again["train_s"] < 2100


def test_a_killed_bench_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    """The process of the run stops with the one that started it, however that ended."""
    sasrec = """
        [retriever]
        class = "tesserec.retrievers.sasrec:SASRec"
        model = { width = 8, num_layers = 1, num_heads = 1 }
        training = { epochs = 60 }
    """
    text = SUITE.replace('"popularity", "cooccurrence", "mosaic"', '"sasrec"')
    suite = suite_in(tmp_path, text, sasrec=sasrec)
    there = places(tmp_path)
    command = ["bench", there.suite, "--out", there.results, "--work", there.work, "--only", "shop.last_out.*.seed0"]
    process = subprocess.Popen([sys.executable, "-m", "tesserec", *map(str, command)], stderr=subprocess.DEVNULL)
    work = there.work / "shop.last_out.sasrec.seed0"
    give_up = time.monotonic() + 60
    while not (work / "checkpoints" / "fit" / "SASRec.safetensors").is_file():
        assert time.monotonic() < give_up
        time.sleep(0.05)
    children = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not (work / "fitted").exists()
    spent_s, _ = json.loads((work / "spent.json").read_text())
    run = suite.run("shop", "last_out", "sasrec")
    line = run_one(run, there)
    assert [entry["epoch"] for entry in line["training_log"]] == list(range(1, 61))
    assert line["train_cpu_s"] > spent_s > 0
    assert sorted(path.name for path in work.iterdir()) == ["content", "fitted", "key.json"]


def test_order_within_a_time_can_be_drawn(tmp_path: Path) -> None:
    suite = suite_in(tmp_path, SUITE.replace('items = "items.parquet"', 'items = "items.parquet"\nshuffle_ties = 7'))
    run = suite.run("shop", "last_out", "popularity")
    assert run.tables["data"]["shuffle_ties"] == 7
    assert run.digest != suite_in(tmp_path).run("shop", "last_out", "popularity").digest
    shuffled, _ = read_dataset(run.data)
    plain, _ = shop.data()
    assert torch.equal(shuffled.time_E, plain.time_E)
    assert torch.equal(shuffled.user_E, plain.user_E)
    assert not torch.equal(shuffled.item_E, plain.item_E)
    swapped = (shuffled.item_E != plain.item_E).double().mean()
    assert 0.3 < swapped < 0.7, "half of the baskets of two"
    assert torch.equal(shuffled.item_E.long().sort().values, plain.item_E.long().sort().values)
    assert torch.equal(read_dataset(run.data)[0].item_E, shuffled.item_E), "the same seed, the same order"


def test_only_events_of_one_time_and_session_change_places() -> None:
    rows = {
        "user_id": [1, 1, 1, 1, 1, 2, 2, 2],
        "item_id": [1, 2, 3, 4, 5, 6, 7, 8],
        "timestamp": [5, 5, 5, 5, 9, None, None, None],
        "session": [1, 1, 2, 2, 2, 3, 3, 3],
        "order": list(range(8)),
    }
    log = read_events(pl.DataFrame(rows))
    seen = {tuple(shuffle_ties(log, seed).item_E.tolist()) for seed in range(40)}
    assert seen == {(*a, *b, 4, 5, 6, 7) for a in ((0, 1), (1, 0)) for b in ((2, 3), (3, 2))}


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    text = SUITE.replace('"popularity", "cooccurrence", "mosaic"', '"popularity", "broken"').replace(
        ', "global_time"', ""
    )
    suite = suite_in(tmp_path, text)
    said: list[str] = []
    failed = carry_out(suite.runs(["*.popularity.seed0", "*.broken.*"]), places(tmp_path), 1, said.append)
    assert list(failed) == ["shop.last_out.broken.seed0", "shop.last_out.broken.refit.seed0"]
    assert "nowhere.parquet" in failed["shop.last_out.broken.seed0"]
    assert failed["shop.last_out.broken.refit.seed0"] == (
        "not tried: it goes on from shop.last_out.broken.seed0, which failed"
    )
    assert set(lines_of(tmp_path / "out")) == {"shop.last_out.popularity.seed0"}
    assert said[0] == "3 runs to do, 0 done already"
    assert "shop.last_out.popularity.seed0: done, 2 to go" in said


def test_the_commit_is_that_of_the_suite_and_dirty_when_other_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True)

    folder = tmp_path / "inner"
    folder.mkdir()
    run = suite_in(folder).run("shop", "last_out", "popularity")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    for _ in range(2):  # the second time, results and states are there
        line = run_one(run, places(folder))
        assert re.fullmatch(r"[0-9a-f]{12}", line["commit"])
    assert line["command"].startswith("tesserec bench inner/suite.toml --data DATA --only ")
    (tmp_path / "new.txt").write_text("x")
    assert re.fullmatch(r"[0-9a-f]{12}-dirty", run_one(run, places(folder))["commit"])


def test_the_latest_line_counts(tmp_path: Path) -> None:
    lines = [{"run": "a", "x": 1}, {"run": "b", "x": 2}, {"run": "a", "x": 3}]
    (tmp_path / "runs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert {name: line["x"] for name, line in lines_of(tmp_path).items()} == {"a": 3, "b": 2}
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"run": "c", ')
    with pytest.raises(DataError, match=r"runs\.jsonl, line 4 is not JSON .*: delete the line"):
        lines_of(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[grid]]", "[[grids]]", r"suite\.toml: grids is not a table or setting here; did you mean grid\?"),
        ("items =", "itmes =", r"datasets\.shop\.itmes is not a setting of DatasetConfig; did you mean items\?"),
        ('"cooccurrence"', '"cooccurence"', r"'cooccurence' is not a method file in .*; did you mean cooccurrence\?"),
        (
            'datasets = ["shop"]',
            'datasets = ["shpo"]',
            r"grid\[0\]\.datasets: 'shpo' is not a data set of this suite; did",
        ),
        ('"last_out"', '"last_out_other_day"', r"grid\[0\]\.protocols\.0 = 'last_out_other_day': Input should be"),
        ("[[grid]]", "[grid]", r"suite\.toml: grid = .*: expected \[\[grid\]\]"),
        ("seeds =", "seed =", r"grid\[0\]\.seed is not a setting of GridConfig; did you mean seeds\?"),
        ("[0, 1]", "[-1]", r"grid\[0\]\.seeds\.0 = -1"),
        ("items = ", "t1 = 5\nitems = ", r"datasets\.shop: t1 = 5 and t2 = None: give both"),
        ("events = ", "#", r"\[datasets\.shop\] names no data: add events"),
        ("[datasets.shop]", "[datasets.Shop]", r"\[datasets\.Shop\] needs another name"),
        (
            "[datasets.shop]",
            'methods = "none"\n[datasets.shop]',
            r"none' is not a folder: name that of the method files",
        ),
    ],
)
def test_a_suite_that_cannot_be_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        suite_in(tmp_path, SUITE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[retreiver]", r"popularity\.toml: retreiver is not a table or setting here; did you mean retriever\?"),
        ("[fit]\nrefit = true", r"fit\.refit is not a table or setting here; known: num_threads"),
        ("fit = 3", r"popularity\.toml: fit = 3: expected a table, \[fit\]"),
        ("[tuned]\nshop = 3", r"popularity\.toml: tuned\.shop = 3: expected a table"),
        ("[refit.embedder]", r"refit\.embedder is not a table or setting here"),
        ("[tuned.shop.retreiver]", r"tuned\.shop\.retreiver is not .* did you mean retriever\?"),
        ('[tuned."shop.lastout"]', r"tuned\.shop\.lastout: no protocol lastout; did you mean last_out\?"),
        ('[tuned."*.last*outs"]', r"no protocol last\*outs"),
        (
            "[tuned.shop.last_out.retriever]",
            r"tuned\.shop\.last_out is not .*: a data set and a protocol are one quoted key",
        ),
        ('[tuned.shop.fit]\ndevice = "cuda"', r"tuned\.shop\.fit\.device is not .*; known: num_threads"),
        ("[refit.fit]\nrefit = true", r"refit\.fit\.refit is not .*; known: num_threads"),
        ("[views.mosaic]\nwindow_days = 3.0", r"\[views\.mosaic\] needs another name"),
        ("[views.mosaic_dense]\nwindow_days = 3.0", r"both have \[views\.mosaic_dense\]: rename one of them"),
        ("[views.x]\nwindow_day = 3.0", r"\[views\.x\]: retriever\.window_day is not a setting of Popularity; did"),
        ("[refit.retriever]\nwindow_days = -1", r"popularity\.toml: retriever\.window_days = -1"),
    ],
)
def test_a_method_that_cannot_be_is_refused(tmp_path: Path, text: str, message: str) -> None:
    suite = suite_in(tmp_path, popularity=f'retriever.class = "{shop.POPULARITY}"\n{text}\n')
    with pytest.raises(RecipeError, match=message):
        suite.runs()
    assert suite.runs(["*.cooccurrence.*"]), "others are not bothered"


def test_a_method_with_a_base_says_only_what_differs(tmp_path: Path) -> None:
    text = 'base = "mosaic"\n[retriever]\nmax_length = 9\nmodel = { width = 4 }\n[views.half]\nanswer = "dense"\n'
    suite = suite_in(tmp_path, mosaic_without_width=text)
    whole, part = (suite.run("shop", "last_out", name).recipe for name in ("mosaic", "mosaic_without_width"))
    assert part["embedder"] == whole["embedder"]
    assert part["retriever"]["max_length"] == 9
    assert part["retriever"]["model"] == {**whole["retriever"]["model"], "width": 4}
    assert part["retriever"]["training"] == whole["retriever"]["training"]
    assert list(suite.run("shop", "last_out", "mosaic_without_width").views) == ["half"], "not those of the base"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nothing", r"popularity\.toml: no recipe at .*nothing\.toml"),
        ("popularity", r"popularity\.toml: base is a method that has a base itself, 'popularity'"),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path: Path, base: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        suite_in(tmp_path, popularity=f'base = "{base}"\n').run("shop", "last_out", "popularity")


def test_a_suite_without_grid_or_matching_run(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"at least one \[datasets\.NAME\] and one \[\[grid\]\]"):
        suite_in(tmp_path, SUITE[: SUITE.index("[[grid]]")])
    with pytest.raises(RecipeError, match=r"has no run shop\.x\*: names are like"):
        suite_in(tmp_path).runs(["shop.x*"])
    with pytest.raises(RecipeError, match=r"has no run shop\.x\*: names are like"):
        suite_in(tmp_path).runs(["*", "shop.x*"])
    with pytest.raises(RecipeError, match="mosaic_dense is reported with mosaic, so name that"):
        suite_in(tmp_path).runs(["shop.last_out.mosaic_dense.seed0"])


NEWCOMER = """
methods = "methods"

[datasets.mine]
events = "sales.parquet"
items = "things.parquet"
columns = { user_id = "who", item_id = "what", timestamp = "when" }

[[grid]]
datasets = ["mine"]
protocols = ["last_out", "global_time"]
methods = ["popularity", "cooccurrence"]
refit = [false, true]
"""


def test_data_that_nobody_saw_before_is_fifteen_lines(tmp_path: Path) -> None:
    assert len(NEWCOMER.strip().splitlines()) <= 15
    suite_in(tmp_path)
    (tmp_path / "suite.toml").write_text(NEWCOMER)
    names = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    (tmp_path / "data").mkdir()
    shop.events()[:-1].rename(names).write_parquet(tmp_path / "data" / "sales.parquet")
    shop.items().write_parquet(tmp_path / "data" / "things.parquet")
    suite = read_suite(tmp_path / "suite.toml", tmp_path / "data")
    for run in suite.runs(["mine.*.cooccurrence.seed0"]):
        line = run_one(run, places(tmp_path))
        assert line["metrics"]["cooccurrence"]["recall10"] == 1.0, "the next basket is of the six things of the room"
        assert line["recipe"]["data"]["events"] == "sales.parquet"


def test_the_committed_suite_and_methods_can_be_read() -> None:
    """Those whose classes are there."""
    suite = read_suite(Path(__file__).parent.parent / "benchmarks" / "accuracy" / "suite.toml")
    written = ("popularity", "personal_frequency", "cooccurrence", "ease", "sasrec", "tiger", "mosaic")
    names = [run.name for run in suite.runs([f"*.{name}.*" for name in written])]
    assert len(names) == len(set(names))
    assert "beauty.global_time.mosaic.refit.seed2" in names
    assert "beauty.last_out.ease.seed1" not in names
    foursquare = suite.run("foursquare", "last_out", "mosaic")
    assert foursquare.recipe["embedder"]["class"] == "tesserec.embedders.cooccurrence_svd:CooccurrenceSVD"
    assert list(foursquare.views) == ["mosaic_generative", "mosaic_dense"]
