"""Figures of tokenizers below one generator, from their runs: ``python -m benchmarks.semantic_ids.figures``.

Dimensions: B requests · M relevant items of all requests · R resamples · T tokenizers · S seeds.

Reads ``benchmarks/results/semantic_ids`` and writes ``benchmarks/results/tokenizers.jsonl``, a function of the folder
and of ``claims.toml``. For each data set and protocol there are, of each tokenizer, accuracy, its difference to both
references and the cost of its codes; for each diagnostic, how well it ranks the tokenizers by accuracy. A claim is the
accuracy of a published tokenizer as a ratio to that of what it varies.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from benchmarks._record import RESULTS
from benchmarks.accuracy.figures import (
    METRIC_NAMES,
    SEED,
    Columns,
    Drawn,
    Run,
    Targets,
    line,
    metrics,
    read_cells,
    read_runs,
    text,
    words,
)
from tesserec.evaluation.intervals import Estimate, of_resamples
from tesserec.evaluation.metrics import order_ranks

__all__ = [
    "AREA",
    "DIAGNOSTICS",
    "JUDGED",
    "MAIN",
    "REFERENCES",
    "SMALL_NUMBER",
    "STRENGTHS",
    "at_best_strength",
    "diagnostics",
    "figures",
    "main",
    "read_claims",
]

AREA = "tokenizers"
JUDGED = "ndcg10"
REFERENCES = {"rq_vae": "RQ-VAE", "rq_kmeans": "residual k-means"}
"""What every tokenizer is compared with, the two defaults, and what they are called."""
MAIN = ("beauty", "last_out")
"""Where every tokenizer is run and claims are checked."""
STRENGTHS = ("_weak", "_strong")
"""At the end of the name of a method that is another one with its losses at another strength."""
SMALL_NUMBER = 5
"""Of tokenizers, below which no rank correlation is told."""
CLAIMS = Path(__file__).parent / "claims.toml"
FOLDER = "semantic_ids"

DIAGNOSTICS = {
    "unique_share": "items with codes of their own, before the collision digit",
    "used_share": "codes in use, mean over levels",
    "perplexity_share": "perplexity over size of the codebook, mean over levels",
    "evenness": "1 − Gini of the use of codes, mean over levels",
    "unpopularity": "1 − share of the events at the most popular first code",
    "explained_share": "R² of the vectors decoded from the codes",
    "cosine_gain": "mean cosine of items with a first code in common, above that of any two",
    "neighbours_gain": "share of consecutive items with a first code in common, above chance",
    "deep_neighbours_gain": "the same for the first two codes",
    "effective_share": "effective capacity over size of the codebook, mean over levels",
}
"""Each diagnostic, said so that more is supposed to be better."""


def main(arguments: list[str] | None = None) -> int:
    """Write the figures of a folder of runs; nothing to write where it has none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.semantic_ids.figures", description="Figures from runs.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the folder of runs is, and figures go")
    chosen = parser.parse_args(arguments)
    folder = chosen.results / FOLDER
    lines = figures(folder, read_claims())
    if lines:
        (chosen.results / f"{AREA}.jsonl").write_text(text(lines), encoding="utf-8")
    print(f"{len(lines)} figures from {len(read_runs(folder))} runs in {folder}")
    return 0


