"""What the constraint costs, from ten thousand to ten million items: building, memory, steps, masks, new items."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._record import record
from tesserec.data.sources import load
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_file import load_trie, save_trie
from tesserec.decoding.trie_mask import Availability, TrieMask
from tesserec.decoding.trie_updates import with_items
from tesserec.embedders.tfidf_svd import TfidfSVD
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.training.measure import Measured
from tesserec.types import History, Requests, SemanticIds, SideInformation

FIGURES = (
    "decoding.build_s.*",
    "decoding.build_peak_bytes.*",
    "decoding.automaton_bytes.*",
    "decoding.constraint_ms.*",
    "decoding.constraint_masked_ms.*",
    "decoding.growth.10k_to_10m",
    "decoding.growth_masked.10k_to_10m",
    "decoding.mask_ms.*",
    "decoding.insert_10k_s",
)

SIZES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000, "10m": 10_000_000}
NUM_LEVELS, NUM_CODES = 4, 256
NUM_BEAMS, NUM_NEW = 50, 10_000
SEED = 0
KINDS = ("random", "clustered")
DATASET = (
    "codes 4 x 256, random and clustered (a level's codes are as often as those of the bundled catalogue of Online "
    "Retail, in an order of its own below each prefix): the worse of both"
)
PROTOCOL = (
    "one request, {beams} beams, a step is the mean of {levels} levels; {threads} threads; median, smallest and "
    "largest of n; {note}"
)
NOTES = {
    "build_s": "from the table of codes in memory",
    "build_peak_bytes": "beside the table of codes and what the process held before",
    "automaton_bytes": "arrays in memory, or the file, the larger",
    "constraint_ms": "the children of the beams and their codes",
    "constraint_masked_ms": "the same, and which of them a mask of half the items leaves open",
    "mask_ms": "from a flag an item to a mask that a search can use",
    "insert_10k_s": "10,000 new items, to a trie that the next search can use",
}
Cell = dict[str, list[float]]


def main() -> None:
    """Measure every size and kind of codes; record them where all sizes ran."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding.automaton", description=__doc__)
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="fewer are printed, not recorded"
    )
    parser.add_argument("--rounds", type=int, default=9, help="measurements of which the median counts (default: 9)")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shares_LC = bundled_shares()
    cells = {}
    for size in given.sizes:
        for kind in KINDS:
            cells[size, kind] = cell(codes_of(kind, SIZES[size], shares_LC), given.rounds)
            print(
                size, kind, {name: statistics.median(values) for name, values in cells[size, kind].items()}, flush=True
            )
    if given.sizes == list(SIZES):
        save(cells, given.threads)


def bundled_shares() -> Tensor:
    """How often the codes of each level are used in the bundled catalogue, most first, [L, C]."""
    _, catalog = load("online_retail")
    embeddings = TfidfSVD().embed(catalog)
    quantizer = ResidualKMeans(num_levels=NUM_LEVELS, codebook_size=NUM_CODES)
    codes = fit_semantic_ids(quantizer, catalog, embeddings, SideInformation(seed=SEED))
    counts = [torch.bincount(codes.codes_NL[:, level], minlength=NUM_CODES) for level in range(NUM_LEVELS)]
    return torch.stack([count.sort(descending=True).values / len(catalog) for count in counts])


def codes_of(kind: str, num_items: int, shares_LC: Tensor) -> SemanticIds:
    """Code tuples of a catalogue that is made up."""
    generator = torch.Generator().manual_seed(SEED)
    if kind == "random":
        codes_NL = torch.randint(NUM_CODES, (num_items, NUM_LEVELS), generator=generator, dtype=torch.int16)
        return SemanticIds(codes_NL, (NUM_CODES,) * NUM_LEVELS, kind)
    prefix_N = torch.zeros(num_items, dtype=torch.int64)
    columns = []
    for share_C in shares_LC:
        rank_N = torch.multinomial(share_C, num_items, replacement=True, generator=generator)
        # Each prefix has popular codes of its own: the ranks, moved by a hash of the prefix.
        code_N = (rank_N * 167 + prefix_N * 2_654_435_761) % NUM_CODES
        prefix_N = (prefix_N * NUM_CODES + code_N) % 2**40
        columns.append(code_N.to(torch.int16))
    return SemanticIds(torch.stack(columns, 1), (NUM_CODES,) * NUM_LEVELS, kind)


