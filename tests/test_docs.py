"""The generated pages: headers of method files, figures, sections of the README."""

import json
import textwrap

import pytest

from tools import accuracy, docs

HEADER = '''
"""EASE: a linear model.

Paper: Steck 2019,
    arXiv 1905.03375.
Adds: B = I < P * c.
Differs: nothing.
Checked: tests/retrievers/test_ease.py (closed form).

Dimensions: N items.
"""
@component
class EASE:
    def fit(self): ...

@component
class Settings:
    x: int = 0

class Helper:
    def fit(self): ...
'''


@pytest.fixture
def root(tmp_path):
    """A repository with one method, one figure, an example and a README."""
    write(tmp_path, "src/tesserec/retrievers/ease.py", HEADER)
    write(tmp_path, "src/tesserec/retrievers/evidence.py", '"""Shared helpers."""')
    write(
        tmp_path, "src/tesserec/data/splits.py", '"""Splits."""\n@component\nclass SplitConfig:\n    def fit(self): ...'
    )
    write(tmp_path, "tests/retrievers/test_ease.py", "")
    write(
        tmp_path, "benchmarks/results/house.jsonl", line("house.x_s", 3.0) + line("house.x_s", 0.25, low=0.2, high=1.0)
    )
    write(tmp_path, "examples/quickstart.py", 'print("printed")\n')
    write(tmp_path, "docs/methods.md", "old")
    write(tmp_path, "benchmarks/README.md", "# Benchmarks\n")
    write(tmp_path, "docs/decoding.md", "<!-- begin decoding: written by `make docs` -->\n<!-- end decoding -->\n")
    write(tmp_path, "docs/reliability.md", "<!-- begin serving: written by `make docs` -->\n<!-- end serving -->\n")
    write(
        tmp_path,
        "README.md",
        """
        # t
        <!-- begin quickstart: written by `make docs` -->
        old
        <!-- end quickstart -->
        between
        <!-- begin accuracy: written by `make docs` -->
        <!-- end accuracy -->
        <!-- begin demo: written by `make docs` -->
        <!-- end demo -->
        the end
        """,
    )
    return tmp_path


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")


def line(figure, value, low=None, high=None, **other):
    fields = {"figure": figure, "value": value, "unit": "s", "low": low, "high": high, "n": 5, "against": None}
    fields |= {"dataset": None, "protocol": "a | b", "seeds": [1, 2], "peak_rss_bytes": 2**30, "command": "run x"}
    fields |= {"commit": "abc", "machine": "box", "date": "2026-11-23T06:00:00+00:00"}
    return json.dumps(fields | other) + "\n"


def test_check_fails_while_a_page_is_stale_and_names_the_remedy(root, capsys):
    write(root, "examples/quickstart.out", "printed\n")
    assert docs.main(["--check"], root) == 1
    assert "docs/methods.md:1: stale: run `make docs` and commit what it writes" in capsys.readouterr().err
    assert (root / "docs/methods.md").read_text() == "old"
    assert docs.main([], root) == 0
    assert docs.main(["--check"], root) == 0
    write(root, "src/tesserec/retrievers/ease.py", HEADER.replace("linear", "shallow"))
    assert docs.main(["--check"], root) == 1


def test_methods_are_read_from_their_headers(root):
    methods, problems = docs.read_methods(root)
    assert problems == []
    assert [(m.path, m.stage, m.title, m.classes) for m in methods] == [
        ("src/tesserec/retrievers/ease.py", "retrievers", "EASE: a linear model.", ("EASE",))
    ]
    assert methods[0].header == {
        "Paper": "Steck 2019, arXiv 1905.03375.",
        "Adds": "B = I < P * c.",
        "Differs": "nothing.",
        "Checked": "tests/retrievers/test_ease.py (closed form).",
    }
    page = docs.methods_page(methods)
    assert "## retrievers\n\n### [EASE](../src/tesserec/retrievers/ease.py)\n\nA linear model.\n" in page
    assert "* In a recipe: `tesserec.retrievers.ease:EASE`\n* Paper: Steck 2019, arXiv 1905.03375.\n" in page
    assert r"* Adds: B = I &lt; P \* c." in page


