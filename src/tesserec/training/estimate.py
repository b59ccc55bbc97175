"""What a training run will need, from a few of its own steps.

A job is made as the fit would make it, and a few batches are timed, from its smallest to its largest; the others take
what those of like size take. Memory is the peak while this goes on, which holds the data, the
network, AdamW's moments and the activations of the largest batch alike. All of it is thrown away: the fit that follows
starts from its own seed and has its own network.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from tesserec.training.loop import Job, TrainingConfig, seeded, step_seconds
from tesserec.training.measure import Measured
from tesserec.training.validation import MAX_REQUESTS
from tesserec.types import Estimate, FitContext

__all__ = ["estimate_training", "few_requests", "total_seconds", "validation_ratio"]

Batch = TypeVar("Batch")

NUM_REQUESTS = 256
"""Validation requests that are answered for an estimate."""
NUM_SEEN = 200
"""Batches whose sizes stand for those of an epoch: batches come in random order."""
NUM_TIMED = 8
"""Batches that are timed, after ``NUM_WARM``."""
NUM_WARM = 2


def few_requests(context: FitContext) -> FitContext:
    """The context with at most ``NUM_REQUESTS`` validation requests, spread evenly, and without checkpoints."""
    validation = context.validation
    if validation is not None and len(validation) > NUM_REQUESTS:
        validation = validation.take(torch.linspace(0, len(validation) - 1, NUM_REQUESTS).long())
    return dataclasses.replace(context, validation=validation, checkpoint_folder=None)


def validation_ratio(context: FitContext) -> float:
    """How many times the requests of ``few_requests`` there are, at least 1; 0 without validation."""
    return 0.0 if context.validation is None else max(1.0, len(context.validation) / NUM_REQUESTS)


def estimate_training(make: Callable[[FitContext], Job[Any]], config: TrainingConfig, context: FitContext) -> Estimate:
    """Time and peak memory of ``train_model(make(context), config, context)``, making the job included.

    ``make`` must return a job of its own network: it is trained a little. A run that patience would end early is
    estimated in full; one with a deadline ends there.
    """
    few = few_requests(context)
    best_bytes, validation_s = 0, 0.0
    with seeded(context.seed), Measured() as cost:
        start = time.perf_counter()
        job = make(few)
        making_s = time.perf_counter() - start
        epoch_s = _epoch_seconds(job, config, few)
        if job.validate is not None:
            validation_s = _seconds(job.module, job.validate) * min(
                validation_ratio(context), MAX_REQUESTS / NUM_REQUESTS
            )
            best_bytes = sum(tensor.numel() * tensor.element_size() for tensor in job.module.state_dict().values())
    seconds = making_s + total_seconds(epoch_s, validation_s, config.epochs, context.deadline_s)
    return Estimate(seconds, cost.peak_rss_bytes + best_bytes)


def total_seconds(epoch_s: float, validation_s: float, epochs: int, deadline_s: float | None) -> float:
    """Seconds of ``epochs`` epochs of training and a validation each, stopped at ``deadline_s`` of training."""
    training_s = epochs * epoch_s
    if deadline_s is not None and training_s > deadline_s:
        epochs, training_s = int(np.ceil(deadline_s / epoch_s)), deadline_s
    return training_s + epochs * validation_s


def epoch_seconds(seen: Sequence[int], timed: Sequence[int], seconds: Sequence[float], num_batches: int) -> float:
    """Seconds of ``num_batches`` batches of sizes like ``seen``, from those ``timed``: piecewise linear in size."""
    sizes = np.unique(timed)
    means = [np.mean([s for size, s in zip(timed, seconds, strict=True) if size == one]) for one in sizes]
    return float(np.interp(seen, sizes, means).mean()) * num_batches


def _epoch_seconds(job: Job[Batch], config: TrainingConfig, context: FitContext) -> float:
    """Seconds of an epoch of ``job``: its steps, and making their batches."""
    generator = torch.Generator().manual_seed(context.seed)
    start = time.perf_counter()
    batches = list(islice(job.batches(generator), NUM_SEEN))
    sizes = [job.positions(batch) for batch in batches]
    reading_s = time.perf_counter() - start
    if not batches:
        return 0.0
    order = np.argsort(sizes, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, NUM_TIMED).round().astype(int)]
    warm = [chosen[-1]] * NUM_WARM
    seconds = step_seconds(job, config, context, (batches[i] for i in [*warm, *chosen]))[NUM_WARM:]
    steps_s = epoch_seconds(sizes, [sizes[i] for i in chosen], seconds, job.num_batches)
    return steps_s + reading_s * job.num_batches / len(batches)


def _seconds(module: nn.Module, validate: Callable[[], float]) -> float:
    module.eval()
    start = time.perf_counter()
    with torch.no_grad():
        validate()
    return time.perf_counter() - start
