"""What a search of ten million items costs: 99.9 % of them masked, the making of the mask included; against fewer."""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from benchmarks._record import record
from benchmarks.decoding._setting import LENGTH, SEED, TIGER_SHAPE
from tesserec.decoding.beam_search import beam_search, beams_to_items
from tesserec.decoding.trie import Trie
from tesserec.decoding.trie_mask import Availability, TrieMask
from tesserec.retrievers.tiger import _Network
from tesserec.training.measure import Measured
from tesserec.types import Candidates, Filters, History, Requests, SemanticIds

FIGURES = (
    "decoding.mask_99_9.cost",
    "decoding.mask_99_9.cost_of_one_request",
    "decoding.growth_of_search.10k_to_10m",
)

FEW_ITEMS = 10_000
NUM_ITEMS, NUM_LEVELS, NUM_CODES = 10_000_000, 4, 256
NUM_BEAMS = K = 50
SHARE = 0.001
NUM_REQUESTS = 16
PROTOCOL = (
    "T5 of the paper's shape, untrained; {requests} request(s) of 20 items with {available:,} of {items:,} items "
    "available, drawn at random: from the flags to 50 items each, the mask made anew for every batch; against the same "
    "search without a mask; {threads} threads; both in turn; median, smallest and largest ratio of n rounds; median "
    "{masked:.0f} and {free:.0f} ms; every list was full and legal"
)
GROWTH_PROTOCOL = (
    "T5 of the paper's shape, untrained; one request of 20 items, 50 beams, from the history to 50 items; {threads} "
    "threads; both sizes in turn; median, smallest and largest of the rounds' ratios of medians of 10; median "
    "{many:.1f} and {few:.1f} ms"
)


def main() -> None:
    """Time both searches in turn, check every list, and record the ratios at full size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding.masked_search", description=__doc__)
    parser.add_argument("--items", type=int, default=NUM_ITEMS, help="another number is printed, not recorded")
    parser.add_argument("--rounds", type=int, default=9, help="of which the median counts (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default: 2)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = torch.Generator().manual_seed(SEED)
    search = Search(given.items)
    grown(search, given.rounds, given.threads, is_result=given.items == NUM_ITEMS)
    for num_requests, name in ((NUM_REQUESTS, "cost"), (1, "cost_of_one_request")):
        times: dict[str, list[float]] = {"free": [], "masked": []}
        with Measured() as cost:
            for _ in range(1 + given.rounds):
                available_N = torch.rand(given.items, generator=generator) < SHARE
                items_BH = torch.randint(given.items, (num_requests, LENGTH), generator=generator)
                times["free"].append(timed(search, items_BH, None))
                times["masked"].append(timed(search, items_BH, available_N))
        masked, free = (times[name][1:] for name in ("masked", "free"))
        ratios = [one / other for one, other in zip(masked, free, strict=True)]
        protocol = PROTOCOL.format(
            requests=num_requests,
            available=int(available_N.sum()),
            items=given.items,
            threads=given.threads,
            masked=1e3 * statistics.median(masked),
            free=1e3 * statistics.median(free),
        )
        print(f"{name}: {statistics.median(ratios):.2f}\n{protocol}", flush=True)
        if given.items == NUM_ITEMS:
            record(
                f"decoding.mask_99_9.{name}",
                statistics.median(ratios),
                "ratio",
                low=min(ratios),
                high=max(ratios),
                n=len(ratios),
                against="the same search without a mask",
                dataset=f"{given.items:,} random codes {NUM_LEVELS} x {NUM_CODES}",
                protocol=protocol,
                seeds=(SEED,),
                peak_rss_bytes=cost.peak_rss_bytes,
            )


def grown(search: Search, rounds: int, threads: int, *, is_result: bool) -> None:
    """Time a request of many items beside the same one of few."""
    small = Search(FEW_ITEMS)
    generator = torch.Generator().manual_seed(SEED)
    times: dict[str, list[float]] = {"few": [], "many": []}
    with Measured() as cost:
        for _ in range(10 + 10 * rounds):
            items_BH = torch.randint(FEW_ITEMS, (1, LENGTH), generator=generator)
            times["few"].append(timed(small, items_BH, None))
            times["many"].append(timed(search, items_BH, None))
    few, many = (times[name][10:] for name in ("few", "many"))
    ratios = [
        statistics.median(many[start : start + 10]) / statistics.median(few[start : start + 10])
        for start in range(0, len(many), 10)
    ]
    protocol = GROWTH_PROTOCOL.format(
        threads=threads, many=1e3 * statistics.median(many), few=1e3 * statistics.median(few)
    )
    print(f"growth of a search: {statistics.median(ratios):.2f}\n{protocol}", flush=True)
    if is_result:
        record(
            "decoding.growth_of_search.10k_to_10m",
            statistics.median(ratios),
            "ratio",
            low=min(ratios),
            high=max(ratios),
            n=len(ratios),
            against="the same request among 10 thousand items",
            dataset=f"random codes {NUM_LEVELS} x {NUM_CODES}",
            protocol=protocol,
            seeds=(SEED,),
            peak_rss_bytes=cost.peak_rss_bytes,
        )


class Search:
    """An untrained TIGER of many items, without a catalogue."""

    def __init__(self, num_items: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        codes_NL = torch.randint(NUM_CODES, (num_items, NUM_LEVELS), generator=generator, dtype=torch.int16)
        table = SemanticIds(codes_NL, (NUM_CODES,) * NUM_LEVELS, "random")
        torch.manual_seed(SEED)
        self.trie = Trie.build(table)
        self.network = _Network(TIGER_SHAPE, table, self.trie, 1).eval()

    def __call__(self, items_BH: Tensor, available_N: Tensor | None) -> Candidates:
        """The best items after each history."""
        batch = len(items_BH)
        history = History(LENGTH * torch.arange(batch + 1), items_BH.flatten())
        requests = Requests(history, filters=Filters(available_N=available_N))
        availability = None if available_N is None else Availability.of(self.trie, available_N)
        mask = None if available_N is None else TrieMask.of(self.trie, requests, availability)
        with torch.inference_mode():
            cache = self.network.t5.begin(self.network.read(items_BH, torch.ones(batch, dtype=torch.int64)))
            beams = beam_search(self.network.step, cache, self.trie, num_requests=batch, num_beams=NUM_BEAMS, mask=mask)
        return beams_to_items(beams, self.trie, K, mask)


def timed(search: Search, items_BH: Tensor, available_N: Tensor | None) -> float:
    """Seconds of a search whose lists are full and legal."""
    start = time.perf_counter()
    found = search(items_BH, available_N)
    seconds = time.perf_counter() - start
    assert bool((found.items_BK >= 0).all()), "50 items are allowed, so 50 must be found"
    assert available_N is None or bool(available_N[found.items_BK].all()), "nothing that is masked may be found"
    return seconds


if __name__ == "__main__":
    main()
