"""The command line, run as its users run it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import typer
from rich.text import Text
from typer.testing import CliRunner, Result

import shop
from tesserec.bundle import Bundle, MethodRecord, publish
from tesserec.cli import app
from tesserec.recommender import Recommender
from tesserec.retrievers.mosaic import SOURCES

RECIPE = f"""
seed = 3
[data]
events = "events.csv"
items = "items.csv"
positive_kinds = ["purchase"]
[retriever]
class = "{shop.COOCCURRENCE}"
[baselines]
popularity.class = "{shop.POPULARITY}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with events, items, a recipe and the shop's bundle."""
    folder = tmp_path_factory.mktemp("cli")
    shop.events().write_csv(folder / "events.csv")
    shop.items().write_csv(folder / "items.csv")
    (folder / "r.toml").write_text(RECIPE)
    publish(folder / "shop", shop.contents())
    return folder


def run(*arguments: object) -> Result:
    """The command's result; an unexpected error is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answer(*arguments: object) -> Any:
    """The JSON that a command prints."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    """The one line of a command that cannot be done."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_fit_writes_a_bundle_and_says_how_good_it_is(place: Path, tmp_path: Path) -> None:
    bundle, page = tmp_path / "b", tmp_path / "pages" / "r.html"
    result = run("fit", place / "r.toml", "--out", bundle, "--report", page)
    assert result.exit_code == 0
    assert "Cooccurrence" in result.stdout
    assert "Popularity" in result.stdout
    assert "difference in ndcg10 on the same 33 requests" in result.stdout
    mean = Bundle.open(bundle).manifest.metrics["cooccurrence"]["ndcg10"]["mean"]
    assert f"{mean:.4f}" in result.stdout
    assert result.stderr.splitlines()[-1] == f"bundle: {bundle}"
    assert f"report: {page}" in result.stderr
    assert page.read_text().startswith("<!doctype html>")
    again = run("fit", place / "r.toml", "--out", bundle)
    assert f"{bundle} holds this recipe fitted on this data already" in again.stderr
    assert again.stdout == result.stdout
    forced = run("fit", place / "r.toml", "--out", bundle, "--again")
    assert "fitting cooccurrence on" in forced.stderr


def test_fit_takes_files_seed_and_device_from_the_command_line(place: Path, tmp_path: Path) -> None:
    shop.events(range(5)).write_parquet(tmp_path / "e.parquet")
    found = answer(
        "fit",
        place / "r.toml",
        "--out",
        tmp_path / "b",
        "--events",
        tmp_path / "e.parquet",
        "--seed",
        9,
        "--device",
        "cpu",
    )
    assert found["method"] == "cooccurrence"
    manifest = Bundle.open(tmp_path / "b").manifest
    assert (manifest.num_events, manifest.recipe["seed"], manifest.recipe["fit"]["device"]) == (481, 9, "cpu")


