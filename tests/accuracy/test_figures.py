"""Figures from ranks are those of the lists that the ranks came from."""

import json

import polars as pl
import pytest
import torch

import ranks_folder
from benchmarks.accuracy import figures
from tesserec.errors import DataError
from tesserec.evaluation import compare, judge_lists, over_seeds
from tesserec.evaluation.intervals import paired

PROTOCOLS = ("last_out", "global_time")


def write_all(folder):
    for protocol in PROTOCOLS:
        for refit in (False, True):
            for method in ("mosaic", "popularity"):
                ranks_folder.write_run(folder, method, protocol=protocol, refit=refit)
            for seed in (0, 1, 2):
                ranks_folder.write_run(folder, "recent", protocol=protocol, refit=refit, seed=seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ranks")
    write_all(made)
    return made


@pytest.fixture(scope="module")
def found(folder):
    return {line["figure"]: line for line in figures.figures(folder)}


def reports(method, *, protocol, refit=False, seeds=(0,)):
    made = ranks_folder.parts(protocol)
    return [
        judge_lists(
            ranks_folder.lists(method, seed, refit, protocol), made.test, train=made.train, label=method, refit=refit
        )
        for seed in seeds
    ]


def figure(found, protocol, method, rest):
    return found[f"accuracy.shop.{protocol}.{method}.{rest}"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize(("method", "seeds"), [("mosaic", (0,)), ("recent", (0, 1, 2))])
def test_metrics_and_slices_are_those_of_the_lists(found, protocol, refit, method, seeds):
    judged = reports(method, protocol=protocol, refit=refit, seeds=seeds)
    end = ".refit" if refit else ""
    for metric in figures.METRIC_NAMES:
        line, expected = figure(found, protocol, method, metric + end), over_seeds(judged, metric)
        assert [line["value"], line["low"], line["high"]] == pytest.approx(
            [expected.mean, expected.low, expected.high], abs=1e-6
        )
        assert line["n"] == judged[0].num_requests
        assert line["seeds"] == list(seeds)
    for part, theirs in (("cold", "items:cold"), ("tail", "items:tail"), ("head", "items:head")):
        if theirs not in judged[0].slices:
            assert f"accuracy.shop.{protocol}.{method}.ndcg10{end}.{part}" not in found
            continue
        for metric in figures.SLICE_METRICS:
            line = figure(found, protocol, method, f"{metric}{end}.{part}")
            expected = sum(report.slices[theirs].metrics[metric].mean for report in judged) / len(judged)
            assert line["value"] == pytest.approx(expected, abs=1e-6)
            assert line["n"] == judged[0].slices[theirs].num_requests


@pytest.mark.parametrize("refit", [False, True])
def test_the_lead_over_a_method_is_the_paired_difference(found, refit):
    for method, seeds in (("popularity", (0,)), ("recent", (0, 1, 2))):
        ours = reports("mosaic", protocol="last_out", refit=refit)
        other = reports(method, protocol="last_out", refit=refit, seeds=seeds)
        line = figure(found, "last_out", "mosaic", f"ndcg10_over_{method}" + (".refit" if refit else ""))
        expected = paired(
            torch.stack([r.values_of("ndcg10") for r in ours]),
            torch.stack([r.values_of("ndcg10") for r in other]),
            num_resamples=figures.NUM_RESAMPLES,
        )
        assert line["value"] == pytest.approx(compare(ours, other).difference, abs=1e-6)
        assert [line["low"], line["high"]] == pytest.approx([expected.low, expected.high], abs=1e-6)
        assert (line["against"], line["low"] > 0) == (method, True)


def test_history_slices_part_the_requests(found):
    history = ranks_folder.parts("last_out").test.requests.history.lengths
    short_B = history <= figures.SHORT_HISTORY
    values_B = reports("mosaic", protocol="last_out")[0].values_of("recall10")
    for part, keep_B in (("history_short", short_B), ("history_long", ~short_B)):
        line = figure(found, "last_out", "mosaic", f"recall10.{part}")
        assert line["n"] == int(keep_B.sum()) > 0
        assert line["value"] == pytest.approx(float(values_B[keep_B].mean()), abs=1e-6)


def test_new_and_repeated_are_there_where_both_exist(found):
    targets = figure(found, "last_out", "mosaic", "recall10")["n"]
    parts = [figure(found, "last_out", "mosaic", f"recall10.{part}")["n"] for part in ("new", "repeated")]
    assert sum(parts) == targets
    assert min(parts) > 0


def test_without_repeated_targets_there_is_no_new_slice(tmp_path):
    ranks_folder.write_run(tmp_path, "mosaic")
    path = tmp_path / "shop.last_out.targets.parquet"
    pl.read_parquet(path).with_columns(repeated=pl.lit(False)).write_parquet(path)
    assert not [line for line in figures.figures(tmp_path) if line["figure"].endswith((".new", ".repeated"))]


def test_another_day_restricts_the_requests_of_last_out(found):
    test = ranks_folder.parts("last_out").test
    other_B = test.requests.time_B != test.requests.history.columns["time"][test.requests.history.offsets[1:] - 1]
    values_B = reports("mosaic", protocol="last_out")[0].values_of("ndcg10")
    line = figure(found, "last_out_other_day", "mosaic", "ndcg10")
    assert 0 < line["n"] == int(other_B.sum()) < len(test)
    assert line["value"] == pytest.approx(float(values_B[other_B].mean()), abs=1e-6)
    lead = figure(found, "last_out_other_day", "mosaic", "ndcg10_over_popularity")
    values_B = values_B - reports("popularity", protocol="last_out")[0].values_of("ndcg10")
    assert lead["value"] == pytest.approx(float(values_B[other_B].mean()), abs=1e-6)
    assert not [name for name in found if "global_time_other_day" in name]


def test_nothing_with_refit_is_compared_with_something_without(tmp_path):
    ranks_folder.write_run(tmp_path, "mosaic", refit=True)
    ranks_folder.write_run(tmp_path, "popularity")
    assert not [line for line in figures.figures(tmp_path) if line["against"]]


def test_costs_and_origin_are_those_of_the_runs(found):
    line = figure(found, "last_out", "recent", "train_cpu_s")
    assert (line["value"], line["low"], line["high"], line["unit"], line["n"]) == (3.0, 2.0, 4.0, "s", 3)
    line = figure(found, "last_out", "recent", "ndcg10")
    assert (line["date"], line["peak_rss_bytes"]) == ("2026-11-22T06:00:00+00:00", 2**30 + 2)
    assert (line["command"], line["commit"], line["machine"], line["versions"]) == (
        *("tesserec bench suite.toml", "abc", "box"),
        {"a": "1"},
    )


def test_a_view_is_a_method_of_its_own(tmp_path):
    ranks_folder.write_run(tmp_path, "popularity")
    (tmp_path / "shop.last_out.popularity.seed0.parquet").rename(tmp_path / "shop.last_out.mosaic_x.seed0.parquet")
    ranks_folder.write_run(tmp_path, "mosaic", views=["mosaic_x"])
    (tmp_path / "runs.jsonl").write_text((tmp_path / "runs.jsonl").read_text().splitlines()[-1] + "\n")
    names = {line["figure"] for line in figures.figures(tmp_path)}
    assert "accuracy.shop.last_out.mosaic_x.train_cpu_s" in names
    assert "accuracy.shop.last_out.mosaic.ndcg10_over_mosaic_x" in names


def test_how_soon_generation_passes_tiger_is_a_figure_where_it_does(tmp_path):
    run = {"dataset": "beauty", "recipe": {"fit": {"num_threads": 2}}}
    ranks_folder.write_run(tmp_path, figures.QUICK, train_s=150.0, **run)
    ranks_folder.write_run(tmp_path, figures.QUICK, train_s=15.0, refit=True, **run)
    (found,) = (line for line in figures.figures(tmp_path) if line["figure"] == "accuracy.beauty.minutes_to_tiger")
    assert (found["value"], found["unit"], found["n"], found["seeds"]) == (2.5, "min", 1, [0])
    assert "on 2 threads" in found["protocol"]
    cell, _ = figures.read_cells(tmp_path, "beauty", "last_out", figures.read_runs(tmp_path))
    for low, lines in ((0.0384, 0), (0.0385, 1)):
        judged = [{"figure": f"accuracy.beauty.last_out.{figures.QUICK}.ndcg10", "low": low}]
        assert len(list(figures.quick_lines(cell, judged))) == lines, "as published is not past it"
    ranks = tmp_path / f"beauty.last_out.{figures.QUICK}.seed0.parquet"
    pl.read_parquet(ranks).with_columns(pl.lit(200.0, pl.Float32).alias("rank")).write_parquet(ranks)
    assert not any("minutes" in line["figure"] for line in figures.figures(tmp_path))


def test_the_file_is_a_function_of_the_folder(folder, tmp_path, capsys):
    again = tmp_path / "again"
    write_all(again)
    shuffled = (again / "runs.jsonl").read_text().splitlines()[::-1]
    old = json.dumps(json.loads(shuffled[0]) | {"commit": "old"})
    (again / "runs.jsonl").write_text("\n".join([old, *shuffled]) + "\n")
    for name, ranks in (("one", folder), ("two", again)):
        (tmp_path / name).mkdir()
        assert figures.main(["--ranks", str(ranks), "--results", str(tmp_path / name)]) == 0
    assert (tmp_path / "one" / "accuracy.jsonl").read_bytes() == (tmp_path / "two" / "accuracy.jsonl").read_bytes()
    assert "figures from 20 runs" in capsys.readouterr().out


def test_without_runs_nothing_is_written(tmp_path, capsys):
    assert figures.main(["--ranks", str(tmp_path / "none"), "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 figures from 0 runs")
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    ranks_folder.write_run(tmp_path, "mosaic")
    ranks_folder.write_run(tmp_path, "popularity", data_hash="other")
    with pytest.raises(DataError, match=r"shop\.last_out was run on different data, dddd.*other .*run the older"):
        figures.figures(tmp_path)
    ranks_folder.write_run(tmp_path, "popularity")
    ranks = tmp_path / "shop.last_out.popularity.seed0.parquet"
    pl.read_parquet(ranks).head(3).write_parquet(ranks)
    with pytest.raises(DataError, match=r"popularity\.seed0\.parquet has 3 ranks for 120 targets: run it again"):
        figures.figures(tmp_path)
    ranks.unlink()
    with pytest.raises(DataError, match=r"popularity\.seed0\.parquet does not exist though runs\.jsonl has its run"):
        figures.figures(tmp_path)
    (tmp_path / "runs.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"runs\.jsonl:1: not a run as `tesserec bench` writes it: KeyError"):
        figures.figures(tmp_path)
