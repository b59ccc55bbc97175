"""Seconds and peak memory of a block."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tesserec.training import measure
from tesserec.training.measure import Measured, memory_kept

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


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_kept_memory_is_given_back_at_the_end() -> None:
    with memory_kept():
        block = torch.ones(64 * MIB)
        before = resident()
        del block
        assert resident() > before - 16 * MIB
    assert resident() < before - 200 * MIB
    block = torch.ones(64 * MIB)
    before = resident()
    del block
    assert resident() < before - 200 * MIB, "as it was"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_an_inner_block_leaves_the_outer_one_as_it_is() -> None:
    with memory_kept():
        with pytest.raises(RuntimeError, match="boom"), memory_kept():
            raise RuntimeError("boom")
        block = torch.ones(64 * MIB)
        before = resident()
        del block
        assert resident() > before - 16 * MIB
    assert resident() < before - 200 * MIB


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("musl", ""))
    with memory_kept():
        block = torch.ones(64 * MIB)
    assert block.sum() == 64 * MIB


def test_an_error_passes_through() -> None:
    with pytest.raises(RuntimeError, match="boom"), Measured() as cost:
        raise RuntimeError("boom")
    assert cost.seconds > 0
