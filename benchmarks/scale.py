"""One real size in one process: 20 million events, 500,000 items, 1 million users; what each stage takes."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks._record import record
from benchmarks.ingest import NUM_EVENTS, NUM_USERS, SEED, generate
from tesserec.data.catalog import catalog_of
from tesserec.data.interactions import read_events
from tesserec.data.requests import user_requests
from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.mosaic import HeadsConfig, Mosaic, RowsConfig
from tesserec.semantic_ids.build import fit_semantic_ids
from tesserec.semantic_ids.rq_kmeans import ResidualKMeans
from tesserec.training.loop import TrainingConfig
from tesserec.training.measure import Measured
from tesserec.types import Estimate, FitContext, ItemEmbeddings, SideInformation

FIGURES = (
    "scale.ingest_s",
    "scale.sids_s",
    "scale.fit_s",
    "scale.epoch_s",
    "scale.lists_10k_s",
    "scale.estimate_ratio.seconds",
    "scale.estimate_ratio.bytes",
)

NUM_FEATURES, NUM_CLUSTERS = 128, 2_000
NUM_REQUESTS, K = 10_000, 10
DATASET = "synthetic: 20M events, 1M users, 500k items"
PROTOCOL = (
    "events as in data.ingest_20m (Zipf(1) items, power-law users); item vectors of 128 features around 2,000 centres; "
    "residual k-means 3 x 256 and a digit; Mosaic of width 64, 2 layers, {} parameters ({} without embeddings), 1,024 "
    "sampled negatives, batches of 256 windows; {} threads; one process, peaks are those of each stage"
)


def main() -> None:
    """Run all stages, print what each took, and record them at full size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--events", type=int, default=NUM_EVENTS, help="fewer are printed, not recorded")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default: 1)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    num_events = arguments.events
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        generate(path, num_events, NUM_USERS * num_events // NUM_EVENTS)
        costs, expected, mosaic = run(path)
    protocol = PROTOCOL.format(*num_parameters(mosaic), torch.get_num_threads())
    epoch_s = mosaic.training_log[-1]["seconds"]
    ratios = {
        "seconds": costs["fit"].seconds / expected.seconds,
        "bytes": costs["fit"].peak_rss_bytes / expected.peak_bytes,
    }
    print(f"{protocol}\nepoch {epoch_s:.1f} s; actual / estimated: {ratios}")
    if num_events == NUM_EVENTS:
        seconds = {name: cost.seconds for name, cost in costs.items()} | {"epoch": epoch_s}
        for name, value in seconds.items():
            peak = costs["fit" if name == "epoch" else name].peak_rss_bytes
            save(f"{name}_s", value, "s", protocol, peak)
        for name, value in ratios.items():
            save(f"estimate_ratio.{name}", value, "ratio", protocol)


def save(name: str, value: float, unit: str, protocol: str, peak: int | None = None) -> None:
    """One line of this area."""
    record(
        f"scale.{name}",
        value,
        unit,
        against="the estimate made before the fit" if unit == "ratio" else None,
        dataset=DATASET,
        protocol=protocol,
        seeds=(SEED,),
        peak_rss_bytes=peak,
    )


def run(path: Path) -> tuple[dict[str, Measured], Estimate, Mosaic]:
    """What each stage took, what the fit was expected to take, and the fitted retriever."""
    costs: dict[str, Measured] = {}
    with stage("ingest", costs):
        events = read_events(path)
        catalog = catalog_of(events)
    embeddings = ItemEmbeddings(clustered(len(catalog)), "synthetic")
    with stage("sids", costs):
        counts_N = events.item_counts()
        side = SideInformation(seed=SEED)
        codes = fit_semantic_ids(ResidualKMeans(), catalog, embeddings, side, popularity_N=counts_N)
    context = FitContext(embeddings=embeddings, semantic_ids=codes, seed=SEED)
    mosaic = small_mosaic()
    with stage("estimate", {}):
        expected = mosaic.estimate(events, catalog, context)
    print(f"expected of the fit: {expected.seconds:.1f} s, {expected.peak_bytes / 2**30:.2f} GiB", flush=True)
    with stage("fit", costs):
        mosaic.fit(events, catalog, context)
    with stage("lists_10k", costs):
        users = torch.randperm(len(events.users), generator=torch.Generator().manual_seed(SEED))[:NUM_REQUESTS]
        lists = mosaic.retrieve(user_requests(events, users), K)
    assert bool((lists.items_BK >= 0).all()), "all lists are full"
    return costs, expected, mosaic


@contextmanager
def stage(name: str, costs: dict[str, Measured]) -> Iterator[None]:
    """Measure a block and print what it took."""
    with Measured() as costs[name]:
        yield
    print(f"{name}: {costs[name].seconds:.1f} s, {costs[name].peak_rss_bytes / 2**30:.2f} GiB", flush=True)


def clustered(num_items: int) -> torch.Tensor:
    """Unit vectors [N, D] around random centres; features vary less and less, as those of text do."""
    generator = torch.Generator().manual_seed(SEED)
    centres = torch.randn(NUM_CLUSTERS, NUM_FEATURES, generator=generator)
    vectors = centres[torch.randint(NUM_CLUSTERS, (num_items,), generator=generator)]
    vectors += torch.randn(num_items, NUM_FEATURES, generator=generator)
    return F.normalize(vectors * (1 + torch.arange(NUM_FEATURES)) ** -0.5, dim=1)


def small_mosaic() -> Mosaic:
    """About a million parameters: only the most frequent items and prefixes have vectors of their own."""
    return Mosaic(
        model=TransformerConfig(width=64, num_layers=2, num_heads=2),
        rows=RowsConfig(max_rows=6_000),
        heads=HeadsConfig(num_negatives=1024),
        training=TrainingConfig(epochs=1, batch_size=256),
    )


def num_parameters(mosaic: Mosaic) -> tuple[int, int]:
    """Parameters of the fitted network: all of them, and those that are not rows of embedding tables."""
    network = mosaic._network
    assert network is not None
    tables = {id(part.weight) for part in network.modules() if isinstance(part, torch.nn.Embedding)}
    sizes = [(parameter.numel(), id(parameter) in tables) for parameter in network.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, is_table in sizes if not is_table)


if __name__ == "__main__":
    main()
