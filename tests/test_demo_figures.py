"""The figures of the demo are those of its bundle."""

import json

import pytest

import shop
from benchmarks import demo
from tesserec.bundle import publish
from tesserec.evaluation import compare


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("demo") / "bundle", shop.contents())


def test_each_method_has_its_figures_and_a_test_against_ours(bundle, tmp_path):
    bundle.manifest.recipe["data"]["source"] = "shop"
    demo.save(bundle, tmp_path)
    lines = {line["figure"]: line for line in map(json.loads, (tmp_path / "demo.jsonl").read_text().splitlines())}
    ours, other = bundle.reports
    assert set(lines) == {
        *(f"demo.{name}.{metric}" for name in (ours, other) for metric in ("ndcg10", "recall10")),
        f"demo.{ours}.ndcg10_over_{other}",
        f"demo.{ours}.train_s",
        f"demo.{ours}.peak_rss_bytes",
    }
    found = bundle.reports[other].metrics["recall10"]
    line = lines[f"demo.{other}.recall10"]
    assert (line["value"], line["low"], line["high"]) == (found.mean, found.low, found.high)
    assert (line["dataset"], line["seeds"], line["n"]) == ("shop", [3], bundle.reports[ours].num_requests)
    test = compare(bundle.reports[ours], bundle.reports[other])
    line = lines[f"demo.{ours}.ndcg10_over_{other}"]
    assert (line["value"], line["low"], line["high"], line["against"]) == (
        test.difference,
        test.low,
        test.high,
        bundle.reports[other].label,
    )
    assert line["protocol"].endswith(f"paired; p = {test.p_value:.4f}")
    assert lines[f"demo.{ours}.train_s"]["value"] == bundle.reports[ours].costs["train_s"]


def test_without_the_demo_it_says_how_to_make_it(bundle, tmp_path, capsys):
    assert demo.main(["--bundle", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"there is no bundle at {tmp_path}: `make demo` makes it\n"
    assert demo.main(["--bundle", str(bundle.folder), "--results", str(tmp_path)]) == 2
    assert "is not of" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
