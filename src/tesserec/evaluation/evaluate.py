"""``evaluate`` a retriever on withheld requests, and ``compare`` two reports on the same ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.evaluation.intervals import Estimate, estimate, estimates, paired, request_weights, spread
from tesserec.evaluation.metrics import AGGREGATES, METRICS, Lists, Ranks, item_ranks, order_ranks
from tesserec.evaluation.report import Report, Slice
from tesserec.evaluation.slices import item_slices, request_slices
from tesserec.types import Candidates, Catalog, Holdout, Interactions, Progress, Retriever, as_numpy, silent

__all__ = ["PairedTest", "ask", "compare", "evaluate", "judge_lists", "over_seeds"]

KEPT_ITEMS = 20
"""Items of each list that a report keeps."""

SLICE_METRICS = ("recall", "ndcg")
"""The metrics that are taken again over slices."""

AGGREGATE_RESAMPLES = 200


def evaluate(
    retriever: Retriever,
    holdout: Holdout,
    *,
    train: Interactions,
    catalog: Catalog | None = None,
    ks: Sequence[int] = (5, 10),
    label: str | None = None,
    split: str = "unnamed",
    refit: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    num_candidates: int = 20,
    costs: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Report:
    """Ask ``retriever`` every request of ``holdout`` and judge its lists; see ``judge_lists`` for the arguments.

    ``num_candidates`` items are asked for a request, so that a tie that reaches beyond k is seen; at least max(ks).
    ``costs`` is what is known of the fit; ``retrieve_s_per_1000`` (seconds per 1,000 requests) is measured here.
    """
    _check(holdout, train, ks)
    if num_candidates < max(ks):
        raise DataError(f"num_candidates = {num_candidates} is less than k = {max(ks)}: ask for at least as many")
    candidates, seconds = ask(retriever, holdout, num_candidates, batch_size=batch_size, progress=progress)
    measured = {"retrieve_s_per_1000": seconds}
    return judge_lists(
        candidates,
        holdout,
        train=train,
        catalog=catalog,
        ks=ks,
        label=label or type(retriever).__name__,
        split=split,
        refit=refit,
        seed=seed,
        costs={**(costs or {}), **measured},
    )


def ask(
    retriever: Retriever, holdout: Holdout, k: int, *, batch_size: int = 256, progress: Progress = silent
) -> tuple[Candidates, float]:
    """(``k`` items at most for each request of ``holdout``, the seconds that 1,000 requests took)."""
    parts: list[Candidates] = []
    start = time.perf_counter()
    for rows in holdout.requests.batches(batch_size):
        parts.append(retriever.retrieve(holdout.requests.take(rows), k))
        progress("evaluate", float(rows[-1]) + 1, len(holdout))
    seconds = time.perf_counter() - start
    return Candidates.concatenate(parts), seconds / len(holdout) * 1000


def judge_lists(
    candidates: Candidates,
    holdout: Holdout,
    *,
    train: Interactions,
    catalog: Catalog | None = None,
    ks: Sequence[int] = (5, 10),
    label: str,
    split: str = "unnamed",
    refit: bool = False,
    seed: int = 0,
    costs: Mapping[str, float] | None = None,
    notes: Mapping[str, int] | None = None,
) -> Report:
    """The report on one list for each request of ``holdout``.

    ``train`` is the log without the holdout: popularity, head, tail and cold are counted in its positive events.
    ``catalog`` adds slices by domain. ``split`` names the split and part, and ``refit`` says whether the model was
    trained on validation events too: both are stamped into the protocol. Raises ``DataError`` for an empty holdout,
    cut-offs below 1, items outside the vocabulary of ``train``, or another number of lists than of requests.
    """
    _check(holdout, train, ks)
    counts_N = train.positives().item_counts()
    ranks_M = item_ranks(candidates, holdout.relevant)
    values = _values(order_ranks(holdout.relevant.offsets, ranks_M), ks, tuple(METRICS))
    return Report(
        label=label,
        protocol=_protocol(holdout, split, refit),
        metrics=estimates(values, seed=seed),
        slices=_slices(ranks_M, holdout, item_slices(holdout, counts_N, catalog), ks=ks, seed=seed),
        aggregates=_aggregates(candidates, holdout, counts_N, ks, seed),
        costs=dict(costs or {}),
        notes=dict(notes or {}),
        values=values,
        items_BK=candidates.items_BK[:, :KEPT_ITEMS].int(),
    )


@dataclass(frozen=True)
class PairedTest:
    """The difference of two methods on the same requests, first minus second."""

    first: str
    second: str
    metric: str
    first_mean: float
    second_mean: float
    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided, in (0, 1]."""
    num_requests: int


