import json
import math
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

import tesserec.training.loop as module
from tesserec.errors import BundleError, TrainingInterrupted
from tesserec.training.loop import Job, TrainingConfig, seeded, train_model
from tesserec.types import FitContext

NUM_BATCHES = 4


class Linear(nn.Module):
    """A linear map behind dropout, with weights that are frozen, unused or only kept."""

    def __init__(self):
        super().__init__()
        with seeded(7):
            self.linear = nn.Linear(5, 2)
        self.dropout = nn.Dropout(0.1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("steps", torch.tensor(0))


def linear_job(between=lambda step: None, validate=None, **settings):
    """Sixteen examples of a linear map in four batches; ``between`` is called with the number of each step."""
    with seeded(1):
        x, weight = torch.randn(16, 5), torch.randn(5, 2)
    network = Linear()

    def batches(generator):
        return torch.randperm(16, generator=generator).split(4)

    def loss(rows):
        network.steps += 1
        between(int(network.steps))
        return (network.linear(network.dropout(x[rows])) - x[rows] @ weight).square().mean()

    check = None if validate is None else lambda: validate(network)
    return network, Job("linear", network, batches, NUM_BATCHES, loss, check, settings)


def weights(network):
    return {name: value.tolist() for name, value in network.state_dict().items()}


def comparable(log):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in log]


def trained(config=None, context=None, **job):
    network, made = linear_job(**job)
    log = train_model(made, config or TrainingConfig(epochs=3), context or FitContext(seed=5))
    return network, log


def interrupt_at(number):
    """A real SIGINT while step ``number`` is worked out."""
    return lambda step: signal.raise_signal(signal.SIGINT) if step == number else None


