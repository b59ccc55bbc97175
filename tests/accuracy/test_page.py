"""The accuracy part of the page of results: tables, sentences, what was not run, plots, and what is stale."""

import dataclasses
from pathlib import Path

import pytest

import ranks_folder
from tools import accuracy, docs

RANKS = "benchmarks/results/ranks"
PUBLISHED = """
[[method]]
name = "A, paper"
source = "A 2023"
note = "history of up to 20"
shop = { recall10 = 0.0648, ndcg10 = 0.0384 }
[[method]]
name = "B, paper"
source = "B 2024"
shop = { recall10 = 0.0809, ndcg10 = 0.0464 }
other = { recall10 = 0.1, ndcg10 = 0.1 }
"""
GRID = """
[[grid]]
datasets = ["shop"]
protocols = ["last_out"]
methods = ["mosaic", "popularity", "recent"]
seeds = [0, 1, 2]
refit = [false, true]
[[grid]]
datasets = ["toys"]
protocols = ["last_out", "global_time"]
methods = ["mosaic"]
"""


def repository(root):
    """A repository with two methods on two protocols, three seeds of one of them."""
    for name, text in (
        ("benchmarks/accuracy/published.toml", PUBLISHED),
        ("benchmarks/README.md", ""),
        ("docs/decoding.md", "<!-- begin decoding: written by `make docs` -->\n<!-- end decoding -->\n"),
        ("docs/reliability.md", "<!-- begin serving: written by `make docs` -->\n<!-- end serving -->\n"),
        ("examples/quickstart.py", 'print("printed")\n'),
        ("docs/x.md", ""),
        (
            "README.md",
            "<!-- begin quickstart: written by `make docs` -->\n<!-- end quickstart -->\n"
            "<!-- begin accuracy: written by `make docs` -->\n<!-- end accuracy -->\n"
            "<!-- begin demo: written by `make docs` -->\n<!-- end demo -->\n",
        ),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for protocol in ("last_out", "global_time"):
        ranks_folder.write_run(root / RANKS, "mosaic", protocol=protocol)
        ranks_folder.write_run(root / RANKS, "popularity", protocol=protocol)
    ranks_folder.write_run(root / RANKS, "mosaic", refit=True)
    for seed in (0, 1):
        ranks_folder.write_run(root / RANKS, "recent", seed=seed, training_log=[{"epoch": 1}])
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def found(root):
    return accuracy.read(root)


@pytest.fixture(scope="module")
def lines(found):
    return accuracy.section(found)


def part(lines, heading):
    """The lines below a heading of the section, up to the next."""
    start = lines.index(heading) + 1
    ends = [n for n in range(start, len(lines)) if lines[n].startswith("### ")]
    return lines[start : min(ends, default=len(lines))]


def test_a_table_has_the_best_first_with_its_interval_and_costs(found, lines):
    rows = [line for line in part(lines, "### shop, last_out") if line.startswith("| `")]
    assert rows[0].startswith("| `mosaic` |")
    values = [found.figures[f"accuracy.shop.last_out.{row.split('`')[1]}.ndcg10"]["value"] for row in rows[:3]]
    assert values == sorted(values, reverse=True)
    ours, recent = rows[0], next(row for row in rows if "`recent`" in row)
    cells = [cell.strip() for cell in ours.split("|")[1:-1]]
    figure, refit = (found.figures[f"accuracy.shop.last_out.mosaic.ndcg10{end}"] for end in ("", ".refit"))
    assert cells[1] == f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
    assert cells[3] == f"{refit['value']:.4f} ({refit['low']:.4f} to {refit['high']:.4f})"
    assert cells[5:] == ["", "2", "1,024", "1,234", "0.50", "0"]
    cells = [cell.strip() for cell in recent.split("|")[1:-1]]
    lead = found.figures["accuracy.shop.last_out.mosaic.ndcg10_over_recent"]
    assert cells[5] == f"{lead['value']:+.4f} ({lead['low']:+.4f} to {lead['high']:+.4f})"
    assert (cells[3], cells[4], cells[-1]) == ("", "", "0, 1")


def test_what_is_asked_is_said_above_the_table(lines):
    assert any(
        "120 requests; items that the user had are allowed in" in line for line in part(lines, "### shop, last_out")
    )
    assert any("T1 = " in line for line in part(lines, "### shop, global_time"))


def test_published_figures_stand_apart_and_only_where_their_protocol_is(lines):
    table = part(lines, "### shop, last_out")
    assert table[table.index(accuracy.PUBLISHED_HEAD[0]) + 2 :][:2] == [
        "| B, paper | 0.0464 | 0.0809 |  | B 2024 |",
        "| A, paper | 0.0384 | 0.0648 | history of up to 20 | A 2023 |",
    ]
    for heading in ("### shop, global_time", "### shop, last_out_other_day"):
        assert accuracy.PUBLISHED_HEAD[0] not in part(lines, heading)


def planted(**values):
    """Figures of one cell from ``method__slice=(value, low, high)``; over all requests where there is no slice."""
    figures = {}
    for name, (value, low, high) in values.items():
        method, _, piece = name.partition("__")
        full = ".".join(filter(None, ["accuracy.shop.last_out", method, "ndcg10", piece]))
        figures[full] = {"figure": full, "value": value, "low": low, "high": high, "n": 9}
    return accuracy.Accuracy((), figures, (), ())


def test_what_a_part_is_worth_stands_in_a_table_of_its_own(tmp_path):
    for method in ("mosaic", "popularity", "mosaic_without_luck"):
        ranks_folder.write_run(tmp_path / RANKS, method)
    found = accuracy.read(tmp_path)
    table = part(accuracy.section(found), "### shop, last_out")
    assert [line.split("`")[1] for line in table if line.startswith("| `")] == ["mosaic", "popularity"]
    row = table[table.index(accuracy.PARTS_HEAD[0]) + 2]
    figure, lead = (
        found.figures[f"accuracy.shop.last_out.{name}"]
        for name in ("mosaic_without_luck.ndcg10", "mosaic.ndcg10_over_mosaic_without_luck")
    )
    assert row.startswith(f"| luck, of `mosaic` | {figure['value']:.4f} (")
    assert f"| {lead['value']:+.4f} ({lead['low']:+.4f} to {lead['high']:+.4f}) |" in row
    assert not any("without_luck" in line for line in table if line.startswith(("By N@10", "Not searched")))
    assert all("without_luck" not in svg for _, svg in accuracy.plots(found))


def test_what_order_is_worth_stands_beside_the_figure_with_it(tmp_path):
    for dataset in ("shop", "shop_ties_shuffled"):
        ranks_folder.write_run(tmp_path / RANKS, "mosaic", dataset=dataset)
    ranks_folder.write_run(tmp_path / RANKS, "popularity")
    found = accuracy.read(tmp_path)
    lines = accuracy.section(found)
    assert not any(line.startswith("### shop_ties") for line in lines)
    table = part(lines, "### shop, last_out")
    rows = table[table.index(accuracy.SHUFFLED_HEAD[0]) + 2 :]
    shown = " ".join(rows[0].split("|")[2].split())
    assert [" ".join(cell.split()) for cell in rows[0].split("|")[1:-1]] == ["`mosaic`", shown, shown, "100%"]
    assert not rows[1].startswith("| `popularity`")


def test_the_sentence_names_the_planted_winners():
    found = planted(
        a=(0.30, 0.29, 0.31),
        b=(0.20, 0.19, 0.21),
        c=(0.10, 0.09, 0.11),
        a__cold=(0.0, 0.0, 0.0),
        b__cold=(0.0, 0.0, 0.0),
        a__tail=(0.1, 0.09, 0.11),
        b__tail=(0.3, 0.25, 0.35),
        a__head=(0.30, 0.28, 0.32),
        b__head=(0.29, 0.27, 0.31),
        c__head=(0.31, 0.29, 0.33),
        c__history_short=(0.2, 0.1, 0.3),
    )
    assert accuracy._winners(found, "shop", "last_out") == (
        "By N@10 without refit: over all requests `a` leads (0.3000; next `b` 0.2000); "
        "on items unseen in training no method finds any; in the tail `b` leads (0.3000; next `a` 0.1000); "
        "in the head `c` is first (0.3100), not clearly before `a` and `b`; "
        "with histories of up to 4 events only `c` was run (0.2000)."
    )


@pytest.mark.parametrize(
    ("low", "words"), [(0.001, "leads (0.3000; next `b` 0.2900)"), (-0.001, "not clearly before `b`")]
)
def test_mosaic_leads_by_paired_differences(low, words):
    found = planted(mosaic=(0.30, 0.28, 0.32), b=(0.29, 0.27, 0.31))
    found.figures["accuracy.shop.last_out.mosaic.ndcg10_over_b"] = {"low": low}
    assert words in accuracy._winners(found, "shop", "last_out")


def test_the_real_winner_of_a_slice_is_named(lines):
    words = next(line for line in part(lines, "### shop, last_out") if line.startswith("By N@10"))
    assert "over all requests `mosaic` leads" in words
    assert "on items unseen in training no method finds any" in words


def test_cells_of_the_grid_without_a_run_are_named(root):
    path = root / "benchmarks" / "accuracy" / "suite.toml"
    path.write_text(GRID)
    lines = accuracy.section(accuracy.read(root))
    path.unlink()
    assert "Not run: `popularity` with refit (seed 0); `recent` (seed 2); `recent` with refit (seeds 0, 1, 2)." in part(
        lines, "### shop, last_out"
    )
    assert "Nothing was run yet of: toys, global_time; toys, last_out." in lines
    assert not [line for line in part(lines, "### shop, global_time") if "run" in line.split(" ")[:2]]


def test_where_settings_come_from_is_said(root):
    methods = sorted({run["method"] for run in accuracy.read(root).runs})

    def said(protocol):
        return [
            line
            for line in part(accuracy.section(accuracy.read(root)), f"### shop, {protocol}")
            if line.startswith(("Not searched", "Searched"))
        ]

    assert said("last_out") == ["Not searched, at settings chosen by hand: `mosaic`, `popularity` and `recent`."]
    trials = root / "benchmarks" / "results" / "tuning"
    trials.mkdir(parents=True)
    for method in methods:
        (trials / f"shop.last_out.{method}.jsonl").write_text("{}\n", encoding="utf-8")
    assert said("last_out") == []
    assert said("global_time") == ["Searched on other data only: `mosaic` and `popularity`."]


def test_runs_with_other_settings_than_the_suite_has_are_named(root, found):
    (name,) = {run["run"] for run in found.runs if run["method"] == "recent" and run["seed"] == 1}
    older = dataclasses.replace(found, outdated=frozenset([name]))
    assert f"Measured with earlier settings: `{name}`." in part(accuracy.section(older), "### shop, last_out")
    assert not any(line.startswith("Measured with") for line in accuracy.section(found))


def test_a_whole_grid_is_said_to_be_whole(root):
    path = root / "benchmarks" / "accuracy" / "suite.toml"
    path.write_text(
        '[[grid]]\ndatasets = ["shop"]\nprotocols = ["global_time"]\nmethods = ["mosaic"]\nseeds = [0, 1]\n'
    )
    lines = accuracy.section(accuracy.read(root))
    path.unlink()
    assert "All of the grid was run here." in part(lines, "### shop, global_time")
    assert not [line for line in lines if line.startswith("Not run")]


def test_where_runs_come_from_is_said_once_a_group(lines):
    assert (
        "| shop.global_time (2), shop.last_out (4) | `tesserec bench suite.toml` | `abc` | box | 2026-11-20 |" in lines
    )
    assert "| shop.last_out (1) | `tesserec bench suite.toml` | `abc` | box | 2026-11-21 |" in lines


def test_plots_have_the_same_bytes_each_time_and_no_date(found):
    first = dict(accuracy.plots(found))
    assert first == dict(accuracy.plots(found))
    assert list(first) == [name for name, _ in accuracy.plot_names(found)]
    assert list(first) == [f"accuracy_{p}{end}.svg" for p in ("last_out", "global_time") for end in ("", "_slices")]
    for svg in first.values():
        assert ">shop</text>" in svg
        assert ">mosaic</text>" in svg
        assert "dc:date" not in svg


def test_check_fails_where_figures_or_plots_are_stale(tmp_path, capsys):
    repository(tmp_path)
    (tmp_path / "src" / "tesserec").mkdir(parents=True)
    assert docs.main([], tmp_path) == 0
    assert docs.main(["--check"], tmp_path) == 0
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "![last_out: N@10 against the CPU seconds of training](accuracy_last_out.svg)" in page
    assert "`accuracy.shop" not in page
    figures = tmp_path / accuracy.FIGURES_FILE
    plot = tmp_path / "docs" / "accuracy_last_out.svg"
    for path in (figures, plot):
        kept = path.read_text()
        path.write_text(kept.replace("0.", "1.", 1))
        assert docs.main(["--check"], tmp_path) == 1
        assert f"{path.relative_to(tmp_path)}:1: stale: run `make docs`" in capsys.readouterr().err
        path.write_text(kept)
    ranks_folder.write_run(tmp_path / RANKS, "recent", seed=2)
    assert docs.main(["--check"], tmp_path) == 1
    stale = capsys.readouterr().err
    assert accuracy.FIGURES_FILE in stale
    assert "docs/accuracy_last_out.svg" in stale
    assert "docs/results.md" in stale
    assert "global_time" not in stale


def test_what_has_no_run_behind_it_any_more_is_stale_and_deleted(tmp_path, capsys):
    repository(tmp_path)
    (tmp_path / "src" / "tesserec").mkdir(parents=True)
    assert docs.main([], tmp_path) == 0
    runs = tmp_path / RANKS / "runs.jsonl"
    runs.unlink()
    assert docs.main(["--check"], tmp_path) == 1
    assert "docs/accuracy_last_out.svg:1: stale: no run is behind it; `make docs` deletes it" in capsys.readouterr().err
    assert docs.main([], tmp_path) == 0
    assert docs.main(["--check"], tmp_path) == 0
    assert not list((tmp_path / "docs").glob("*.svg"))
    assert not (tmp_path / accuracy.FIGURES_FILE).exists()
    assert accuracy.NO_RUNS in (tmp_path / "docs" / "results.md").read_text()


def test_the_headline_has_both_columns_and_what_was_published(found):
    value = found.figures["accuracy.shop.last_out.mosaic.ndcg10"]["value"]
    refit = found.figures["accuracy.shop.last_out.mosaic.ndcg10.refit"]["value"]
    assert accuracy.headline(found, ["shop"]).splitlines() == [
        "| NDCG@10 | Shop | Shop, refit |",
        "|---|--:|--:|",
        f"| `mosaic` | {value:.4f} | {refit:.4f} |",
        "| A, paper | 0.0384 |  |",
        "| B, paper | 0.0464 |  |",
    ]
    assert accuracy.headline(found) == accuracy.NO_RUNS


def test_ranks_that_do_not_fit_are_named(tmp_path, capsys):
    repository(tmp_path)
    (tmp_path / RANKS / "shop.last_out.mosaic.seed0.parquet").unlink()
    (tmp_path / "examples" / "quickstart.out").write_text("printed\n")
    assert docs.main(["--check"], tmp_path) == 1
    assert "mosaic.seed0.parquet does not exist though runs.jsonl has its run" in capsys.readouterr().err


def test_the_published_figures_of_the_repository_are_complete():
    for method in accuracy.read(Path(docs.ROOT)).published:
        assert method["source"]
        for dataset in ("beauty", "sports", "toys"):
            assert 0 < method[dataset]["ndcg10"] < method[dataset]["recall10"] < 1