def test_methods_are_in_the_order_data_flows(root):
    for stage in ("zebra", "semantic_ids", "embedders"):
        write(root, f"src/tesserec/{stage}/one.py", HEADER)
    assert [m.stage for m in docs.read_methods(root)[0]] == ["embedders", "semantic_ids", "retrievers", "zebra"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "Differs: nothing.\n",
            "",
            "ease.py:1: the module header has no `Differs:`; a method file has Paper, Adds, Differs",
        ),
        ("nothing.", "", "ease.py:6: `Differs:` says nothing: write it out"),
        ("test_ease", "test_gone", "ease.py:7: `Checked:` names tests/retrievers/test_gone.py, which does not exist"),
        ('"""EASE: a linear model.', '"""', "ease.py:1: a method file begins with a docstring whose first line"),
    ],
)
def test_an_incomplete_header_is_refused_by_file_and_line(root, capsys, old, new, problem):
    assert old in HEADER
    write(root, "examples/quickstart.out", "printed\n")
    write(root, "src/tesserec/retrievers/ease.py", HEADER.replace(old, new))
    assert docs.main(["--check"], root) == 1
    assert problem in capsys.readouterr().err


def test_a_method_without_any_header_is_refused_in_a_stage_only(root):
    write(
        root, "src/tesserec/embedders/bare.py", '"""Bare."""\n@config.component\nclass Bare:\n    def embed(self): ...'
    )
    problems = docs.read_methods(root)[1]
    assert problems == [
        "src/tesserec/embedders/bare.py:1: the module header has no `Paper:`, `Adds:`, `Differs:`, `Checked:`; "
        "a method file has Paper, Adds, Differs, Checked (CONTRIBUTING.md)"
    ]


def test_the_latest_line_of_a_figure_counts(root):
    results, problems = docs.read_results(root)
    assert problems == []
    assert results["house.x_s"]["value"] == 0.25
    page = docs.results_page(results, accuracy.read(root))
    row = r"| `house.x_s` | 0.25 | 0.2 to 1 | s | 5 | a \| b; seeds 1, 2; peak memory 1,024 MiB |"
    assert row in page
    assert "| `house.x_s` | `run x` | `abc` | box | 2026-11-23 |" in page


def test_cells_of_a_figure_are_not_on_the_page(root):
    results, _ = docs.read_results(root)
    results["house.cells.x.seed0"] = results["house.x_s"] | {"figure": "house.cells.x.seed0"}
    assert "cells" not in docs.results_page(results, accuracy.read(root))


def test_a_line_that_is_no_figure_is_named(root, capsys):
    write(root, "examples/quickstart.out", "printed\n")
    write(root, "benchmarks/results/area.jsonl", line("area.x", 1) + "{}\n")
    assert docs.main(["--check"], root) == 1
    assert "benchmarks/results/area.jsonl:2: not a figure as benchmarks/_record.py writes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"), [(0.123456, "0.1235"), (385000, "385,000"), (1234.56, "1,235"), (12.0, "12"), (12.345, "12.35")]
)
def test_numbers(value, text):
    assert docs.number(value) == text


def test_a_figure_of_uncommitted_code_is_no_result(root, capsys):
    write(root, "benchmarks/results/area.jsonl", line("area.x", 1.0) + line("area.y", 2.0, commit="abc-dirty"))
    assert docs.main(["--check"], root) == 1
    assert "benchmarks/results/area.jsonl:2: measured with changes that no commit holds" in capsys.readouterr().err


