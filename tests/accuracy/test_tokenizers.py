"""The page on Semantic IDs: figures of tokenizers, what it advises, what was not run, what is stale."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

import ranks_folder
from benchmarks.semantic_ids import figures
from tesserec.bench_suite import read_suite
from tools import docs, semantic_ids

FOLDER = "benchmarks/results/semantic_ids"
BEAUTY = "tokenizers.beauty.last_out"
CLAIMS = """
[[claim]]
method = "letter"
against = "rq_vae"
source = "L 2024"
said = "more accurate"
[[claim]]
method = "plum"
against = "rq_vae"
source = "P 2025"
said = "ratio 1.17"
[[claim]]
method = "crab"
against = "rq_vae"
source = "C 2026"
said = "less popular"
missing = "nothing makes its vectors"
"""
GRID = """
[[grid]]
datasets = ["beauty"]
protocols = ["last_out"]
methods = ["rq_vae", "rq_kmeans", "letter", "plum"]
seeds = [0, 1, 2]
[[grid]]
datasets = ["toys"]
protocols = ["last_out"]
methods = ["rq_vae"]
"""


def codes(goodness):
    """What a line says of codes that are as good as ``goodness`` in [0, 1]."""
    level = {
        **{"codebook_size": 4, "num_used": 4, "perplexity": 4 * goodness, "gini": 0.5, "most_popular_share": 0.25},
        **{"expected_overlap": 0.5, "effective_capacity": 2.0},
    }
    prefix = {"cosine_within": 0.5, "cosine_random": 0.25, "neighbours_share": None, "random_share": None}
    shared = {"unique_share": 1 - goodness, "shared_items_share": 0.0, "largest_bucket": 1, "noise": 0.1}
    return {**shared, "explained_share": None, "levels": [level], "prefixes": [{"depth": 1, **prefix}]}


def write(root, method, seed=0, *, answers="popularity", goodness=0.5, dataset="beauty", cpu_s=1.0, **changes):
    tokenizer = {"cpu_s": cpu_s, "seconds": 1.0, "peak_rss_bytes": 2**30}
    given = {"tokenizer": tokenizer, "codes": codes(goodness), "training_log": [{"epoch": 1}], **changes}
    ranks_folder.write_run(root / FOLDER, method, dataset=dataset, seed=seed, answers=answers, **given)


def repository(root):
    """A repository in which LETTER answers by co-occurrence, residual k-means too, and the others by popularity."""
    for name, text in (
        ("benchmarks/semantic_ids/claims.toml", CLAIMS),
        ("benchmarks/semantic_ids/suite.toml", GRID),
        ("benchmarks/semantic_ids/methods/letter.toml", '# LETTER: codes that follow.\nbase = "generator"\n'),
        ("benchmarks/README.md", ""),
        ("docs/decoding.md", "<!-- begin decoding: written by `make docs` -->\n<!-- end decoding -->\n"),
        ("docs/reliability.md", "<!-- begin serving: written by `make docs` -->\n<!-- end serving -->\n"),
        ("src/tesserec/x.py", ""),
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
    for seed in (0, 1, 2):
        reads = {
            "semantic_ids": {
                "training": {},
                "losses": [{"class": "tesserec.semantic_ids.letter:CollaborativeAlignment"}],
            }
        }
        for end in ("", "_weak", "_strong"):
            write(root, f"letter{end}", seed, answers="mosaic", goodness=0.9, cpu_s=30.0, recipe=reads)
        write(root, "rq_vae", seed, goodness=0.2, cpu_s=20.0)
        write(root, "rq_kmeans", seed, answers="mosaic", goodness=0.8, cpu_s=0.5)
    write(root, "hashed", goodness=0.1)
    write(root, "pq", goodness=0.3, answers="recent")
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def found(root):
    return semantic_ids.read(root)


@pytest.fixture(scope="module")
def page(found):
    return semantic_ids.page(found, "note")


def row(page, method):
    return [cell.strip() for cell in next(x for x in page.splitlines() if x.startswith(f"| `{method}` |")).split("|")]


def test_a_tokenizer_is_compared_with_both_references_and_the_best(found):
    lines = found.judged.figures
    values = {name: lines[f"{BEAUTY}.{name}.ndcg10"]["value"] for name in ("letter", "rq_vae", "rq_kmeans")}
    assert values["letter"] == values["rq_kmeans"] > values["rq_vae"] > 0
    over = lines[f"{BEAUTY}.letter.ndcg10_over_rq_vae"]
    assert over["value"] == pytest.approx(values["letter"] - values["rq_vae"], abs=2e-6)
    assert 0 < over["low"] < over["value"] < over["high"]
    assert (over["against"], over["n"], over["seeds"]) == ("rq_vae", 120, [0, 1, 2])
    assert f"{BEAUTY}.rq_vae.ndcg10_over_rq_vae" not in lines
    best = lines[f"{BEAUTY}.rq_vae.ndcg10_over_best"]
    assert best["value"] == pytest.approx(-over["value"], abs=2e-6)
    assert best["high"] < 0


def test_a_row_has_accuracy_differences_and_costs(found, page):
    cells = row(page, "letter")
    figure = found.judged.figures[f"{BEAUTY}.letter.ndcg10"]
    assert cells[2] == f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})"
    assert cells[4].startswith("+0.")
    assert cells[6:9] == ["30", "1,024", "0, 1, 2"]
    assert row(page, "rq_vae")[4] == ""
    assert "* `letter`: LETTER: codes that follow." in page
    assert "over requests and seeds (requests alone where there is one seed)." in page


def test_the_advice_follows_from_the_figures(page):
    advice = page[page.index("## What to take") : page.index("## beauty, last_out")]
    first = advice.splitlines()[2]
    assert first == "* All this is provisional: not all of the grid was run on beauty, see below."
    assert "has the best N@10 on beauty" in advice
    assert (
        "So far `rq_kmeans`: of those that are level with the best, its codes cost the least to fit (0.5 CPU-s)"
        in advice
    )
    assert "**" not in advice
    assert "* Plain RQ-VAE over residual k-means: -0." in advice
    assert "at 40 times the CPU seconds; training one with nothing but vectors is not worth it. The best of" in advice
    assert "those that are trained with more, `letter`: +0.0000 (" in advice
    assert "Codes at random reach" in advice
    assert "The best 2 beside the references, to be run elsewhere too: `letter` and `pq`." in advice


def test_a_tokenizer_is_judged_at_the_strength_that_is_best_on_validation(tmp_path):
    root = repository(tmp_path)
    runs = root / FOLDER / "runs.jsonl"
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    for line in lines:
        line["training_log"] = [{"epoch": 1, "validation": 0.9}, {"epoch": 2, "validation": 0.1}]
        if line["method"] == "letter_strong":
            line["training_log"][-1]["validation"] = 0.2
    runs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = semantic_ids.read(root)
    assert set(figures.at_best_strength(lines)) == {"letter_strong", "rq_vae", "rq_kmeans", "hashed", "pq"}
    page = semantic_ids.page(found, "note")
    assert "to be run elsewhere too: `letter_strong` and `pq`." in page
    assert found.judged.figures[f"{BEAUTY}.predicted_by_perplexity_share.spearman"]["n"] == 5


def test_one_is_to_be_taken_when_all_of_the_grid_was_run(tmp_path):
    root = repository(tmp_path)
    suite = root / "benchmarks" / "semantic_ids" / "suite.toml"
    suite.write_text(suite.read_text().replace(', "plum"', ""))
    page = semantic_ids.page(semantic_ids.read(root), "note")
    assert "provisional" not in page
    assert "* **Take `rq_kmeans`**: of those that are level with the best, its codes cost the least" in page


def test_content_alone_is_advised_where_the_best_reads_events(tmp_path):
    root = repository(tmp_path)
    runs = root / FOLDER / "runs.jsonl"
    lines = [json.loads(line) for line in runs.read_text().splitlines()]
    runs.write_text("".join(json.dumps(line) + "\n" for line in lines if line["method"] != "rq_kmeans"))
    page = semantic_ids.page(semantic_ids.read(root), "note")
    assert "Where items have no events yet, codes come from content alone: `" in page
    assert "`letter` has the best N@10 on beauty" in page


def test_a_claim_is_a_ratio_beside_its_source(found, page):
    figure = found.judged.figures["claims.letter.ndcg10"]
    values = [found.judged.figures[f"{BEAUTY}.{name}.ndcg10"]["value"] for name in ("letter", "rq_vae")]
    assert figure["value"] == pytest.approx(values[0] / values[1], rel=1e-4)
    assert (figure["unit"], figure["against"], figure["seeds"]) == ("ratio", "rq_vae", [0, 1, 2])
    claims = page[page.index("## What was published") :]
    assert row(claims, "letter")[3:7] == ["`rq_vae`", "0, 1, 2", "better", "more accurate (L 2024)"]
    assert row(claims, "letter_weak")[5:7] == ["better", ""]
    assert "Not run: `plum` (P 2025)." in claims
    assert "Cannot be run by this suite: `crab`, because nothing makes its vectors." in claims


def effect(*intervals, seeds=(0, 1, 2)):
    names = ["a", "a_weak", "a_strong"][: len(intervals)]
    lines = {f"claims.{name}.ndcg10": {"low": i[0], "high": i[1]} for name, i in zip(names, intervals, strict=True)}
    runs = [
        {"dataset": "beauty", "protocol": "last_out", "method": name, "views": [], "seed": seed}
        for name in names
        for seed in seeds
    ]
    found = semantic_ids.Tokenizers(semantic_ids.Accuracy(runs, lines, (), ()))
    return list(semantic_ids._effect(found, ["a", "a_weak", "a_strong"]).values())


def test_an_effect_is_absent_only_after_three_strengths_and_seeds():
    absent = "; no gain at any strength"
    assert effect((0.9, 1.1)) == ["not clear"]
    assert effect((0.9, 1.1), (0.8, 0.9), (0.9, 1.1)) == ["not clear" + absent, "worse" + absent, "not clear" + absent]
    assert effect((0.9, 1.1), (0.8, 0.9), (0.9, 1.1), seeds=(0, 1)) == ["not clear", "worse", "not clear"]
    assert effect((0.9, 1.1), (0.8, 0.9), (1.1, 1.2)) == ["not clear", "worse", "better"]


def test_what_the_grid_has_and_nobody_ran_is_named(page):
    assert "Not run: `plum` (seeds 0, 1, 2)." in page
    assert "Nothing was run yet of: toys, last_out." in page


def test_diagnostics_are_correlated_by_rank(found, page):
    figure = found.judged.figures[f"{BEAUTY}.predicted_by_perplexity_share.spearman"]
    names = ["letter", "rq_vae", "rq_kmeans", "hashed", "pq"]
    values = [found.judged.figures[f"{BEAUTY}.{name}.ndcg10"]["value"] for name in names]
    assert figure["value"] == pytest.approx(spearmanr([0.9, 0.2, 0.8, 0.1, 0.3], values).statistic, abs=1e-6)
    assert -1 <= figure["low"] < figure["value"] < figure["high"] <= 1
    assert figure["n"] == 5
    opposite = found.judged.figures[f"{BEAUTY}.predicted_by_unique_share.spearman"]
    assert opposite["value"] == pytest.approx(-figure["value"], abs=1e-6)
    assert not any("explained_share" in name for name in found.judged.figures), "no run knows it"
    assert not any("evenness" in name for name in found.judged.figures), "it is the same for all"
    table = page[page.index("## What the diagnostics tell") :]
    assert f"| `perplexity_share`: {figures.DIAGNOSTICS['perplexity_share']} | {figure['value']:+.2f} (" in table


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    first, second = rng.integers(5, size=(8, 20)), rng.normal(size=(8, 20))
    expected = [spearmanr(first[:, r], second[:, r]).statistic for r in range(20)]
    assert figures._correlation(first, second) == pytest.approx(expected)


def test_lines_without_the_new_keys_are_shown_without_them(tmp_path):
    ranks_folder.write_run(tmp_path / FOLDER, "rq_vae", dataset="beauty", answers="mosaic")
    ranks_folder.write_run(tmp_path / FOLDER, "rq_kmeans", dataset="beauty", answers="popularity", codes=None)
    page = semantic_ids.page(semantic_ids.read(tmp_path), "note")
    assert row(page, "rq_vae")[6:9] == ["", "", "0"]
    assert page.count("over requests (one seed)") == 1
    assert "over tokenizers,\nrequests (one seed); none over" in page
    assert f"| `perplexity_share`: {figures.DIAGNOSTICS['perplexity_share']} |  |  |" in page
    assert "RQ-VAE over residual k-means: +0." in page
    assert "times the CPU seconds" not in page


def test_another_data_set_names_its_first(tmp_path):
    for method, answers in (("rq_vae", "popularity"), ("rq_kmeans", "mosaic")):
        write(tmp_path, method, dataset="toys", answers=answers)
    page = semantic_ids.page(semantic_ids.read(tmp_path), "note")
    assert "Nothing was run on beauty, last_out yet, by which it is decided." in page
    for method, answers in (("rq_vae", "popularity"), ("rq_kmeans", "mosaic")):
        write(tmp_path, method, answers=answers)
    page = semantic_ids.page(semantic_ids.read(tmp_path), "note")
    assert "* On toys (2 were run), `rq_kmeans` is first." in page


def test_a_page_without_runs_says_so_and_check_notices_what_is_stale(tmp_path, capsys):
    root = repository(tmp_path)
    assert docs.main([], root) == 0
    assert docs.main(["--check"], root) == 0
    assert "claims.letter.ndcg10" in (root / "docs" / "results.md").read_text()
    assert BEAUTY not in (root / "docs" / "results.md").read_text()
    write(root, "pq", 1, answers="recent")
    assert docs.main(["--check"], root) == 1
    stale = capsys.readouterr().err
    assert "docs/semantic-ids.md:1: stale" in stale
    assert semantic_ids.FIGURES_FILE in stale
    (root / FOLDER / "runs.jsonl").unlink()
    assert docs.main([], root) == 0
    assert not (root / semantic_ids.FIGURES_FILE).exists()
    page = (root / "docs" / "semantic-ids.md").read_text()
    assert semantic_ids.NO_RUNS in page
    assert "Nothing was run yet of: beauty, last_out; toys, last_out." in page


def test_runs_that_do_not_fit_are_named(tmp_path, capsys):
    root = repository(tmp_path)
    (root / "examples" / "quickstart.out").write_text("printed\n")
    (root / FOLDER / "beauty.last_out.letter.seed0.parquet").unlink()
    assert docs.main(["--check"], root) == 1
    assert "benchmarks/results/semantic_ids:1: " in capsys.readouterr().err


def test_the_script_writes_the_same_figures(root, capsys):
    assert figures.main(["--results", str(root / "benchmarks" / "results")]) == 0
    written = (root / semantic_ids.FIGURES_FILE).read_text().splitlines()
    assert f"{len(written)} figures from 17 runs" in capsys.readouterr().out
    assert len(written) == len({json.loads(line)["figure"] for line in written})


def test_every_method_of_the_repository_can_be_run():
    suite = read_suite(Path(docs.ROOT) / "benchmarks" / "semantic_ids" / "suite.toml", Path("nowhere"))
    runs = suite.runs()
    assert {run.recipe["retriever"]["answer"] for run in runs} == {"generative"}
    generators = {(run.dataset, json.dumps([run.recipe["retriever"], run.recipe["fit"]])) for run in runs}
    assert len(generators) == len(suite.datasets), "one generator for all tokenizers of a data set"
    claimed = {claim["method"] for claim in figures.read_claims() if "missing" not in claim}
    assert claimed | {name + end for name in claimed for end in figures.STRENGTHS} <= {run.method for run in runs}
