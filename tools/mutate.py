"""Would the tests notice a bug? Mutation testing of the stages whose mistakes stay silent.

``python -m tools.mutate`` copies the tree to a temporary folder, lets mutmut plant one small bug at a time in
``semantic_ids/``, ``decoding/``, ``evaluation/`` and ``data/``, and runs those tests of the same stage that reach the
changed function. Of all mutants it takes a sample that depends on the seed and the mutants' own text only, so that a
change in one function leaves the sample of the others as it was. It records the share that was noticed and writes
docs/mutants.md, which lists every survivor with the reason given for it in tools/mutants.toml; a survivor without one
fails the run.

A mutant runs in a fork of a process that has collected the tests and run none: the threads that polars starts when it
is first used do not survive a fork, and tests that wait for them have noticed nothing. What does not fail there runs
again in a process of its own, in which the mutant is there while modules are imported, and only work without an end
counts as a loop.
"""

import argparse
import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name, orig_function_and_class_names_from_key
from scipy.stats import binomtest

from benchmarks._record import record

FIGURES = ("house.mutation_score",)

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("semantic_ids", "decoding", "evaluation", "data")
TARGET = 0.85
NOTICED = ("failed", "loops", "crashed")
"""What became of a mutant that the tests did not let pass; one that waits for nothing counts as a survivor."""
PASSED, FAILED, NO_TESTS = 0, 1, 33
"""mutmut's exit codes; all but ``FAILED`` and ``NO_TESTS`` need a second look."""
CPU_SECONDS = 30
"""Processor time that a mutant gets in a process of its own; the tests of a function need a tenth of that."""
WALL_SECONDS = 240

PYTEST = ("-p", "no:cacheprovider", "-m", "not prove", "--timeout=0", "--hypothesis-profile=mutants")
SETTINGS = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {only}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = {arguments}
process_isolation = "forkserver"
forkserver_warmup = "collect"
timeout_constant = 20.0
timeout_multiplier = 3.0
use_git_change_detection = false
"""


@dataclass(frozen=True)
class Mutant:
    """One planted bug."""

    name: str
    """What mutmut calls it."""
    file: str
    function: str
    diff: str
    """The changed lines, "-" before and "+" after."""
    status: str = "not checked"

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits of file, function and change, the same as long as those are."""
        return hashlib.sha256("\n".join([self.file, self.function, self.diff]).encode()).hexdigest()[:12]


