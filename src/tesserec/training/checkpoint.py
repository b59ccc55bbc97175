"""Training state on disk: safetensors for tensors, JSON for the rest, written beside and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tesserec.errors import BundleError

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a training run stands."""

    tensors: Mapping[str, Tensor]
    """Weights, optimizer moments, best weights so far, the random generator's state."""
    facts: Mapping[str, Any]
    """Epoch, step, seconds, log, and the fingerprint of what is being trained."""

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``prefix.``, without it."""
        start = f"{prefix}."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file at ``path`` at once: a process killed meanwhile leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, beside, {"facts": json.dumps(checkpoint.facts)})
    os.replace(beside, path)


def load_checkpoint(path: Path, fingerprint: str) -> Checkpoint | None:
    """The checkpoint at ``path``; None where there is none, or one of another run (other settings or data).

    Raises ``BundleError`` for a file that is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is damaged ({error}): delete it to train from the start") from None
    return Checkpoint(tensors, facts) if facts.get("fingerprint") == fingerprint else None


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of every parameter, by position and name."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of ``optimizer_tensors``."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        position, _, name = key.partition(".")
        state.setdefault(int(position), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