def compare(
    first: Report | Sequence[Report], second: Report | Sequence[Report], metric: str = "ndcg10", *, seed: int = 0
) -> PairedTest:
    """The paired bootstrap test of ``metric``; give several reports a side, one a seed, to resample seeds as well.

    Raises ``DataError`` where the protocols differ, naming what differs, or where per-request values are missing.
    """
    firsts, seconds = _listed(first), _listed(second)
    _check_protocols([*firsts, *seconds])
    first_SB = torch.stack([r.values_of(metric) for r in firsts])
    second_SB = torch.stack([r.values_of(metric) for r in seconds])
    found = paired(first_SB, second_SB, seed=seed)
    return PairedTest(
        firsts[0].label,
        seconds[0].label,
        metric,
        float(first_SB.double().nanmean(1).mean()),
        float(second_SB.double().nanmean(1).mean()),
        found.mean,
        found.low,
        found.high,
        found.p_value,
        first_SB.shape[1],
    )


def over_seeds(reports: Sequence[Report], metric: str = "ndcg10", *, seed: int = 0) -> Estimate:
    """The mean of ``metric`` over reports of one method with several seeds; the interval is over seeds and requests."""
    _check_protocols(reports)
    return estimate(torch.stack([r.values_of(metric) for r in reports]), seed=seed)


def _listed(reports: Report | Sequence[Report]) -> list[Report]:
    return [reports] if isinstance(reports, Report) else list(reports)


def _check_protocols(reports: Sequence[Report]) -> None:
    first = reports[0]
    for other in reports[1:]:
        for key in sorted({*first.protocol, *other.protocol}):
            mine, theirs = first.protocol.get(key), other.protocol.get(key)
            if mine != theirs:
                raise DataError(
                    f'"{first.label}" and "{other.label}" cannot be compared: {key} is {mine!r} in the one and '
                    f"{theirs!r} in the other; evaluate both in the same way"
                )


def _check(holdout: Holdout, train: Interactions, ks: Sequence[int]) -> None:
    if not len(holdout):
        raise DataError("the holdout has no requests: there is nothing to judge; check the split")
    if not ks or min(ks) < 1:
        raise DataError(f"ks = {tuple(ks)}: give cut-offs of at least 1, such as (5, 10)")
    largest = int(holdout.relevant.values.max())
    if largest >= len(train.items):
        raise DataError(
            f"the holdout holds item {largest}, train knows {len(train.items)} items: both must share a vocabulary"
        )


def _values(ranks: Ranks, ks: Sequence[int], names: Sequence[str]) -> dict[str, Tensor]:
    return {f"{name}{k}": METRICS[name](ranks, k).float() for name in names for k in ks}


def _slices(
    ranks_M: Tensor, holdout: Holdout, masks: Mapping[str, Tensor], *, ks: Sequence[int], seed: int
) -> dict[str, Slice]:
    """Slices that any request has a value in; ``masks`` are those of ``item_slices``."""
    whole = _values(order_ranks(holdout.relevant.offsets, ranks_M), ks, SLICE_METRICS)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, keep_M in masks.items():
        ranks = order_ranks(holdout.relevant.offsets, ranks_M, keep_M)
        parts[name] = _values(ranks, ks, SLICE_METRICS)
    for name, keep_B in request_slices(holdout).items():
        parts[name] = {metric: torch.where(keep_B, column, torch.nan) for metric, column in whole.items()}
    sizes = {name: int((~next(iter(part.values())).isnan()).sum()) for name, part in parts.items()}
    return {name: Slice(sizes[name], estimates(part, seed=seed)) for name, part in parts.items() if sizes[name]}


def _aggregates(
    candidates: Candidates, holdout: Holdout, counts_N: Tensor, ks: Sequence[int], seed: int
) -> dict[str, Estimate]:
    found = {}
    once = torch.ones(1, len(holdout))
    history = holdout.requests.history.positives().as_ragged()
    for k in ks:
        lists = Lists(candidates.items_BK[:, :k], counts_N, history)
        resampled: dict[str, list[Tensor]] = {name: [] for name in AGGREGATES}
        for weights_rB in request_weights(len(holdout), num_resamples=AGGREGATE_RESAMPLES, seed=seed):
            for name, metric in AGGREGATES.items():
                resampled[name].append(metric(lists, weights_rB))
        for name, metric in AGGREGATES.items():
            found[f"{name}{k}"] = spread(torch.cat(resampled[name]), float(metric(lists, once)))
    return found


def _protocol(holdout: Holdout, split: str, refit: bool) -> dict[str, str | int | bool]:
    filters = holdout.requests.filters
    return {
        "split": split,
        "refit": refit,
        "seen_items": "removed" if filters.exclude_history else "allowed",
        "other_filters": filters.excluded is not None or filters.available_N is not None,
        "ties": "mean rank",
        "num_requests": len(holdout),
        "holdout": _digest(holdout),
    }


def _digest(holdout: Holdout) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of histories and relevant items."""
    digest = hashlib.sha256()
    history = holdout.requests.history
    for column in (history.offsets, history.items, holdout.relevant.offsets, holdout.relevant.values):
        digest.update(as_numpy(column.long()).tobytes())
    return digest.hexdigest()[:16]