def main(arguments: list[str] | None = None) -> int:
    """Run the sample; 1 where the score is below the target or a survivor has no reason."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description="Mutation-test four stages.")
    parser.add_argument("--sample", type=int, default=600, help="how many mutants to try (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time (default: 2)")
    parser.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="fewer, to try; records nothing")
    options = parser.parse_args(arguments)
    everything = [mutant for stage in options.stages for mutant in mutants_of(ROOT, stage)]
    chosen = sample(everything, options.sample, options.seed)
    print(f"{len(everything):,} mutants of {', '.join(options.stages)}; trying {len(chosen)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tesserec-mutants-") as folder:
        tried = run(ROOT, Path(folder), chosen, options.jobs)
    return conclude(tried, len(everything), options.seed, complete=tuple(options.stages) == STAGES)


def conclude(tried: Sequence[Mutant], total: int, seed: int, complete: bool) -> int:
    """Print the survivors without a reason and the score; record and write the page of a complete run."""
    reasons = read_reasons(ROOT / "tools" / "mutants.toml")
    survivors = [mutant for mutant in tried if mutant.status not in NOTICED]
    unexplained = [mutant for mutant in survivors if mutant.key not in reasons]
    for mutant in unexplained:
        print(f"\n{mutant.file}: {mutant.function} ({mutant.status}), key {mutant.key}\n{mutant.diff}")
    num_noticed = len(tried) - len(survivors)
    score = num_noticed / len(tried)
    print(f"\n{num_noticed} of {len(tried)} mutants were noticed: {score:.1%} (target {TARGET:.0%});")
    print(f"{len(unexplained)} of {len(survivors)} survivors have no reason in tools/mutants.toml")
    if complete:
        low, high = binomtest(num_noticed, len(tried)).proportion_ci(method="wilson")
        about = f"share of a seeded sample of {total:,} mutants that the tests notice; 95 % Wilson interval"
        record("house.mutation_score", score, "share", low=low, high=high, n=len(tried), protocol=about, seeds=[seed])
        (ROOT / "docs" / "mutants.md").write_text(page(tried, total, reasons), encoding="utf-8")
    return 1 if unexplained or score < TARGET else 0


# Mutants


def mutants_of(root: Path, stage: str) -> list[Mutant]:
    """Every mutant that mutmut makes of one stage."""
    mutants = []
    for path in sorted((root / "src" / "tesserec" / stage).rglob("*.py")):
        file = path.relative_to(root)
        mutated = mutate_file_contents(str(file), path.read_text(encoding="utf-8"))
        lines = mutated.code.splitlines()
        for name in mutated.mutant_names:
            original = f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"
            before, after = (
                ["def" if f" {n}(" in line else line for line in lines[span.start - 1 : span.end]]
                for n, span in ((n, mutated.line_span_by_function_name[n]) for n in (original, name))
            )
            function, owner = orig_function_and_class_names_from_key(name)
            qualified = f"{owner}.{function}" if owner else function
            mutants.append(
                Mutant(get_mutant_name(file, name), file.as_posix(), qualified, changed_lines(before, after))
            )
    return mutants


def changed_lines(before: Sequence[str], after: Sequence[str]) -> str:
    """The lines that differ, without their common indentation."""
    difference = list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in difference if not line.startswith("@@"))


def sample(mutants: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """``count`` mutants, each with the same chance; those of an unchanged function stay what they were."""

    def ticket(mutant: Mutant) -> tuple[str, str]:
        return hashlib.sha256(f"{seed} {mutant.key}".encode()).hexdigest(), mutant.name

    return sorted(sorted(mutants, key=ticket)[:count], key=lambda mutant: (mutant.file, mutant.name))


def run(root: Path, folder: Path, mutants: Sequence[Mutant], jobs: int) -> list[Mutant]:
    """The mutants with what became of them, tried stage by stage in copies of the tree under ``folder``."""
    tried = []
    for stage, group in itertools.groupby(sorted(mutants, key=stage_of), key=stage_of):
        found = run_stage(copy_of(root, folder / stage, stage), list(group), jobs)
        print(f"{stage}: {sum(mutant.status in NOTICED for mutant in found)} of {len(found)} noticed", flush=True)
        tried += found
    return tried


def run_stage(tree: Path, mutants: Sequence[Mutant], jobs: int) -> list[Mutant]:
    """The mutants of one stage with what became of them."""
    codes = exit_codes(tree, [mutant.name for mutant in mutants], jobs)
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda mutant: status(codes[mutant.name], tree, mutant.name), mutants)
        return [dataclasses.replace(mutant, status=became) for mutant, became in zip(mutants, found, strict=True)]


def copy_of(root: Path, tree: Path, stage: str) -> Path:
    """A copy of what the tests of one stage need at ``tree``, set up for mutmut."""
    for name in ("src", "tests"):
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = SETTINGS.format(
        only=json.dumps([f"src/tesserec/{stage}/*"]),
        tests=json.dumps([f"tests/{stage}"]),
        arguments=json.dumps(PYTEST),
    )
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    (tree / "pyproject.toml").write_text(project + settings, encoding="utf-8")
    (tree / "README.md").touch()
    return tree


def exit_codes(tree: Path, names: Sequence[str], jobs: int) -> dict[str, int | None]:
    """mutmut's exit code for each mutant of the stage; None for those it was not asked for."""
    command = [str(Path(sys.executable).parent / "mutmut"), "run", "--max-children", str(jobs)]
    environment = os.environ | {"CI": "true", "OMP_NUM_THREADS": "1", "TMPDIR": str(tree.parent)}
    subprocess.run([*command, *names], cwd=tree, env=environment, check=True)
    codes: dict[str, int | None] = {}
    for meta in (tree / "mutants").rglob("*.meta"):
        codes |= json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    return codes