def test_the_page_of_decoding_shows_costs_by_size_and_other_figures(root):
    assert docs.main([], root) == 0
    page = root / "docs" / "decoding.md"
    assert "nothing is recorded yet" in page.read_text()
    costs = ("build_s", "build_peak_bytes", "automaton_bytes", "constraint_ms", "constraint_masked_ms", "mask_ms")
    lines = [line(f"decoding.{name}.10k", 2_000_000, 1e6, 3e6, dataset="codes of nothing") for name in costs]
    others = [line("decoding.insert_10k_s", 0.5, 0.4, 0.6), line("decoding.ratio.beam50", 9.0, against="another")]
    write(root, "benchmarks/results/decoding.jsonl", "".join([*lines, *others]))
    assert docs.main([], root) == 0
    text = page.read_text()
    assert "| 10k | 2e+06 | 2.0 | 2.0 | 2e+06 | 2e+06 | 2e+06 |" in text
    assert "Codes of nothing. One request, 50 beams; box." in text
    assert "* `decoding.ratio.beam50`: 9 s, against another. a | b" in text
    assert "* `decoding.insert_10k_s`: 0.5 s (0.4 to 0.6). a | b" in text
    assert (root / "docs" / "decoding_growth.svg").read_text().startswith("<?xml")
    assert docs.main(["--check"], root) == 0


def test_the_readme_shows_the_example_and_what_it_really_printed(root):
    assert docs.main([], root) == 0
    text = (root / "README.md").read_text()
    assert (
        '```python\nprint("printed")\n```\n\nIt prints\n\n```\nprinted\n```\n<!-- end quickstart -->\nbetween\n' in text
    )
    assert "none are recorded yet.\n<!-- end demo -->\nthe end\n" in text
    assert "old" not in text


def test_the_readme_shows_the_demo_best_first(root):
    figures = [("ease.ndcg10", 0.1), ("mosaic.ndcg10", 0.2), ("mosaic.recall10", 0.3), ("mosaic.train_s", 9.0)]
    lines = [line(f"demo.{name}", value, low=value - 0.01, high=value + 0.01, n=1234) for name, value in figures]
    write(root, "benchmarks/results/demo.jsonl", "".join(lines))
    section = docs.demo_section(docs.read_results(root)[0])
    assert section.splitlines() == [
        "| method | NDCG@10 | Recall@10 |",
        "|---|---|---|",
        "| mosaic | 0.2000 (0.1900 to 0.2100) | 0.3000 (0.2900 to 0.3100) |",
        "| ease | 0.1000 (0.0900 to 0.1100) |  |",
        "",
        "1,234 requests, 95 % intervals; commit `abc`, box.",
    ]


def test_a_readme_without_its_marks_is_refused(root):
    write(root, "README.md", "# nothing here\n")
    with pytest.raises(
        docs.Problem, match=r"README\.md:1: must hold `<!-- begin quickstart: written by `make docs` -->`"
    ):
        docs.with_sections(root / "README.md", {"quickstart": ""})


def test_an_example_that_never_ran_is_named(root, capsys):
    assert docs.main(["--check"], root) == 1
    assert "examples/quickstart.out:1: missing: run `make docs`" in capsys.readouterr().err


def test_an_example_that_fails_is_named(root, capsys):
    write(root, "examples/quickstart.py", "raise SystemExit(3)\n")
    assert docs.main([], root) == 1
    assert "examples/quickstart.py:1: ended with exit code 3" in capsys.readouterr().err
    assert not (root / "examples/quickstart.out").exists()


def test_broken_links_are_named_by_file_and_line_and_do_not_keep_pages_from_being_written(root, capsys):
    write(
        root, "docs/decisions.md", "[a](../README.md#t) [b](https://example.org/x)\n\n![c](gone.png) [d](../none.md)\n"
    )
    for arguments in ([], ["--check"]):
        assert docs.main(arguments, root) == 1
        assert capsys.readouterr().err.splitlines() == [
            "docs/decisions.md:3: links to gone.png, which does not exist",
            "docs/decisions.md:3: links to ../none.md, which does not exist",
        ]
