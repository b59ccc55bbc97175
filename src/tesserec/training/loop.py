"""The training loop of every neural method: AdamW, a schedule, validation, checkpoints, Ctrl-C, a deadline.

A run killed anywhere resumes from its last checkpoint to the same result, bit for bit on one machine: batches depend on
seed and epoch only, and the generator that dropout draws from is part of the checkpoint.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from tesserec.config import Field, component, settings_of
from tesserec.errors import TrainingInterrupted
from tesserec.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from tesserec.types import FitContext

__all__ = ["Job", "TrainingConfig", "seeded", "step_seconds", "train_model"]

Batch = TypeVar("Batch")

CHECKPOINT_EVERY_S = 60.0
"""Seconds of training that a killed process may lose."""


@component
class TrainingConfig:
    """How a model is trained."""

    epochs: Annotated[int, Field(ge=0)] = 20
    """Passes over the training windows at most."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Windows (or examples) a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's, after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's, on matrices only."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the run over which the learning rate rises from zero."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """What the learning rate does after the warm-up: stay, or fall to zero along half a cosine."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs without a better validation value; None: run all epochs."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the matrix products; weights and losses stay float32."""


@dataclass(frozen=True)
class Job(Generic[Batch]):
    """What is trained: a module, its batches and its loss."""

    name: str
    """What progress and checkpoints call it."""
    module: nn.Module
    batches: Callable[[torch.Generator], Iterable[Batch]]
    """All batches of an epoch in an order drawn from the generator."""
    num_batches: int
    """Batches an epoch, for progress and schedule."""
    loss: Callable[[Batch], Tensor]
    """Scalar loss of a batch."""
    validate: Callable[[], float] | None = None
    """Higher is better; the weights of the best epoch are kept. None: those of the last."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What tells this run from others in a checkpoint: settings of the model, size of the data."""
    positions: Callable[[Batch], int] = lambda batch: 1
    """What the time of a batch grows with: its positions, padding included."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A block with its own random generator state, and the caller's unchanged after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def train_model(job: Job[Batch], config: TrainingConfig, context: FitContext) -> list[dict[str, float]]:
    """Train ``job.module`` in place; returns a log with one entry an epoch.

    Each entry has ``epoch``, ``loss`` (mean), ``seconds`` (of training steps so far, validation left out) and, where
    validated, ``validation``. Ctrl-C finishes the step, writes a checkpoint and raises ``TrainingInterrupted``.
    """
    with seeded(context.seed), _Interrupts() as interrupts:
        return _Run(job, config, context, interrupts).run()


def step_seconds(job: Job[Batch], config: TrainingConfig, context: FitContext, batches: Iterable[Batch]) -> list[float]:
    """Seconds of a training step on each batch; ``job.module`` is trained by them, nothing is kept on disk."""
    context = dataclasses.replace(context, checkpoint_folder=None)
    with seeded(context.seed):
        run = _Run(job, config, context, _Interrupts())
        job.module.train()
        return [run.time_step(batch) for batch in batches]


class _Interrupts:
    """Ctrl-C as a flag that is read between steps, so that no step is left half-done."""

    def __enter__(self) -> _Interrupts:
        self.requested = False
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._request)
        return self

    def _request(self, number: int, frame: object) -> None:
        if self.requested:  # a second one does not wait for the end of a step or of validation
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)
        if self.requested and kind is None:  # it came after the last step: not lost either
            raise KeyboardInterrupt


class _Run(Generic[Batch]):
    """One training run and where it stands."""

    def __init__(self, job: Job[Batch], config: TrainingConfig, context: FitContext, interrupts: _Interrupts) -> None:
        self.job, self.config, self.context, self.interrupts = job, config, context, interrupts
        self.module = job.module.to(context.device)
        self.optimizer = _optimizer(self.module, config)
        self.path = context.checkpoint_folder and context.checkpoint_folder / f"{job.name}.safetensors"
        facts = [settings_of(config), job.settings, context.seed, job.num_batches]
        self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.epoch, self.step, self.seconds, self.loss_sum = 0, 0, 0.0, 0.0
        self.log: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}
        self._saved_at = 0.0

    def run(self) -> list[dict[str, float]]:
        self._resume()
        while self.epoch < self.config.epochs and not self._out_of_patience() and not self._late():
            self._train_epoch()
            self._close_epoch()
        if self.best:
            self.module.load_state_dict(self.best)
        self.module.eval()
        return self.log

    def _train_epoch(self) -> None:
        generator = torch.Generator().manual_seed(self.context.seed * 1_000_003 + self.epoch)
        self.module.train()
        for number, batch in enumerate(self.job.batches(generator)):
            if number < self.step:
                continue
            self.seconds += self.time_step(batch)
            self.step += 1
            done = self.epoch + self.step / self.job.num_batches
            note = f"loss {self.loss_sum / self.step:.3f}"
            self.context.progress(f"train {self.job.name}", done, self.config.epochs, note)
            if self.interrupts.requested:
                self._stop()
            if self.path and self.seconds - self._saved_at > CHECKPOINT_EVERY_S:
                self._save()
            if self._late():
                break

    def time_step(self, batch: Batch) -> float:
        """Take a step; returns its seconds."""
        start = time.perf_counter()
        self._take_step(batch)
        return time.perf_counter() - start

    def _take_step(self, batch: Batch) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * self._rate()
        with torch.autocast(self.context.device, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            loss = self.job.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.loss_sum += float(loss.detach())

    def _rate(self) -> float:
        """Share of the learning rate at this point of the run: by steps, or by time where there is a deadline."""
        total = max(self.config.epochs * self.job.num_batches, 1)
        done = (self.epoch * self.job.num_batches + self.step) / total
        if self.context.deadline_s is not None:
            done = max(done, self.seconds / self.context.deadline_s)
        if done < self.config.warmup:
            return (done + 1 / total) / (self.config.warmup + 1 / total)
        if self.config.schedule == "constant":
            return 1.0
        left = (min(done, 1.0) - self.config.warmup) / max(1 - self.config.warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * left))

    def _close_epoch(self) -> None:
        entry = {"epoch": self.epoch + 1.0, "loss": self.loss_sum / max(self.step, 1), "seconds": self.seconds}
        if self.job.validate is not None:
            self.module.eval()
            with torch.no_grad():
                entry["validation"] = self.job.validate()
            if entry["validation"] >= max((e["validation"] for e in self.log), default=-math.inf):
                self.best = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.log.append(entry)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if self.path:
            self._save()
        if self.interrupts.requested:
            self._stop()

    def _out_of_patience(self) -> bool:
        if self.config.patience is None or not self.log or self.job.validate is None:
            return False
        values = [entry["validation"] for entry in self.log]
        return len(values) - 1 - values.index(max(values)) >= self.config.patience

    def _late(self) -> bool:
        return self.context.deadline_s is not None and self.seconds >= self.context.deadline_s

    def _stop(self) -> None:
        if self.path is None:
            raise TrainingInterrupted(f"training of {self.job.name} was stopped; no checkpoint folder was given")
        self._save()
        raise TrainingInterrupted(
            f"training of {self.job.name} was stopped in epoch {min(self.epoch + 1, self.config.epochs)}: "
            f"{self.path} holds its state, "
            "and the same call goes on from there"
        )

    def _save(self) -> None:
        assert self.path is not None
        tensors = {"generator": torch.get_rng_state()}
        groups = (("module", self.module.state_dict()), ("optimizer", optimizer_tensors(self.optimizer)))
        for prefix, group in (*groups, ("best", self.best)):
            tensors |= {f"{prefix}.{name}": value for name, value in group.items()}
        facts = {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum,
            "log": self.log,
        }
        save_checkpoint(self.path, Checkpoint(tensors, facts))
        self._saved_at = self.seconds

    def _resume(self) -> None:
        found = load_checkpoint(self.path, self.fingerprint) if self.path else None
        if found is None:
            return
        self.module.load_state_dict(found.part("module"))
        restore_optimizer(self.optimizer, found.part("optimizer"))
        self.best = found.part("best")
        torch.set_rng_state(found.tensors["generator"])
        self.epoch, self.step = found.facts["epoch"], found.facts["step"]
        self.seconds, self.loss_sum, self.log = found.facts["seconds"], found.facts["loss_sum"], found.facts["log"]
        self._saved_at = self.seconds


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices, none on biases, gains and scalars."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
