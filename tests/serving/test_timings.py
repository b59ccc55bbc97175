import pytest

from tesserec.serving import timings
from tesserec.serving.timings import BatchTimes


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timings.time, "monotonic", lambda: now[0])
    return now


def test_nothing_is_known_at_first() -> None:
    assert BatchTimes().expected_s(3) == 0


def test_three_of_four_stay_below(clock) -> None:
    times = BatchTimes()
    for n in range(12):
        times.add(1, n / 10)
    assert times.expected_s(1) == pytest.approx(0.9)
    for _ in range(28):
        times.add(1, 0.2)
    assert times.expected_s(1) == pytest.approx(0.2)


def test_other_sizes_are_bounded_by_those_measured(clock) -> None:
    times = BatchTimes()
    times.add(4, 0.08)
    assert times.expected_s(1) == pytest.approx(0.08), "a smaller batch takes no longer"
    assert times.expected_s(8) == pytest.approx(0.16), "a larger one at most in proportion"
    times.add(16, 0.10)
    assert times.expected_s(8) == pytest.approx(0.10)
    assert times.expected_s(4) == pytest.approx(0.08)


def test_what_is_long_ago_says_nothing(clock) -> None:
    times = BatchTimes()
    times.add(1, 5.0)
    clock[0] += timings.WINDOW_S + 1
    assert times.expected_s(1) == 0
