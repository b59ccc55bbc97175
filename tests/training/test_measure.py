"""Seconds and peak memory of a block."""

import time
from pathlib import Path

import numpy as np
import pytest

from tesserec.training import measure
from tesserec.training.measure import Measured

MIB = 2**20


def test_the_peak_is_that_of_the_block() -> None:
    with Measured() as large:
        block = np.ones(128 * MIB, np.uint8)
        block[0] = 2
        del block
    with Measured() as small:
        time.sleep(0.05)
    assert 0.05 <= small.seconds < 5
    assert large.peak_rss_bytes - small.peak_rss_bytes > 100 * MIB
    assert small.peak_rss_bytes > 20 * MIB


def test_elsewhere_it_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_STATUS", Path("/nowhere"))
    with Measured() as whole:
        pass
    assert whole.peak_rss_bytes > 20 * MIB
    monkeypatch.setattr("sys.platform", "darwin")
    with Measured() as apple:
        pass
    assert apple.peak_rss_bytes == whole.peak_rss_bytes // 1024


def test_an_error_passes_through() -> None:
    with pytest.raises(RuntimeError, match="boom"), Measured() as cost:
        raise RuntimeError("boom")
    assert cost.seconds > 0