def read_claims(path: Path = CLAIMS) -> list[Mapping[str, Any]]:
    """The ``[[claim]]`` tables: method, against, source, said; none where there is no file."""
    if not path.exists():
        return []
    tables: list[Mapping[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8")).get("claim", [])
    return tables


def figures(folder: Path, claims: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every figure of a folder of runs, by name; raises ``DataError`` where its files do not fit together."""
    runs = read_runs(folder)
    lines: list[dict[str, Any]] = []
    for dataset, protocol in sorted({(run["dataset"], run["protocol"]) for run in runs}):
        own = [run for run in runs if (run["dataset"], run["protocol"]) == (dataset, protocol)]
        drawn = Drawn.of(next(iter(read_cells(folder, dataset, protocol, own))), accuracy)
        lines += [*accuracy_lines(drawn), *cost_lines(drawn), *prediction_lines(drawn)]
        if (dataset, protocol) == MAIN:
            lines += claim_lines(drawn, claims)
    return sorted(lines, key=lambda line: str(line["figure"]))


def accuracy(targets: Targets, ranks_M: Tensor) -> Columns:
    """Per-request values [B] of each metric."""
    return metrics(order_ranks(targets.offsets, ranks_M), METRIC_NAMES)


def accuracy_lines(drawn: Drawn) -> Iterator[dict[str, Any]]:
    """The metrics of every tokenizer, and how much more accurate it is than each reference and than the best."""
    best = max(_chosen_keys(drawn), key=lambda key: drawn.mean(key, JUDGED))
    for key, by_seed in drawn.values.items():
        for name in METRIC_NAMES:
            yield line(
                _name(drawn, key[0], name),
                drawn.estimate(key, name),
                n=len(by_seed[0][name]),
                protocol=words(drawn.cell.protocol, refit=False),
                runs=drawn.runs(key),
            )
        for name, other in {**{name: (name, False) for name in REFERENCES}, "best": best}.items():
            if other in drawn.values and other != key:
                yield line(
                    _name(drawn, key[0], f"{JUDGED}_over_{name}"),
                    drawn.difference(key, other, JUDGED),
                    n=len(by_seed[0][JUDGED]),
                    protocol=words(drawn.cell.protocol, refit=False) + ", paired",
                    runs=drawn.runs(key, other),
                    against=other[0],
                )


def at_best_strength(runs: Sequence[Run]) -> list[str]:
    """The methods of runs of one data set; of a method at several strengths, the one that is best on validation."""
    values: dict[str, list[float]] = {}
    for run in runs:
        last = run["training_log"][-1] if run["training_log"] else {}
        values.setdefault(run["method"], []).append(last.get("validation", 0.0))
    best: dict[str, str] = {}
    for method in sorted(values, key=lambda one: (-_mean(iter(values[one])), len(one))):
        best.setdefault(_plain_name(method), method)
    return list(best.values())


def _plain_name(method: str) -> str:
    for end in STRENGTHS:
        method = method.removesuffix(end)
    return method


def _chosen_keys(drawn: Drawn) -> list[tuple[str, bool]]:
    names = at_best_strength([run for key in drawn.values for run in drawn.runs(key)])
    return [key for key in drawn.values if key[0] in names]


def cost_lines(drawn: Drawn) -> Iterator[dict[str, Any]]:
    """CPU seconds and peak memory of the fit of the codes; none of runs that did not measure it."""
    for key in drawn.values:
        runs = drawn.runs(key)
        costs = [run["tokenizer"] for run in runs if run.get("tokenizer")]
        if len(costs) < len(runs):
            continue
        for name, unit, part in (("fit_cpu_s", "s", "cpu_s"), ("fit_peak_bytes", "bytes", "peak_rss_bytes")):
            yield line(
                _name(drawn, key[0], name),
                _range([float(cost[part]) for cost in costs]),
                unit=unit,
                n=len(costs),
                protocol="fit of the quantizer and codes of all items, vectors given, on one thread; memory is that of "
                "the process; mean and range of n seeds",
                runs=runs,
            )


def claim_lines(drawn: Drawn, claims: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The accuracy of each published tokenizer, at each strength, as a ratio to that of what it varies."""
    for claim in claims:
        for method in (claim["method"], *(claim["method"] + end for end in STRENGTHS)):
            key, other = (method, False), (claim["against"], False)
            if key in drawn.values and other in drawn.values and drawn.mean(other, JUDGED):
                value = drawn.mean(key, JUDGED) / drawn.mean(other, JUDGED)
                ratio_R = drawn.resampled(key, JUDGED) / drawn.resampled(other, JUDGED, SEED + 1)
                yield line(
                    f"claims.{method}.{JUDGED}",
                    of_resamples(value, ratio_R),
                    unit="ratio",
                    n=len(drawn.values[key][0][JUDGED]),
                    protocol=words(drawn.cell.protocol, refit=False) + ", paired",
                    runs=drawn.runs(key, other),
                    against=claim["against"],
                )


# Diagnostics


def diagnostics(run: Run) -> dict[str, float]:
    """The diagnostics of the codes of a run, those that it knows."""
    codes = run.get("codes")
    if codes is None:
        return {}
    levels, prefixes = codes["levels"], codes["prefixes"]
    found = {
        "unique_share": codes["unique_share"],
        "used_share": _mean(level["num_used"] / level["codebook_size"] for level in levels),
        "perplexity_share": _mean(level["perplexity"] / level["codebook_size"] for level in levels),
        "evenness": _mean(1 - level["gini"] for level in levels),
        "unpopularity": 1 - levels[0]["most_popular_share"],
        "explained_share": codes["explained_share"],
        "cosine_gain": _gain(prefixes, 0, "cosine_within", "cosine_random"),
        "neighbours_gain": _gain(prefixes, 0, "neighbours_share", "random_share"),
        "deep_neighbours_gain": _gain(prefixes, 1, "neighbours_share", "random_share"),
    }
    if all(level["effective_capacity"] is not None for level in levels):
        found["effective_share"] = _mean(level["effective_capacity"] / level["codebook_size"] for level in levels)
    return {name: float(value) for name, value in found.items() if value is not None}


def prediction_lines(drawn: Drawn) -> Iterator[dict[str, Any]]:
    """The rank correlation of each diagnostic with accuracy over tokenizers; not where few have it."""
    keys = _chosen_keys(drawn)
    found = {key: [diagnostics(run) for run in drawn.runs(key)] for key in keys}
    for name in DIAGNOSTICS:
        having = [key for key in keys if all(name in one for one in found[key])]
        if len(having) < SMALL_NUMBER:
            continue
        told_T = np.array([_mean(one[name] for one in found[key]) for key in having])
        value_T = np.array([drawn.mean(key, JUDGED) for key in having])
        value_TR = torch.stack([drawn.resampled(key, JUDGED) for key in having]).numpy()
        correlation = _correlation(told_T[:, None], value_T[:, None])[0]
        if np.isnan(correlation):
            continue
        yield line(
            f"{AREA}.{drawn.cell.dataset}.{drawn.cell.protocol}.predicted_by_{name}.spearman",
            of_resamples(float(correlation), torch.from_numpy(_resampled_correlations(told_T, value_TR))),
            n=len(having),
            protocol=f"rank correlation with {JUDGED} over n tokenizers; 95 % bootstrap interval over tokenizers, "
            "requests and seeds",
            runs=drawn.runs(*having),
        )


def _resampled_correlations(told_T: np.ndarray[Any, Any], value_TR: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Rank correlations [R] over tokenizers that are drawn with replacement; those of one value only are left out."""
    num_tokenizers, num_resamples = value_TR.shape
    drawn_TR = np.random.default_rng(SEED).integers(num_tokenizers, size=value_TR.shape)
    found_R = _correlation(told_T[drawn_TR], np.take_along_axis(value_TR, drawn_TR, 0))
    assert len(found_R) == num_resamples
    kept: np.ndarray[Any, Any] = found_R[~np.isnan(found_R)]
    return kept


def _correlation(first_TR: np.ndarray[Any, Any], second_TR: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Spearman's rank correlation of each column, [R]; NaN where a column has one value only."""
    first_TR, second_TR = (rankdata(column, axis=0) - (len(column) + 1) / 2 for column in (first_TR, second_TR))
    spread_R = np.sqrt((first_TR**2).sum(0) * (second_TR**2).sum(0))
    with np.errstate(invalid="ignore"):
        found_R: np.ndarray[Any, Any] = (first_TR * second_TR).sum(0) / spread_R
    return found_R


def _gain(prefixes: Sequence[Mapping[str, Any]], place: int, own: str, chance: str) -> float | None:
    """How much more items with a prefix in common have than any two; None where that is not known."""
    if place >= len(prefixes) or prefixes[place][own] is None or prefixes[place][chance] is None:
        return None
    return float(prefixes[place][own] - prefixes[place][chance])


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _range(values: Sequence[float]) -> Estimate:
    return Estimate(sum(values) / len(values), min(values), max(values))


def _name(drawn: Drawn, method: str, metric: str) -> str:
    return f"{AREA}.{drawn.cell.dataset}.{drawn.cell.protocol}.{method}.{metric}"


if __name__ == "__main__":
    raise SystemExit(main())