def clock(monkeypatch, seconds=1.0):
    """Steps take ``seconds`` each."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: seconds * next(ticks)))


def decreasing_loss(network):
    return -float((network.linear.weight.detach()).square().sum())


# What it learns, and what it says.


def test_a_linear_problem_is_learnt():
    network, log = trained(TrainingConfig(epochs=150, learning_rate=0.05, weight_decay=0.0))
    assert log[0]["loss"] > 1
    network.dropout.p = 0.0
    with seeded(1):
        x, weight = torch.randn(16, 5), torch.randn(5, 2)
    assert float((network.linear(x) - x @ weight).square().mean().detach()) < 0.05
    assert [entry["epoch"] for entry in log] == list(range(1, 151))
    assert not network.training
    assert set(log[0]) == {"epoch", "loss", "seconds"}
    assert network.frozen.tolist() == [1, 1]


def test_the_log_counts_training_seconds_and_means_of_losses(monkeypatch):
    clock(monkeypatch, 0.5)
    losses, told = [], []

    def progress(task, done, total, note=""):
        told.append((task, done, total, note))

    network, job = linear_job(validate=lambda _: 0.25)
    inner = job.loss

    def loss(rows):
        losses.append(inner(rows))
        return losses[-1]

    job = Job(job.name, network, job.batches, NUM_BATCHES, loss, job.validate)
    log = train_model(job, TrainingConfig(epochs=2), FitContext(progress=progress))
    values = [float(value.detach()) for value in losses]
    assert log == [
        {"epoch": 1, "loss": pytest.approx(sum(values[:4]) / 4), "seconds": 2, "validation": 0.25},
        {"epoch": 2, "loss": pytest.approx(sum(values[4:]) / 4), "seconds": 4, "validation": 0.25},
    ]
    assert [call[1] for call in told] == [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert told[5][::2] == ("train linear", 2)
    assert told[5][3] == f"loss {(values[4] + values[5]) / 2:.3f}"


def test_the_same_seed_gives_the_same_result_and_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    network, log = trained()
    again, log_again = trained()
    assert weights(network) == weights(again)
    assert comparable(log) == comparable(log_again)
    assert torch.equal(torch.get_rng_state(), before)
    other, _ = trained(context=FitContext(seed=6))
    assert weights(network) != weights(other)


def test_batches_come_in_another_order_in_each_epoch():
    orders = []
    network, job = linear_job()

    def batches(generator):
        orders.append(torch.randperm(16, generator=generator))
        return orders[-1].split(4)

    train_model(Job(job.name, network, batches, 4, job.loss), TrainingConfig(epochs=2), FitContext(seed=2))
    expected = [torch.randperm(16, generator=torch.Generator().manual_seed(2_000_006 + epoch)) for epoch in (0, 1)]
    assert [order.tolist() for order in orders] == [order.tolist() for order in expected]


def test_without_batches_or_epochs_nothing_happens():
    network, job = linear_job()
    empty = Job("empty", network, lambda generator: [], 0, job.loss)
    assert comparable(train_model(empty, TrainingConfig(epochs=2), FitContext())) == [
        {"epoch": 1, "loss": 0},
        {"epoch": 2, "loss": 0},
    ]
    assert weights(network) == weights(Linear())
    assert trained(TrainingConfig(epochs=0))[1] == []


def test_matrix_products_may_be_in_bfloat16():
    seen = []

    def between(step):
        seen.append(torch.is_autocast_enabled("cpu"))

    network, _ = trained(TrainingConfig(epochs=1, precision="bfloat16"), between=between)
    assert seen == [True] * 4
    assert network.linear.weight.dtype == torch.float32
    seen.clear()
    trained(TrainingConfig(epochs=1), between=between)
    assert seen == [False] * 4


# The optimizer: a parameter whose gradient never changes moves by just the learning rate.


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.matrix = nn.Parameter(torch.ones(1, 2, dtype=torch.float64))


def rates(config, num_batches, context=None):
    """The share of the learning rate that each step used."""
    slope, seen = Slope(), []
    steepness = iter([1.0, 100.0] * 100)

    def loss(batch):
        seen.append(slope.scalar.item())
        return slope.scalar * next(steepness) + 0 * slope.matrix.sum()

    job = Job("slope", slope, lambda generator: range(num_batches), num_batches, loss)
    log = train_model(job, config, context or FitContext())
    seen.append(slope.scalar.item())
    moved = [(a - b) / config.learning_rate for a, b in pairwise(seen)]
    return moved, slope, log


def cosine(left):
    return 0.5 * (1 + math.cos(math.pi * left))


def test_the_learning_rate_rises_and_falls():
    config = TrainingConfig(epochs=2, warmup=0.2, learning_rate=0.5, weight_decay=0.1)
    expected = [1 / 3, 2 / 3, *(cosine((step / 10 - 0.2) / 0.8) for step in range(2, 10))]
    found, slope, _ = rates(config, 5)
    assert found == pytest.approx(expected, abs=1e-5)
    decayed = math.prod(1 - 0.1 * 0.5 * rate for rate in expected)
    assert slope.matrix.tolist() == [pytest.approx([decayed] * 2)]


def test_the_learning_rate_stays_after_the_warm_up():
    constant = TrainingConfig(epochs=1, warmup=0.5, schedule="constant", learning_rate=0.25)
    assert rates(constant, 4)[0] == pytest.approx([1 / 3, 2 / 3, 1, 1], abs=1e-5)
    at_once = TrainingConfig(epochs=1, warmup=0.0, schedule="constant")
    assert rates(at_once, 3)[0] == pytest.approx([1, 1, 1], abs=1e-5)
    only = TrainingConfig(epochs=1, warmup=1.0)
    assert rates(only, 3)[0] == pytest.approx([1 / 4, 2 / 4, 3 / 4], abs=1e-5)


def test_a_deadline_ends_the_run_and_its_schedule(monkeypatch):
    clock(monkeypatch)
    config = TrainingConfig(epochs=2, warmup=0.2)
    found, _, log = rates(config, 5, FitContext(deadline_s=4.0))
    assert found == pytest.approx([1 / 3, *(cosine((t / 4 - 0.2) / 0.8) for t in (1, 2, 3))], abs=1e-5)
    assert [(entry["epoch"], entry["seconds"]) for entry in log] == [(1, 4)]
    clock(monkeypatch)
    _, _, log = rates(config, 5, FitContext(deadline_s=5.5))
    assert [(entry["epoch"], entry["seconds"]) for entry in log] == [(1, 5), (2, 6)]
    assert rates(config, 5, FitContext(deadline_s=0.0))[2] == []


# Validation.


def scripted(values, seen):
    """Validation values one after another; the weights at each are noted."""

    def validate(network):
        assert not network.training
        assert not torch.is_grad_enabled()
        seen.append(weights(network))
        return values[len(seen) - 1]

    return validate


@pytest.mark.parametrize(("values", "best"), [([1, 3, 2], 1), ([-5, -7, -6], 0), ([1, 2, 2], 2)])
def test_the_weights_of_the_best_epoch_are_kept(values, best):
    seen = []
    network, log = trained(validate=scripted(values, seen))
    assert [entry["validation"] for entry in log] == values
    assert weights(network) == seen[best]
    assert seen[0] != seen[1] != seen[2]
    unvalidated, _ = trained()
    assert weights(unvalidated) == seen[2]


@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 6), (None, 6)])
def test_patience_counts_epochs_without_a_better_value(patience, epochs):
    seen = []
    config = TrainingConfig(epochs=6, patience=patience)
    _, log = trained(config, validate=scripted([1, 3, 2, 3, 9, 1], seen))
    assert len(log) == epochs
    assert len(trained(config)[1]) == 6


def test_the_module_trains_again_after_a_validation():
    modes = []
    network, job = linear_job(lambda step: modes.append(network.training), lambda network: 0.0)
    train_model(job, TrainingConfig(epochs=2), FitContext())
    assert modes == [True] * 8


# Ctrl-C, kills and checkpoints.


@pytest.mark.parametrize("number", [1, 3, 4, 6, 12])
def test_a_run_that_was_stopped_goes_on_to_the_same_result(tmp_path, number):
    expected, expected_log = trained(validate=decreasing_loss)
    context = FitContext(seed=5, checkpoint_folder=tmp_path / "new")
    handler = signal.getsignal(signal.SIGINT)
    epoch = -(-number // 4)
    path = tmp_path / "new" / "linear.safetensors"
    message = rf"training of linear was stopped in epoch {epoch}: {path} holds its state, and the same call goes on"
    with pytest.raises(TrainingInterrupted, match=message):
        trained(context=context, validate=decreasing_loss, between=interrupt_at(number))
    assert signal.getsignal(signal.SIGINT) is handler
    steps = []
    network, log = trained(context=context, validate=decreasing_loss, between=steps.append)
    assert weights(network) == weights(expected)
    assert comparable(log) == comparable(expected_log)
    assert steps == list(range(number + 1, 13))
    assert log[-1]["seconds"] >= log[0]["seconds"] > 0


def test_ctrl_c_while_validating_keeps_the_epoch(tmp_path):
    seen = []

    def validate(network):
        seen.append(1)
        if len(seen) in (1, 3):
            signal.raise_signal(signal.SIGINT)
        return float(len(seen))

    context = FitContext(seed=5, checkpoint_folder=tmp_path)
    with pytest.raises(TrainingInterrupted, match=r"stopped in epoch 2: "):
        trained(context=context, validate=validate)
    with pytest.raises(TrainingInterrupted, match=r"stopped in epoch 3: "):
        trained(context=context, validate=validate)
    network, log = trained(context=context, validate=validate)
    assert [entry["validation"] for entry in log] == [1, 2, 3]
    assert weights(network) == weights(trained()[0])


def test_ctrl_c_without_a_folder_loses_the_run():
    with pytest.raises(TrainingInterrupted, match=r"^training of linear was stopped; no checkpoint folder was given$"):
        trained(between=interrupt_at(2))


def test_ctrl_c_after_the_last_step_is_not_swallowed():
    class Late(Linear):
        def eval(self):
            signal.raise_signal(signal.SIGINT)
            return super().eval()

    job = Job("late", Late(), lambda generator: [], 0, lambda batch: torch.tensor(0.0))
    with pytest.raises(KeyboardInterrupt):
        train_model(job, TrainingConfig(epochs=1), FitContext())


def test_an_error_in_a_step_passes_through_and_ctrl_c_works_again():
    handler = signal.getsignal(signal.SIGINT)

    def between(step):
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        trained(between=between)
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_works_in_a_thread_that_gets_no_signals():
    found = []
    thread = threading.Thread(target=lambda: found.append(trained()))
    thread.start()
    thread.join()
    assert weights(found[0][0]) == weights(trained()[0])


def test_a_finished_run_is_not_trained_again(tmp_path):
    context = FitContext(seed=5, checkpoint_folder=tmp_path)
    network, log = trained(context=context, validate=decreasing_loss)
    steps = []
    again, log_again = trained(context=context, validate=decreasing_loss, between=steps.append)
    assert steps == []
    assert log_again == log
    assert weights(again) == weights(network)
    assert [path.name for path in tmp_path.iterdir()] == ["linear.safetensors"]


@pytest.mark.parametrize(
    "changes",
    [
        {"config": TrainingConfig(epochs=3, learning_rate=0.5)},
        {"context": {"seed": 6}},
        {"items": 7},
    ],
)
def test_a_checkpoint_of_another_run_is_not_used(tmp_path, changes):
    trained(context=FitContext(seed=5, checkpoint_folder=tmp_path))
    context = FitContext(**({"seed": 5, "checkpoint_folder": tmp_path} | changes.pop("context", {})))
    steps = []
    trained(**{"context": context, "between": steps.append} | changes)
    assert len(steps) == 12


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    context = FitContext(checkpoint_folder=tmp_path)
    path = tmp_path / "linear.safetensors"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(BundleError, match=rf"^{path} is damaged \(.+\): delete it to train from the start$"):
        trained(context=context)


def test_long_epochs_are_saved_meanwhile(monkeypatch, tmp_path):
    """Steps of one second, saved when more than so many are not on disk, and at the end of each epoch of four."""
    clock(monkeypatch)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY_S", 1.5)
    seen = []

    def between(step):
        seen.append(steps_on_disk(tmp_path) if (tmp_path / "linear.safetensors").exists() else 0)

    trained(TrainingConfig(epochs=2), FitContext(checkpoint_folder=tmp_path), between=between)
    assert seen == [0, 0, 2, 2, 4, 4, 6, 6]
    clock(monkeypatch)
    monkeypatch.setattr(module, "CHECKPOINT_EVERY_S", 2.0)
    seen.clear()
    (tmp_path / "linear.safetensors").unlink()
    trained(TrainingConfig(epochs=2), FitContext(checkpoint_folder=tmp_path), between=between)
    assert seen == [0, 0, 0, 3, 4, 4, 4, 7]


def steps_on_disk(folder):
    with safe_open(folder / "linear.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return facts["epoch"] * NUM_BATCHES + facts["step"]


LONG = TrainingConfig(epochs=25)


def slowly(folder):
    """A run for a process that will be killed: every step is saved."""
    torch.set_num_threads(1)
    module.CHECKPOINT_EVERY_S = -1.0
    context = FitContext(seed=5, checkpoint_folder=Path(folder))
    trained(LONG, context, validate=decreasing_loss, between=lambda step: time.sleep(0.02))


def test_a_killed_process_goes_on_to_the_same_result(tmp_path):
    """SIGKILL at whatever step it has come to, the rest here."""
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    program += f"import test_loop; test_loop.slowly({str(tmp_path)!r})"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while process.poll() is None and not (
            (tmp_path / "linear.safetensors").exists() and steps_on_disk(tmp_path) > 9
        ):
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert 9 < steps_on_disk(tmp_path) < 100
    network, log = trained(LONG, FitContext(seed=5, checkpoint_folder=tmp_path), validate=decreasing_loss)
    expected, expected_log = trained(LONG, validate=decreasing_loss)
    assert weights(network) == weights(expected)
    assert comparable(log) == comparable(expected_log)


def test_settings():
    made = TrainingConfig()
    assert (made.epochs, made.batch_size, made.learning_rate, made.weight_decay) == (20, 128, 1e-3, 0.01)
    assert (made.warmup, made.schedule, made.patience, made.precision) == (0.05, "cosine", None, "float32")
    assert module.CHECKPOINT_EVERY_S == 60.0
