"""Bootstrap intervals and paired tests over requests, and over seeds and requests.

Dimensions: B requests · G groups of requests · M columns · R resamples · S seeds.

Requests are the unit that is resampled: a resample draws B of them with replacement and takes the mean again. Beyond
``MAX_GROUPS`` requests, they are first dealt at random into that many groups of equal size and groups are drawn, which
leaves the variance of a mean as it is and costs the same for a million requests as for twenty thousand. Everything is
a function of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tesserec.errors import DataError
from tesserec.types import as_numpy

__all__ = [
    "MAX_GROUPS",
    "Difference",
    "Estimate",
    "draw_seeds",
    "estimate",
    "estimates",
    "of_resamples",
    "paired",
    "resample_means",
    "spread",
]

MAX_GROUPS = 20_000
_CHUNK = 4_000_000
"""Request weights that are held at once (about 60 MB)."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; NaN where nothing was defined."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """First minus second: the mean difference, its 95 % interval and a two-sided p-value in (0, 1]."""

    mean: float
    low: float
    high: float
    p_value: float


def estimate(values: Tensor, *, num_resamples: int = 1000, seed: int = 0) -> Estimate:
    """The mean of per-request values [B], or of [S, B] over seeds, with its percentile bootstrap interval.

    NaN values are left out. With several seeds, seeds and requests are both drawn with replacement; few seeds say
    little about their own spread, so that such an interval is rather too short.
    """
    values_SB = _by_seed(values)
    means_R = draw_seeds(resample_means(list(values_SB), num_resamples=num_resamples, seed=seed), seed)
    return of_resamples(_mean(values_SB), means_R)


def estimates(values: Mapping[str, Tensor], *, num_resamples: int = 1000, seed: int = 0) -> dict[str, Estimate]:
    """The ``estimate`` of each of several columns [B] over the same requests, from the same resamples."""
    if not values:
        return {}
    means_RM = resample_means(list(values.values()), num_resamples=num_resamples, seed=seed)
    return {
        name: of_resamples(_mean(column[None]), means_R)
        for (name, column), means_R in zip(values.items(), means_RM.T, strict=True)
    }


def paired(first: Tensor, second: Tensor, *, num_resamples: int = 10_000, seed: int = 0) -> Difference:
    """First minus second over the same requests: values [B], or [S, B] with seeds of their own.

    A request is drawn for both sides at once; seeds are drawn for each side on its own. The p-value is twice the
    share of resamples on the other side of zero, (1 + count) / (1 + R), at most 1. Raises ``DataError`` where the
    numbers of requests differ.
    """
    first_SB, second_SB = _by_seed(first), _by_seed(second)
    if first_SB.shape[1] != second_SB.shape[1]:
        raise DataError(
            f"{first_SB.shape[1]} values against {second_SB.shape[1]}: a paired test needs the same requests"
        )
    means_RM = resample_means([*first_SB, *second_SB], num_resamples=num_resamples, seed=seed)
    num_first = len(first_SB)
    differences_R = draw_seeds(means_RM[:, :num_first], seed) - draw_seeds(means_RM[:, num_first:], seed + 1)
    found = of_resamples(_mean(first_SB) - _mean(second_SB), differences_R)
    beyond = min(int((differences_R <= 0).sum()), int((differences_R >= 0).sum()))
    p_value = min(1.0, 2 * (1 + beyond) / (1 + len(differences_R)))
    return Difference(found.mean, found.low, found.high, p_value)


def spread(values_R: Tensor, at: float) -> Estimate:
    """The interval of a figure that is not a mean: its resampled values, moved so that their mean is ``at``.

    A resample repeats requests, so it holds fewer distinct items than the lists themselves: what the resamples say of
    such a figure is how far it varies, not where it lies.
    """
    return of_resamples(at, values_R - values_R.nanmean() + at)


def resample_means(columns: Sequence[Tensor], *, num_resamples: int, seed: int) -> Tensor:
    """The mean of the defined values of each column [B] in each resample, [R, M] float64; NaN where it has none.

    All columns are over the same requests and drawn together, so that differences of columns are paired. Columns that
    are defined for the same requests share the sums of their weights: many columns cost little more than their values.
    """
    if not len(columns[0]):
        raise DataError("there are no values to take the mean of: give at least one request")
    group_B = _groups(len(columns[0]), seed)
    defined = [~column.isnan() for column in columns]
    places: dict[bytes, int] = {}
    place_M = [places.setdefault(as_numpy(d).tobytes(), len(places)) for d in defined]
    masks = [defined[place_M.index(place)] for place in places.values()]
    parts = [torch.where(d, c.double(), 0.0) for c, d in zip(columns, defined, strict=True)]
    table_GM = torch.stack([torch.bincount(group_B, weights=p.double()) for p in [*parts, *masks]], dim=1)
    means = []
    for weights_rG in request_weights(len(table_GM), num_resamples=num_resamples, seed=seed):
        sums_rM = weights_rG @ table_GM
        means.append(sums_rM[:, : len(parts)] / sums_rM[:, len(parts) :][:, place_M])
    return torch.cat(means)


def request_weights(num_requests: int, *, num_resamples: int, seed: int) -> Iterator[Tensor]:
    """How often each request is drawn in each resample, [r, B] float64 in chunks of bounded size, R rows in all."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // num_requests)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        drawn = generator.integers(0, num_requests, (size, num_requests))
        drawn += num_requests * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_requests)
        yield torch.from_numpy(counts.reshape(size, num_requests)).double()


def _groups(num_requests: int, seed: int) -> Tensor:
    """The group of each request: its own while they are few, else one of ``MAX_GROUPS`` dealt at random."""
    if num_requests <= MAX_GROUPS:
        return torch.arange(num_requests)
    order = torch.randperm(num_requests, generator=torch.Generator().manual_seed(seed))
    return order % MAX_GROUPS


def _by_seed(values: Tensor) -> Tensor:
    if values.ndim not in (1, 2):
        raise DataError(f"values have shape {tuple(values.shape)}: expected [requests] or [seeds, requests]")
    return values[None] if values.ndim == 1 else values


def draw_seeds(means_RS: Tensor, seed: int) -> Tensor:
    """The mean over seeds [S] drawn with replacement in each resample [R, S], [R]."""
    num_seeds = means_RS.shape[1]
    drawn = np.random.default_rng([seed, num_seeds]).integers(0, num_seeds, means_RS.shape)
    return means_RS.gather(1, torch.from_numpy(drawn)).mean(1)


def _mean(values_SB: Tensor) -> float:
    return float(values_SB.double().nanmean(1).mean())


def of_resamples(mean: float, means_R: Tensor) -> Estimate:
    """``mean`` with the interval that holds the middle 95 % of its resampled values; NaN values are left out."""
    defined = as_numpy(means_R[~means_R.isnan()])
    if not len(defined):
        return Estimate(mean, math.nan, math.nan)
    low, high = np.quantile(defined, [0.025, 0.975])
    return Estimate(mean, float(low), float(high))
