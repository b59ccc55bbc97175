"""The parts of the mutation run that decide what is counted: mutants, sample, reasons, page."""

import dataclasses
import textwrap

import pytest

from tools import mutate

MODULE = """
class Box:
    def put(self, n):
        return n + 1


def twice(n):
    return n * 2
"""


@pytest.fixture
def root(tmp_path):
    """A tree with one mutable module."""
    folder = tmp_path / "src" / "tesserec" / "decoding"
    folder.mkdir(parents=True)
    (folder / "box.py").write_text(MODULE, encoding="utf-8")
    return tmp_path


def test_mutants_say_where_they_are_and_what_they_change(root):
    mutants = mutate.mutants_of(root, "decoding")
    assert {m.file for m in mutants} == {"src/tesserec/decoding/box.py"}
    assert {(m.function, m.diff) for m in mutants} >= {
        ("Box.put", "- return n + 1\n+ return n - 1"),
        ("twice", "- return n * 2\n+ return n * 3"),
    }
    assert all(m.name.startswith("tesserec.decoding.box.x") for m in mutants)


def test_a_key_is_of_file_function_and_change():
    mutant = mutate.Mutant("name", "file", "function", "diff")
    assert mutant.key == dataclasses.replace(mutant, name="other", status="failed").key
    assert len({dataclasses.replace(mutant, **{field: "x"}).key for field in ("file", "function", "diff")}) == 3
    assert len(mutant.key) == 12


def test_the_sample_stays_when_other_functions_change():
    mutants = [mutate.Mutant(f"m{i}", "file", f"f{i}", "diff") for i in range(200)]
    first = mutate.sample(mutants, 50, seed=0)
    assert len(first) == 50
    assert first == mutate.sample(mutants[::-1], 50, seed=0)
    assert first != mutate.sample(mutants, 50, seed=1)
    without = [m for m in mutants if m.function != "f7"]
    assert len(set(first) - set(mutate.sample(without, 50, seed=0))) <= 1


ENDS = """
import os, signal, time


def end():
    name = os.environ["MUTANT_UNDER_TEST"]
    if name == "box.end__mutmut_crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    while name == "box.end__mutmut_loop":
        pass
    if name == "box.end__mutmut_wait":
        time.sleep(9)
    return 2 if name == "box.end__mutmut_other" else 1
"""


@pytest.fixture
def tree(tmp_path):
    """What mutmut leaves behind, as far as a second look needs it."""
    files = {
        "src/box.py": ENDS,
        "tests/test_box.py": "import box\n\ndef test_end():\n    assert box.end() == 1\n",
        "tests/test_import.py": "import box\n\nassert box.end() == 1\n\ndef test_end():\n    pass\n",
        "mutmut-stats.json": '{"tests_by_mangled_function_name": {"box.end": ["tests/test_box.py::test_end"]}}',
        "conftest.py": "from hypothesis import settings\n\nsettings.register_profile('mutants')\n",
        "pytest.ini": "[pytest]\nmarkers = prove\n",
    }
    for name, text in files.items():
        path = tmp_path / "mutants" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_exit_codes_that_say_enough_need_no_second_look(tmp_path):
    assert [mutate.status(code, tmp_path, "m") for code in (1, 33)] == ["failed", "no tests"]


@pytest.mark.parametrize(
    ("end", "outcome"),
    [("none", "survived"), ("other", "failed"), ("crash", "crashed"), ("loop", "loops"), ("wait", "waits")],
)
def test_any_other_exit_code_gets_a_process_of_its_own(tree, monkeypatch, end, outcome):
    monkeypatch.setattr(mutate, "CPU_SECONDS", 1 if end == "loop" else 60)
    monkeypatch.setattr(mutate, "WALL_SECONDS", 1 if end == "wait" else 60)
    assert mutate.status(-24, tree, f"box.end__mutmut_{end}") == outcome
    assert (outcome in mutate.NOTICED) == (end in {"other", "crash", "loop"})


def test_a_module_that_no_longer_imports_has_failed(tree):
    tests = ["tests/test_import.py::test_end"]
    assert mutate.alone(tree / "mutants", "box.end__mutmut_other", tests) == "failed"


def test_reasons_are_read_and_must_say_something(tmp_path):
    path = tmp_path / "mutants.toml"
    path.write_text('[0123456789ab]\nreason = "equivalent"\n')
    assert mutate.read_reasons(path) == {"0123456789ab": "equivalent"}
    path.write_text('[0123456789ab]\nreason = ""\n')
    with pytest.raises(ValueError, match=r"\[0123456789ab\] has no reason: say why no test can"):
        mutate.read_reasons(path)


def test_the_page_lists_survivors_with_their_reasons():
    lived, died = (
        mutate.Mutant("n", "src/tesserec/data/a.py", "Box.put", "- x\n+ y", status) for status in ("survived", "failed")
    )
    unreached = mutate.Mutant("n", "src/tesserec/decoding/b.py", "f", "- u\n+ v", "no tests")
    page = mutate.page([lived, died, unreached], 1234, {lived.key: "equivalent: y is x"})
    assert "Of 1,234 small bugs that mutmut plants in four stages, 3 were tried" in page
    assert "without an end or crashes:\n1 failed, 0 loops, 0 crashed.\n" in page
    assert "| data | 2 | 1 | 50.0% |\n| decoding | 1 | 0 | 0.0% |\n| all | 3 | 1 | 33.3% |\n" in page
    survivor = f"""
        ### `Box.put` in [src/tesserec/data/a.py](../src/tesserec/data/a.py)

        ```diff
        - x
        + y
        ```

        `{lived.key}`: equivalent: y is x
        """
    assert textwrap.dedent(survivor) in page
    assert f"`{unreached.key}`: no reason yet." in page
    assert page.count("```diff") == 2
