"""Weights of a smaller model into a larger one: what a catalog that has grown needs."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from tesserec.errors import VersionMismatchError

__all__ = ["load_grown"]


def load_grown(module: nn.Module, tensors: Mapping[str, Tensor], growing: Collection[str] = ()) -> None:
    """Load ``tensors`` into ``module``; those named ``growing`` may have more rows here, which keep their values.

    Raises ``VersionMismatchError`` for a tensor that either side lacks and for one of another shape.
    """
    own = module.state_dict()
    for name in (*own, *(name for name in tensors if name not in own)):
        given, here = tensors.get(name), own.get(name)
        if given is None or here is None or not _fits(given.shape, here.shape, name in growing):
            raise VersionMismatchError(
                f"{name} is {_shape(given)} in the saved model and {_shape(here)} here: fit with the same settings, "
                "on a catalog that only grew"
            )
    with torch.no_grad():
        for name, here in own.items():
            if here.ndim:
                here[: len(tensors[name])] = tensors[name]
            else:
                here.copy_(tensors[name])


def _fits(given: torch.Size, own: torch.Size, grows: bool) -> bool:
    return given == own or (grows and len(given) == len(own) and given[1:] == own[1:] and given[:1] <= own[:1])


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