def status(code: int | None, tree: Path, name: str) -> str:
    """What became of a mutant, after a second look in a process of its own unless mutmut's exit code says enough."""
    if code in (FAILED, NO_TESTS):
        return "failed" if code == FAILED else "no tests"
    statistics = json.loads((tree / "mutants" / "mutmut-stats.json").read_text(encoding="utf-8"))
    tests = statistics["tests_by_mangled_function_name"][name.rpartition("__mutmut_")[0]]
    outcome = alone(tree / "mutants", name, tests)
    if outcome != "survived" or code != PASSED:
        print(f"{name}: {outcome} (mutmut's exit code was {code})", flush=True)
    return outcome


def alone(tree: Path, name: str, tests: Sequence[str]) -> str:
    """What becomes of a mutant in a process of its own; a module that no longer imports counts as failed."""
    environment = os.environ | {"MUTANT_UNDER_TEST": name, "PYTHONPATH": "src", "OMP_NUM_THREADS": "1"}
    limit = (
        f"import resource, sys, pytest; resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS + 5})); "
    )
    command = [sys.executable, "-c", limit + "sys.exit(pytest.main(sys.argv[1:]))", "-x", "-q", *PYTEST, *tests]
    try:
        code = subprocess.run(
            command, cwd=tree, env=environment, timeout=WALL_SECONDS, capture_output=True, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return "waits"
    if code < 0:
        return "loops" if -code == signal.SIGXCPU else "crashed"
    return "survived" if code == PASSED else "failed"


# The report


def read_reasons(path: Path) -> dict[str, str]:
    """Why each survivor is let live, by key; raises ``ValueError`` for an entry without a reason."""
    reasons = {}
    for key, entry in tomllib.loads(path.read_text(encoding="utf-8")).items():
        if not entry.get("reason"):
            raise ValueError(f"{path}: [{key}] has no reason: say why no test can or should notice it")
        reasons[key] = str(entry["reason"])
    return reasons


def page(tried: Sequence[Mutant], total: int, reasons: dict[str, str]) -> str:
    """docs/mutants.md: the score by stage, then every survivor with its reason."""
    lines = [
        *("# Mutants", "", "<!-- Written by `make mutate`: reasons are in tools/mutants.toml. -->", ""),
        f"Of {total:,} small bugs that mutmut plants in four stages, {len(tried)} were tried, each with the tests",
        "of its own stage. A bug is noticed when a test fails, loops without an end or crashes:",
        f"{ways(tried)}.",
        *("", "| stage | tried | noticed | share |", "|---|--:|--:|--:|"),
    ]
    by_stage = Counter(stage_of(mutant) for mutant in tried)
    noticed = Counter(stage_of(mutant) for mutant in tried if mutant.status in NOTICED)
    lines += [f"| {stage} | {n} | {noticed[stage]} | {noticed[stage] / n:.1%} |" for stage, n in by_stage.items()]
    lines += [f"| all | {len(tried)} | {noticed.total()} | {noticed.total() / len(tried):.1%} |", "", "## Survivors"]
    for mutant in tried:
        if mutant.status not in NOTICED:
            lines += ["", f"### `{mutant.function}` in [{mutant.file}](../{mutant.file})", ""]
            lines += ["```diff", mutant.diff, "```", "", f"`{mutant.key}`: {reasons.get(mutant.key, 'no reason yet.')}"]
    return "\n".join(lines) + "\n"


def ways(tried: Sequence[Mutant]) -> str:
    """How often which kind of end was noticed."""
    ends = Counter(mutant.status for mutant in tried)
    return ", ".join(f"{ends[status]} {status}" for status in NOTICED)


def stage_of(mutant: Mutant) -> str:
    """The folder of a mutant's file right under the package."""
    return Path(mutant.file).parts[2]


if __name__ == "__main__":
    sys.exit(main())
