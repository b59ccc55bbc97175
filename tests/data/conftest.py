"""What several tests of data need."""

import dataclasses

import polars as pl
import pyarrow as pa
import pytest
import torch


def _same(one, two, where):
    assert type(one) is type(two), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == two.dtype, where
        assert one.tolist() == two.tolist(), where
    elif isinstance(one, pa.Array | pl.DataFrame):
        assert one.equals(two), where
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            _same(getattr(one, field.name), getattr(two, field.name), f"{where}.{field.name}")
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key, value in one.items():
            _same(value, two[key], f"{where}[{key}]")
    else:
        assert one == two, where


@pytest.fixture(scope="session")
def assert_same():
    """``assert_same(a, b)``: equal to the last tensor, with equal dtypes."""
    return lambda one, two: _same(one, two, "")
