"""One bit of a bundle turned over: is the damage harmless, or refused by the name of the file?

Each time one bit of one byte of one file, drawn in proportion to the files' sizes, with every file drawn a few times at
least. Lists must be those of the sound bundle, to the last bit, or the bundle must be refused with the name of the
damaged file. Then the derived file of a large catalog, the trie, which must be built again, equal in every element.
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import torch

from benchmarks._record import record
from benchmarks.serving._service import demo_bundle
from tesserec.decoding.trie_file import MIN_ITEMS, kept_trie
from tesserec.errors import BundleError
from tesserec.recommender import Recommender
from tesserec.types import SemanticIds

FIGURES = ("serving.byte_flips",)

NUM_FLIPS = 500
NUM_DERIVED = 50
"""Of them in derived files."""
NUM_USERS = 50
LEAST = 5
"""Flips of each file, at least."""


def main() -> None:
    """Flip, load, compare, and record at full size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.byte_flips", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="where the fitted bundle is kept")
    parser.add_argument("--flips", type=int, default=NUM_FLIPS, help="fewer are printed, not recorded")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(shutil.copytree(demo_bundle(given.work), Path(folder) / "bundle"))
        expected = lists(bundle)
        counts = dict.fromkeys(("refused", "harmless", "wrong"), 0)
        num_derived = min(NUM_DERIVED, given.flips // 10)
        for path, position, bit in flips(bundle, given.flips - num_derived):
            outcome = flip(bundle, path, position, bit, expected)
            counts[outcome] += 1
            print(f"{path.relative_to(bundle)} byte {position} bit {bit}: {outcome}", flush=True)
        for outcome in derived(Path(folder) / "derived", num_derived):
            counts[outcome] += 1
    protocol = ", ".join(f"{number} {name}" for name, number in counts.items())
    print(protocol)
    if given.flips >= NUM_FLIPS:
        record("serving.byte_flips", counts["wrong"], "wrong lists", n=given.flips, protocol=protocol)


def flips(bundle: Path, number: int) -> list[tuple[Path, int, int]]:
    """Which byte of which file, and which bit of it."""
    choose = random.Random(0)
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in files]
    drawn = (files * LEAST)[:number]
    drawn += choose.choices(files, sizes, k=number - len(drawn))
    return [(path, choose.randrange(path.stat().st_size), choose.randrange(8)) for path in drawn]


def flip(bundle: Path, path: Path, position: int, bit: int, expected: pl.DataFrame) -> str:
    """What happens with one bit of a file turned over."""
    with turned(path, position, bit):
        try:
            return "harmless" if lists(bundle).equals(expected) else "wrong"
        except BundleError as error:
            return "refused" if path.name in str(error) else "wrong"


def derived(folder: Path, number: int) -> Iterator[str]:
    """The same with the trie of a catalog that is large enough for one to be kept."""
    codes_NL = torch.randint(256, (MIN_ITEMS, 4), generator=torch.Generator().manual_seed(0))
    semantic_ids = SemanticIds(codes_NL, (256,) * 4, "benchmark")
    expected = kept_trie(folder, semantic_ids).tensors()
    for path, position, bit in flips(folder, number):
        with turned(path, position, bit):
            found = kept_trie(folder, semantic_ids).tensors()
        yield "harmless" if all(torch.equal(found[name], expected[name]) for name in expected) else "wrong"


@contextmanager
def turned(path: Path, position: int, bit: int) -> Iterator[None]:
    """A file with one bit turned over."""
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[position] ^= 1 << bit
    path.write_bytes(damaged)
    try:
        yield
    finally:
        path.write_bytes(sound)


def lists(bundle: Path) -> pl.DataFrame:
    """What some users get."""
    recommender = Recommender.load(bundle)
    users = recommender.contents.interactions.users.ids.to_pylist()[:NUM_USERS]
    return recommender.recommend(users, k=20)


if __name__ == "__main__":
    main()