def cell(table: SemanticIds, rounds: int) -> Cell:
    """All measurements of one table: seconds, milliseconds and bytes."""
    generator = torch.Generator().manual_seed(SEED)
    with Measured() as before:
        pass
    built = []
    for _ in range(max(1, rounds // 3)):
        with Measured() as building:
            trie = Trie.build(table)
        built.append(building)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.safetensors"
        save_trie(path, trie)
        assert load_trie(path) is not None
        on_disk = path.stat().st_size
    available_N = torch.rand(trie.num_items, generator=generator) < 0.5
    new_XL = torch.randint(NUM_CODES, (NUM_NEW, NUM_LEVELS), generator=generator)
    nobody = Requests(History(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)))
    mask = TrieMask.of(trie, nobody, Availability.of(trie, available_N))
    beams = [beams_of(trie, level, generator) for level in range(trie.num_levels)]
    free = [repeated(partial(trie.children, level, beams[level]), 20 * rounds) for level in range(NUM_LEVELS)]
    closed = [repeated(partial(masked, trie, mask, level, beams[level]), 20 * rounds) for level in range(NUM_LEVELS)]
    return {
        "build_s": [one.seconds for one in built],
        "build_peak_bytes": [float(max(one.peak_rss_bytes for one in built) - before.peak_rss_bytes)],
        "automaton_bytes": [float(max(trie.num_bytes, on_disk))],
        "constraint_ms": [1000 * sum(level) / NUM_LEVELS for level in zip(*free, strict=True)],
        "constraint_masked_ms": [1000 * sum(level) / NUM_LEVELS for level in zip(*closed, strict=True)],
        "mask_ms": [1000 * seconds for seconds in repeated(lambda: Availability.of(trie, available_N), rounds)],
        "insert_10k_s": repeated(lambda: with_items(trie, new_XL), max(5, rounds // 2)),
    }


def masked(trie: Trie, mask: TrieMask, level: int, nodes_BM: Tensor) -> Tensor:
    """A step of the constraint under a mask."""
    return mask.allows(level, trie.children(level, nodes_BM)[0])


def beams_of(trie: Trie, level: int, generator: torch.Generator) -> Tensor:
    """Nodes of depth ``level`` that a search may have reached, [1, M], ascending."""
    if level == 0:
        return torch.zeros(1, 1, dtype=torch.int64)
    places = torch.randint(trie.num_items, (1, NUM_BEAMS), generator=generator)
    return (torch.searchsorted(trie.item_bounds[level], places.int(), right=True) - 1).sort(1).values


def repeated(work: Callable[[], Any], times: int) -> list[float]:
    """Seconds of each of ``times`` calls, after one that is not counted."""
    work()
    found = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def save(cells: dict[tuple[str, str], Cell], threads: int) -> None:
    """Record each size, and how costs grow."""
    for name, note in NOTES.items():
        for size in SIZES:
            if name == "insert_10k_s" and size != "10m":
                continue
            worse = max((cells[size, kind][name] for kind in KINDS), key=statistics.median)
            figure = f"decoding.{name}" if name == "insert_10k_s" else f"decoding.{name}.{size}"
            noted(figure, worse, unit_of(name), note, threads)
    for name, of in (("growth", "constraint_ms"), ("growth_masked", "constraint_masked_ms")):
        ratios = [
            statistics.median(cells["10m", kind][of]) / statistics.median(cells["10k", kind][of]) for kind in KINDS
        ]
        note = f"{NOTES[of]}: {' and '.join(f'{ratio:.2f}' for ratio in ratios)} for {' and '.join(KINDS)} codes"
        noted(f"decoding.{name}.10k_to_10m", [max(ratios)], "ratio", note, threads, "the same with 10 thousand items")


def unit_of(name: str) -> str:
    """The unit that a measurement's name ends in."""
    return name.rpartition("_")[2]


def noted(  # noqa: PLR0917  # one line
    figure: str, values: list[float], unit: str, note: str, threads: int, against: str | None = None
) -> None:
    """One line of results."""
    record(
        figure,
        statistics.median(values),
        unit,
        low=min(values),
        high=max(values),
        n=len(values),
        against=against,
        dataset=DATASET,
        protocol=PROTOCOL.format(beams=NUM_BEAMS, levels=NUM_LEVELS, threads=threads, note=note),
        seeds=(SEED,),
    )


if __name__ == "__main__":
    main()
