"""What a fit will need: the arithmetic, and that asking changes nothing."""

import dataclasses
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tesserec.nn.transformer import TransformerConfig
from tesserec.retrievers.cooccurrence import PAIR_BYTES, Cooccurrence
from tesserec.retrievers.mosaic import Mosaic
from tesserec.retrievers.sasrec import SASRec
from tesserec.retrievers.tiger import TIGER
from tesserec.testing.data import catalog_of_size, chain, interactions_of, requests_of
from tesserec.training import estimate as module
from tesserec.training import loop, measure
from tesserec.training.estimate import (
    epoch_seconds,
    estimate_training,
    few_requests,
    total_seconds,
    validation_ratio,
)
from tesserec.training.loop import Job, TrainingConfig, step_seconds
from tesserec.types import Estimates, FitContext, Holdout, Ragged, SemanticIds

MIB = 2**20
CODES = SemanticIds(torch.cartesian_prod(torch.arange(3), torch.arange(4)), (3, 4), "planted")


def questions(number):
    users = [[[n % 12]] for n in range(number)]
    return Holdout(requests_of(users), Ragged.of([[(n + 1) % 12] for n in range(number)]))


def clock(monkeypatch):
    """Every look at the clock is a second after the one before."""
    ticks = count()
    for one in (loop, module, measure):
        monkeypatch.setattr(one, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))


def job_of(sizes, validate=None, memory_bytes=0):
    """A job whose batches are of the given sizes; a step on one of ``size`` holds ``size`` · ``memory_bytes``."""
    network = nn.Linear(1000, 1, bias=False)
    seen = []

    def loss(size):
        seen.append(size)
        torch.ones(size * memory_bytes, dtype=torch.uint8)
        return network.weight.sum()

    return seen, Job("sizes", network, lambda generator: sizes, 2 * len(sizes), loss, validate, {}, lambda size: size)


def test_other_sizes_lie_on_the_line_between_those_timed():
    # 10 takes 1 s and 20 takes 3 s, so 15 takes 2 s; beyond the largest nothing is guessed.
    assert epoch_seconds([10, 15, 30], [20, 10, 20], [2.0, 1.0, 4.0], 12) == 24.0
    assert epoch_seconds([5, 5], [5], [0.5], 3) == 1.5


def test_epochs_and_validations_until_the_deadline():
    assert total_seconds(10, 2, 3, None) == total_seconds(10, 2, 3, 30) == total_seconds(10, 2, 3, 50) == 36
    assert total_seconds(10, 2, 3, 15) == 15 + 2 * 2
    assert total_seconds(10, 2, 3, 20) == 20 + 2 * 2
    assert total_seconds(0, 2, 3, 1) == 6


def test_few_requests_are_spread_over_all():
    context = few_requests(FitContext(validation=questions(600), checkpoint_folder="folder"))
    assert context.checkpoint_folder is None
    assert len(context.validation) == 256
    assert context.validation.relevant[0].tolist() == [1]
    assert context.validation.relevant[255].tolist() == [600 % 12]
    assert validation_ratio(FitContext(validation=questions(600))) == 600 / 256
    small = questions(3)
    assert few_requests(FitContext(validation=small)).validation is small
    assert validation_ratio(FitContext(validation=small)) == 1
    assert few_requests(FitContext()).validation is None
    assert validation_ratio(FitContext()) == 0


def test_smallest_and_largest_batches_are_timed_after_two_to_warm_up(monkeypatch):
    seen, job = job_of([8, 1, 4, 2, 3, 7, 6, 5, 9, 10, 11, 12, 13, 14, 15])
    clock(monkeypatch)
    found = estimate_training(lambda context: job, TrainingConfig(epochs=3), FitContext())
    assert seen == [15, 15, 1, 3, 5, 7, 9, 11, 13, 15]
    # A second to make the job, and an epoch of 30 steps of a second, with a second of reading for 15 of them.
    assert found.seconds == 1 + 3 * (30 + 2)


