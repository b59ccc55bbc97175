"""The record of figures: one line a figure, and the scripts that write them."""

import json
import re
import subprocess
import sys

import pytest

from benchmarks import _record, run


def test_a_line_says_where_and_how_it_was_measured(tmp_path):
    line = _record.record("area.part.x_s", 2.5, "s", low=2, high=3, n=7, seeds=range(2), results=tmp_path / "new")
    assert json.loads((tmp_path / "new" / "area.jsonl").read_text(encoding="utf-8")) == line
    assert {key: line[key] for key in ("figure", "value", "unit", "low", "high", "n", "seeds", "against")} == {
        "figure": "area.part.x_s",
        "value": 2.5,
        "unit": "s",
        "low": 2,
        "high": 3,
        "n": 7,
        "seeds": [0, 1],
        "against": None,
    }
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", line["commit"])
    assert re.search(r".+, \d+ cores, \d+ GiB", line["machine"])
    assert set(line["versions"]) == {"python", "torch", "polars", "numpy", "tesserec"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", line["date"])


def test_lines_are_appended_by_area(tmp_path):
    for figure, value in (("a.x", 1.0), ("b.x", 2.0), ("a.x", 3.0)):
        _record.record(figure, value, "ratio", command="make bench", results=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(line["value"], line["command"]) for line in lines] == [(1.0, "make bench"), (3.0, "make bench")]
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("figure", "value", "interval", "message"),
    [
        ("alone", 1.0, {}, r"figure 'alone' must be lower-case parts joined by dots"),
        ("area.Upper", 1.0, {}, r"such as house\.import_s"),
        ("area.x", float("nan"), {}, r"area\.x is nan: only a finite value"),
        ("area.x", 1.0, {"low": 1.1}, r"area\.x is 1\.0, outside its own interval \[1\.1, None\]"),
        ("area.x", 1.0, {"high": 0.9}, r"outside its own interval \[None, 0\.9\]"),
    ],
)
def test_what_is_no_figure_is_refused(tmp_path, figure, value, interval, message):
    with pytest.raises(ValueError, match=message):
        _record.record(figure, value, "s", **interval, results=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_dirty_when_sources_differ_and_not_when_results_do(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    (tmp_path / "source.py").write_text("x = 1\n")
    git("add", "source.py")
    git("commit", "--quiet", "--message", "first")
    monkeypatch.setattr(_record, "ROOT", tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", _record.commit())
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "a.jsonl").write_text("{}\n")
    assert not _record.commit().endswith("-dirty")
    (tmp_path / "source.py").write_text("x = 2\n")
    assert _record.commit().endswith("-dirty")


@pytest.mark.parametrize(
    ("figure", "prefix", "answer"),
    [
        ("house.import_s", "house", True),
        ("house.import_s", "hou", True),
        ("house.import_s", "house.import_s", True),
        ("house.import_s", "house.import_s.more", False),
        ("house.import_s", "data", False),
        ("demo.*.ndcg10", "demo.mosaic.ndcg", True),
        ("demo.*.ndcg10", "demo.mos", True),
        ("demo.*.ndcg10", "demo.mosaic.recall", False),
        ("demo.*.ndcg10", "data.mosaic", False),
    ],
)
def test_prefixes(figure, prefix, answer):
    assert run.begins_with(figure, prefix) is answer


def test_every_script_is_found_by_its_figures(tmp_path, monkeypatch, capfd):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "good.py").write_text('FIGURES = ("area.good",)\nprint("measured")\n')
    (tmp_path / "benchmarks" / "bad.py").write_text('FIGURES = ("area.bad", "other.*.x")\nraise SystemExit(3)\n')
    (tmp_path / "benchmarks" / "_helper.py").write_text("x = 1\n")
    assert run.scripts(tmp_path) == {"benchmarks.bad": ("area.bad", "other.*.x"), "benchmarks.good": ("area.good",)}
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.main(["--figure", "area.g"]) == 0
    assert "measured" in capfd.readouterr().out
    assert run.main(["--figure", "area"]) == 3
    assert run.main(["--figure", "nothing"]) == 2
    assert "no figure begins with 'nothing'; these are measured:\n  area.bad" in capfd.readouterr().err


def test_scripts_that_need_data_are_given_their_folder(tmp_path, monkeypatch, capfd):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "free.py").write_text('FIGURES = ("area.free",)\nimport sys\nprint(sys.argv[1:])\n')
    needing = 'FIGURES = ("area.needing",)\nNEEDS_DATA = True\nimport sys\nprint(sys.argv[1:])\n'
    (tmp_path / "benchmarks" / "needing.py").write_text(needing)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert run.main(["--figure", "area", "--data", str(tmp_path)]) == 0
    assert f"[]\n== python -m benchmarks.needing\n['--data', '{tmp_path}']\n" in capfd.readouterr().out
    assert run.main(["--figure", "area.free"]) == 0
    assert run.main(["--figure", "area"]) == 2
    wanted = "data sets are needed by benchmarks.needing, and no folder was given: name theirs, --data FOLDER"
    assert wanted in capfd.readouterr().err
    assert run.main(["--figure", "area", "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capfd.readouterr().err


def test_the_commands_of_this_repository_are_found():
    known = run.scripts(run.ROOT)
    assert known["benchmarks.house"] == ("house.import_s",)
    for claim in ("rq_fsq", "crab", "prefixmem", "sentencepiece", "expansion", "dsirm"):
        prefix = f"claims.{claim}.x"
        (name,) = [name for name, own in known.items() if any(run.begins_with(figure, prefix) for figure in own)]
        assert run.needs_data(run.ROOT, name)


def test_the_default_command_is_this_process():
    script = "from benchmarks._record import own_command; print(own_command())"
    printed = subprocess.run(
        [sys.executable, "-c", script, "a b"], cwd=run.ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert printed.startswith("python")
    assert printed.endswith("'a b'\n")