def test_fit_from_a_bundle_goes_on(place: Path, tmp_path: Path) -> None:
    shop.events(range(6, 7)).write_csv(tmp_path / "new.csv")
    result = run("fit", "--from", place / "shop", "--events", tmp_path / "new.csv", "--out", tmp_path / "b")
    assert result.exit_code == 0, result.stderr
    assert "fitting cooccurrence again on all 673 events, for serving" in result.stderr
    assert "refit" in result.stdout
    assert Bundle.open(tmp_path / "b").manifest.num_events == 673


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "shop"], "--from BUNDLE needs --events FILE, the events since then, and takes no recipe"),
        (["r.toml", "--from", "shop", "--events", "events.csv"], "takes no recipe: it has one"),
        (["--seed", "3"], "--seed and --device change a recipe: name one, such as recipes/mosaic.toml"),
        ([], "no data is named: add source or events to [data] of the recipe, or give --events FILE"),
        (["q.toml"], "no recipe at q.toml: give the path of a TOML file"),
        (["r.toml", "--events", "nothing.csv"], "no file at nothing.csv: check the path"),
        (["wrong.toml"], "[retreiver] is not a table of a recipe; did you mean retriever?"),
    ],
)
def test_fits_that_cannot_be(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(place)
    (place / "wrong.toml").write_text("[retreiver]\n")
    assert message in refused("fit", *arguments, "--out", tmp_path / "b")


def test_evaluate_gives_the_same_figures_every_time(place: Path) -> None:
    first, second = (run("evaluate", place / "shop", "--json").stdout for _ in range(2))
    assert first == second
    found = json.loads(first)
    published = shop.contents().reports
    assert found["method"] == "cooccurrence"
    assert found["reports"] == {name: report.to_dict() for name, report in published.items()}
    (difference,) = found["differences"]
    assert (difference["first"], difference["second"], difference["metric"]) == ("Cooccurrence", "Popularity", "ndcg10")
    assert difference["difference"] == pytest.approx(
        published["cooccurrence"].metrics["ndcg10"].mean - published["popularity"].metrics["ndcg10"].mean
    )
    shown = run("evaluate", place / "shop").stdout
    assert "ndcg10 by slice" in shown
    assert f"{difference['difference']:+.4f}" in shown


def test_anyones_lists_are_judged_on_an_exported_split(place: Path, tmp_path: Path) -> None:
    for source in (place / "shop", place / "r.toml"):
        exported = run("split", "export", source, tmp_path / "split")
        assert exported.stderr == f"split: {tmp_path / 'split'}\n"
        asked = pl.read_parquet(tmp_path / "split" / "test.parquet")
        assert len(asked) == 33
    perfect = asked.select("user_id", item_id="targets").explode("item_id").with_columns(score=pl.lit(1.0))
    perfect.write_parquet(tmp_path / "perfect.parquet")
    found = answer(
        "evaluate", "--scores", tmp_path / "perfect.parquet", "--split", tmp_path / "split", "--k", 2, "--k", 3
    )
    assert found["label"] == "perfect"
    assert found["metrics"]["recall2"]["mean"] == 1
    assert {"ndcg2", "ndcg3"} <= set(found["metrics"])
    shown = run("evaluate", "--scores", tmp_path / "perfect.parquet", "--split", tmp_path / "split")
    assert "perfect" in shown.stdout
    assert "recall10" in shown.stdout
    for arguments in (["--scores", "a"], [place / "shop", "--scores", "a", "--split", "b"], []):
        assert refused("evaluate", *arguments) == "give either a bundle, or --scores FILE together with --split FOLDER"


def test_methods_at_equal_training_time_are_marked(tmp_path: Path) -> None:
    log = [{"epoch": 1.0, "loss": 2.0, "seconds": 12.3}]
    records = {"cooccurrence": MethodRecord(log), "popularity": MethodRecord(log, equal_training_time=True)}
    publish(tmp_path / "b", dataclasses.replace(shop.contents(), records=records))
    shown = run("evaluate", tmp_path / "b").stdout
    assert "Popularity †" in shown
    assert "† at equal training time: stopped after the 12 s of training steps of Cooccurrence" in shown


def test_recommend_to_a_user(place: Path) -> None:
    found = answer("recommend", place / "shop", "--user", "u01", "--k", 3)
    expected = Recommender(shop.contents()).recommend(["u01"], k=3, explain=True).drop("user_id", "note").to_dicts()
    assert found == {
        "user_id": "u01",
        "note": None,
        "history": ["i06", "i07", "i08", "i09", "i10", "i11"] * 2,
        "history_length": 12,
        "items": expected,
    }
    shown = run("recommend", place / "shop", "--user", "u01", "--k", 3).stdout
    assert "user u01, 12 events, the last: garden red lamp large; garden oak shelf;" in shown
    assert all(item["title"] in shown for item in expected)
    assert "note:" not in shown


def test_the_number_of_threads_is_a_setting(place: Path) -> None:
    before = torch.get_num_threads()
    try:
        run("recommend", place / "shop", "--user", "u01", "--threads", before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_recommend_to_somebody_who_is_not_in_the_data(place: Path) -> None:
    found = answer("recommend", place / "shop", "--history", "i00, i01", "--k", 2)
    assert [item["item_id"] for item in found["items"]] == ["i02", "i03"]
    assert (found["user_id"], found["history"], found["history_length"]) == (None, ["i00", "i01"], 2)
    found = answer("recommend", place / "shop", "--history", "i00,i01", "--k", 2, "--exclude", "i02", "--unseen")
    assert [item["item_id"] for item in found["items"]] == ["i03", "i04"]
    shown = run("recommend", place / "shop", "--history", "", "--k", 1).stdout
    assert shown.splitlines()[:2] == ["somebody new, 0 events", "note: no history: popular items of the moment"]


def test_explanations_show_the_evidence(place: Path, tmp_path: Path) -> None:
    small = {
        "class": "tesserec.retrievers.mosaic:Mosaic",
        "model": {"width": 8, "num_layers": 1, "num_heads": 1},
        "training": {"epochs": 1},
    }
    recipe = shop.table(retriever=small, baselines={}, fit={"refit": False})
    Recommender.fit(shop.events(), shop.items(), recipe=recipe, out=tmp_path / "m")
    shown = run("recommend", tmp_path / "m", "--user", "u00", "--explain").stdout
    assert all(word in shown for word in ("source", *SOURCES))
    assert "generative" not in run("recommend", tmp_path / "m", "--user", "u00").stdout
    items = answer("recommend", tmp_path / "m", "--user", "u00")["items"]
    assert items[0]["source"] in SOURCES
    assert items[0]["score"] == pytest.approx(sum(items[0][name] for name in SOURCES), abs=1e-4)


def test_recommend_to_many(place: Path, tmp_path: Path) -> None:
    result = run("recommend", place / "shop", "--users", "all", "--out", tmp_path / "x" / "all.parquet", "--k", 4)
    assert result.stderr == f"196 recommendations: {tmp_path / 'x' / 'all.parquet'}\n"
    found = pl.read_parquet(tmp_path / "x" / "all.parquet")
    assert found.columns == ["user_id", "item_id", "score", "rank", "note"]
    assert found["user_id"].n_unique() == 49
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["all.parquet"]
    (tmp_path / "few.txt").write_text("u03\nu01\n")
    pl.DataFrame({"user_id": ["u03", "u01"]}).write_csv(tmp_path / "few.csv")
    for name in ("few.txt", "few.csv"):
        run(
            "recommend",
            place / "shop",
            "--users",
            tmp_path / name,
            "--out",
            tmp_path / "few.parquet",
            "--k",
            1,
            "--exclude",
            "i18",
        )
        few = pl.read_parquet(tmp_path / "few.parquet")
        assert few["user_id"].to_list() == ["u03", "u01"]
        assert few["item_id"][0] != "i18"


def test_lists_that_cannot_be(place: Path, tmp_path: Path) -> None:
    bundle = place / "shop"
    assert refused("recommend", bundle, "--user", "nobody").startswith("unknown user 'nobody': the 49 known ones")
    assert refused("recommend", bundle, "--history", "i00,zzz").startswith("unknown item 'zzz'")
    one = "give one of --user U, --history a,b,c and --users FILE|all"
    assert refused("recommend", bundle) == one
    assert refused("recommend", bundle, "--user", "u00", "--history", "i00") == one
    together = "--users FILE|all and --out FILE belong together: a list for many users is a Parquet file"
    assert refused("recommend", bundle, "--users", "all") == together
    assert refused("recommend", bundle, "--user", "u00", "--out", "a.parquet") == together
    assert "is not a bundle" in refused("recommend", tmp_path, "--user", "u00")
    to = ["--out", tmp_path / "o.parquet"]
    assert "no file of users at" in refused("recommend", bundle, "--users", tmp_path / "none.txt", *to)
    (tmp_path / "empty.txt").write_text("\n")
    assert "empty.txt names no users: give at least one" in refused(
        "recommend", bundle, "--users", tmp_path / "empty.txt", *to
    )
    (tmp_path / "wrong.csv").write_text("who\nu00\n")
    assert "wrong.csv has the columns who: none is user_id" in refused(
        "recommend", bundle, "--users", tmp_path / "wrong.csv", *to
    )
    assert "o.csv would be a Parquet file: name it so" in refused(
        "recommend", bundle, "--users", "all", "--out", tmp_path / "o.csv"
    )
    (tmp_path / "half.txt").write_text("u00\nno body \n")
    assert "unknown user 'no body'" in refused("recommend", bundle, "--users", tmp_path / "half.txt", *to)
    assert not (tmp_path / "o.parquet").exists()


def test_compare(place: Path) -> None:
    bundle = place / "shop"
    (test,) = answer("compare", bundle, f"{bundle}:popularity", "--metric", "recall5")
    assert (test["first"], test["second"], test["metric"], test["num_requests"]) == (
        "Cooccurrence",
        "Popularity",
        "recall5",
        33,
    )
    (same,) = answer("compare", bundle / "reports" / "popularity.json", f"{bundle}:popularity")
    assert (same["difference"], same["p_value"]) == (0, 1)
    shown = run("compare", bundle, f"{bundle}:popularity", f"{bundle}:popularity").stdout
    assert shown.count("Popularity") == 2
    assert "has no report of popularty; did you mean popularity?" in refused("compare", bundle, f"{bundle}:popularty")
    assert "no report at x.json: give a bundle, or the JSON of a report" in refused("compare", bundle, "x.json")
    assert "has no metric ndcg7" in refused("compare", bundle, f"{bundle}:popularity", "--metric", "ndcg7")


def test_a_folder_is_refused_before_the_work(place: Path, tmp_path: Path) -> None:
    message = f"{tmp_path} is a folder: give the file to write, such as one in this folder"
    assert refused("report", tmp_path / "nothing", "--out", tmp_path) == message
    assert refused("fit", tmp_path / "nothing.toml", "--out", tmp_path / "b", "--report", tmp_path) == message
    assert refused("recommend", tmp_path / "nothing", "--users", "all", "--out", tmp_path) == message
    assert list(tmp_path.iterdir()) == []


def test_report(place: Path) -> None:
    assert run("report", place / "shop").stderr == f"report: {place / 'report.html'}\n"
    assert (place / "report.html").stat().st_size > 20_000


SUITE = """
[datasets.shop]
events = "events.csv"
positive_kinds = ["purchase"]
[[grid]]
datasets = ["shop"]
protocols = ["last_out"]
methods = ["popularity", "broken"]
refit = [false, true]
"""


def test_bench(place: Path, tmp_path: Path) -> None:
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "popularity.toml").write_text(f'retriever.class = "{shop.POPULARITY}"\n')
    (tmp_path / "methods" / "broken.toml").write_text('retriever.class = "tesserec.retrievers.mosaic:Mosaic"\n')
    (tmp_path / "s.toml").write_text(SUITE)
    common = ["--data", place, "--out", tmp_path / "out"]
    listed = run("bench", tmp_path / "s.toml", *common, "--list")
    assert listed.stdout.splitlines()[:2] == [
        "to do\tshop.last_out.popularity.seed0",
        "to do\tshop.last_out.popularity.refit.seed0",
    ]
    result = run("bench", tmp_path / "s.toml", *common, "--work", tmp_path / "work", "--jobs", 2)
    assert result.exit_code == 1
    assert "popularity.refit.seed0" in result.stdout
    said = result.stderr.splitlines()
    assert said[0] == "4 runs to do, 0 done already"
    assert said[-2].startswith("failed: shop.last_out.broken.seed0: Mosaic generates Semantic IDs and was given none")
    assert said[-1].startswith("failed: shop.last_out.broken.refit.seed0: not tried")
    only = ["--only", "*.popularity.*"]
    again = run("bench", tmp_path / "s.toml", *common, *only)
    assert (again.exit_code, again.stderr) == (0, "0 runs to do, 2 done already\n")
    assert run("bench", tmp_path / "s.toml", *common, *only, "--list").stdout.count("done") == 2
    assert "has no run shop.x: names are like" in refused("bench", tmp_path / "s.toml", *common, "--only", "shop.x")


def test_doctor() -> None:
    checks = {check["name"]: check for check in answer("doctor")}
    assert checks["Python"]["found"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert {"PyTorch", "memory", "disk", "GPU", "[text]"} <= set(checks)
    shown = run("doctor").stdout
    assert "PyTorch" in shown
    assert "[text]" in shown


def test_a_damaged_bundle_is_one_line(place: Path, tmp_path: Path) -> None:
    publish(tmp_path / "b", shop.contents())
    (tmp_path / "b" / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is damaged" in refused("evaluate", tmp_path / "b")


SLOW = """
[data]
events = "e.csv"
items = "items.csv"
unknown_items = "drop"
[retriever]
class = "tesserec.retrievers.sasrec:SASRec"
training.epochs = 60
model.width = 8
model.num_layers = 1
model.num_heads = 1
[fit]
refit = false
"""


def test_ctrl_c_leaves_a_checkpoint_that_goes_on(tmp_path: Path) -> None:
    """In a process of its own, which also shows that a warning is one line."""
    (tmp_path / "slow.toml").write_text(SLOW)
    shop.items().write_csv(tmp_path / "items.csv")
    pl.concat([shop.events(), shop.events()[:1].with_columns(item_id=pl.lit("zz"))]).write_csv(tmp_path / "e.csv")
    command = ["fit", tmp_path / "slow.toml", "--out", tmp_path / "b"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tesserec", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(f"warning: {tmp_path / 'e.csv'}: 1 of 578 events dropped")
    assert process.stderr.readline().startswith("fitting sasrec on 4")
    checkpoints = tmp_path / "b.work" / "checkpoints" / "sasrec"
    give_up = time.monotonic() + 60
    while not (checkpoints.is_dir() and any(checkpoints.glob("*.safetensors"))):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (130, "")
    assert errors.startswith("stopped: training of SASRec was stopped in epoch ")
    assert "the same call goes on from there" in errors
    with pytest.warns(UserWarning, match="1 of 578 events dropped"):
        result = run(*command)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith(f"continuing the run that was stopped, from {tmp_path / 'b.work'}")
    assert not (tmp_path / "b.work").exists()
    assert len(Bundle.open(tmp_path / "b").records["sasrec"].training_log) == 60


def test_ctrl_c_outside_of_training(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tesserec.recommender.fit", interrupt)
    result = run("fit", place / "r.toml", "--out", tmp_path / "b")
    assert result.exit_code == 130
    assert (
        result.stderr == f"stopped: what is finished is in {tmp_path / 'b.work'}; the same command goes on from there\n"
    )


def test_ctrl_c_in_a_bench(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tesserec.bench.wait", interrupt)
    (tmp_path / "methods").mkdir()
    for name in ("popularity", "broken"):
        (tmp_path / "methods" / f"{name}.toml").write_text(f'retriever.class = "{shop.POPULARITY}"\n')
    (tmp_path / "s.toml").write_text(SUITE)
    monkeypatch.setattr("tesserec.bench.GRACE_S", 0.0)
    result = run("bench", tmp_path / "s.toml", "--data", place, "--out", tmp_path / "o", "--work", tmp_path / "w")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[1:] == [
        "shop.last_out.popularity.seed0: started",
        f"stopped: checkpoints are in {tmp_path / 'w'}; the same command goes on from there",
    ]
    assert not (tmp_path / "o").exists()


def commands(path: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands((*path, name), below)


def test_no_help_loses_what_is_in_brackets() -> None:
    helps = [
        (path, text)
        for path, command in commands((), typer.main.get_command(app))
        for text in (command.help, *(getattr(parameter, "help", None) for parameter in command.params))
        if text
    ]
    assert len(helps) > 100
    assert [(path, text) for path, text in helps if Text.from_markup(text).plain != text.replace("\\[", "[")] == []
    shown = " ".join(run("sids", "fit", "--help").stdout.replace("│", " ").split())
    assert "TOML file with [data], [embedder], [semantic_ids]; without one" in shown


def test_help_is_quick() -> None:
    code = "import sys, tesserec.cli; print(sorted({'torch', 'polars', 'pyarrow', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