def test_validation_is_counted_after_each_epoch(monkeypatch):
    _, job = job_of([1, 1], validate=lambda: 0.5)
    clock(monkeypatch)
    context = FitContext(validation=questions(512))
    found = estimate_training(lambda few: job, TrainingConfig(epochs=3), context)
    assert found.seconds == 1 + 3 * (4 + 2) + 3 * 2
    assert estimate_training(lambda few: job, TrainingConfig(epochs=0), context).seconds == 1
    nothing = dataclasses.replace(job, batches=lambda generator: [], num_batches=0)
    assert estimate_training(lambda few: nothing, TrainingConfig(epochs=3), FitContext()).seconds == 1


def test_the_peak_is_that_of_the_largest_batch_and_the_best_weights_beside_it():
    _, job = job_of([1, 100], memory_bytes=MIB)
    large = estimate_training(lambda few: job, TrainingConfig(), FitContext()).peak_bytes
    _, small_job = job_of([1, 2], memory_bytes=MIB)
    small = estimate_training(lambda few: small_job, TrainingConfig(), FitContext()).peak_bytes
    assert 80 * MIB < large - small < 120 * MIB
    network = nn.Linear(1000, 25_000, bias=False)
    validated = Job("large", network, lambda generator: [], 0, lambda batch: network.weight.sum(), lambda: 0.0)
    alone = dataclasses.replace(validated, validate=None)
    peaks = [
        estimate_training(lambda few, job=one: job, TrainingConfig(), FitContext(validation=questions(2))).peak_bytes
        for one in (alone, validated)
    ]
    assert 80 * MIB < peaks[1] - peaks[0] < 110 * MIB


def test_steps_are_timed_in_the_order_given(tmp_path):
    seen, job = job_of([])
    found = step_seconds(job, TrainingConfig(), FitContext(checkpoint_folder=tmp_path), [3, 1])
    assert seen == [3, 1]
    assert len(found) == 2
    assert all(seconds > 0 for seconds in found)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [SASRec, TIGER, Mosaic, Cooccurrence])
def test_an_estimate_leaves_the_fit_as_it_was(kind):
    model, training = TransformerConfig(8, 1, 2), TrainingConfig(epochs=2, batch_size=4)
    prototype = kind() if kind is Cooccurrence else kind(model=model, max_length=4, training=training)
    train, catalog = chain()
    context = FitContext(seed=3, semantic_ids=CODES, validation=questions(5))
    states = []
    for estimated in (False, True):
        retriever = dataclasses.replace(prototype)
        torch.manual_seed(0)
        before = torch.get_rng_state()
        if estimated:
            assert isinstance(retriever, Estimates)
            found = retriever.estimate(train, catalog, context)
            assert 0 < found.seconds < 60
            assert found.peak_bytes > 50 * MIB
            assert torch.equal(torch.get_rng_state(), before)
        retriever.fit(train, catalog, context)
        states.append(retriever.state().tensors)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_without_validation_there_is_nothing_to_fuse():
    train, catalog = chain()
    mosaic = Mosaic(model=TransformerConfig(8, 0, 2), training=TrainingConfig(epochs=1, batch_size=4))
    assert mosaic.estimate(train, catalog, FitContext(semantic_ids=CODES)).seconds > 0


def test_pairs_are_bounded_by_events_by_items_and_by_the_limit(monkeypatch):
    counted = Cooccurrence(window=3)
    assert counted.pair_bytes(10, 100) == PAIR_BYTES * 60
    assert counted.pair_bytes(10, 5) == PAIR_BYTES * 25
    assert counted.pair_bytes(10**9, 10**6) == PAIR_BYTES * 2**27
    monkeypatch.setattr("tesserec.retrievers.cooccurrence.CHUNK_EVENTS", 6)
    clock(monkeypatch)
    train, catalog = interactions_of([[[0], [1]]] * 9, 5), catalog_of_size(5)
    assert counted.estimate(train, catalog, FitContext()).seconds == 3
    assert counted.estimate(interactions_of([], 5), catalog, FitContext()).seconds == 0
