"""Weights of a smaller model into a larger one: what a catalog that has grown needs."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tesserec.errors import VersionMismatchError

__all__ = ["load_grown"]


def load_grown(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load ``tensors`` into ``module``; where its tensor has more rows, the further ones keep their values.

    Raises ``VersionMismatchError`` for a tensor that is missing or differs in more than its number of rows.
    """
    with torch.no_grad():
        for name, own in module.state_dict().items():
            given = tensors.get(name)
            if given is None or not _grows_into(given.shape, own.shape):
                shape = None if given is None else tuple(given.shape)
                raise VersionMismatchError(
                    f"{name} is {shape} in the saved model and {tuple(own.shape)} here: fit with the same settings, "
                    "on a catalog that only grew"
                )
            if own.ndim:
                own[: len(given)] = given
            else:
                own.copy_(given)


def _grows_into(given: torch.Size, own: torch.Size) -> bool:
    return len(given) == len(own) and given[1:] == own[1:] and given[:1] <= own[:1]
