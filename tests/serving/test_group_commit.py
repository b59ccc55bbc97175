import threading
from concurrent.futures import wait

import pytest

from tesserec.errors import StoreError
from tesserec.serving import group_commit
from tesserec.serving.group_commit import GroupCommit, Unavailable


class Disk:
    """Keeps lists of numbers; negative ones cannot be kept, and it can be held up or away."""

    def __init__(self):
        self.groups, self.go, self.busy, self.away = [], threading.Event(), threading.Event(), False
        self.go.set()

    def commit(self, numbers):
        self.busy.set()
        assert self.go.wait(60)
        if self.away:
            raise Unavailable("the server is away")
        if any(number < 0 for number in numbers):
            raise ValueError("negative")
        self.groups.append(list(numbers))
        return [number * 10 for number in numbers]


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def group(disk):
    group = GroupCommit("test", disk.commit, capacity=4, most=3)
    yield group
    disk.go.set()
    group.close()


def held_up(disk, group):
    """The future of a write that is under way and stays so."""
    disk.go.clear()
    disk.busy.clear()
    first = group.submit(0)
    assert disk.busy.wait(60)
    return first


def test_what_waits_shares_a_transaction_in_the_order_of_arrival(disk, group):
    first = held_up(disk, group)
    rest = [group.submit(number) for number in (1, 2, 3, 4)]
    assert group.depth == 4
    assert not any(future.done() for future in [first, *rest])
    disk.go.set()
    assert [future.result(60) for future in [first, *rest]] == [0, 10, 20, 30, 40]
    assert disk.groups == [[0], [1, 2, 3], [4]]


def test_each_durable_transaction_is_told_before_its_writes_are(disk, group):
    told = []
    group.watch(lambda num_writes, seconds: told.append((num_writes, seconds)))
    first = held_up(disk, group)
    rest = [group.submit(number) for number in (1, 2)]
    disk.go.set()
    assert [future.result(60) for future in [first, *rest]] == [0, 10, 20]
    assert [num_writes for num_writes, _ in told] == [1, 2]
    assert all(seconds >= 0 for _, seconds in told)
    with pytest.raises(StoreError, match="negative"):
        group.submit(-1).result(60)
    assert len(told) == 2


def test_when_too_many_wait_the_next_is_refused(disk, group):
    held_up(disk, group)
    waiting = [group.submit(number) for number in (1, 2, 3, 4)]
    with pytest.raises(StoreError, match="4 writes wait for the disk already: nothing was kept"):
        group.submit(5).result(60)
    disk.go.set()
    wait(waiting)
    assert group.submit(5).result(60) == 50


def test_one_that_cannot_be_kept_fails_alone(disk, group):
    held_up(disk, group)
    futures = [group.submit(number) for number in (1, -2, 3)]
    disk.go.set()
    assert futures[0].result(60) == 10
    with pytest.raises(StoreError, match="cannot be kept, and nothing of it was: ValueError: negative"):
        futures[1].result(60)
    assert futures[2].result(60) == 30
    assert disk.groups == [[0], [1], [3]]


def test_when_the_server_is_away_everything_that_waits_fails_and_later_writes_succeed(disk, group):
    first = held_up(disk, group)
    rest = [group.submit(number) for number in (1, 2, 3, 4)]
    disk.away = True
    disk.go.set()
    for future in [first, *rest]:
        with pytest.raises(StoreError, match="the server is away"):
            future.result(60)
    disk.away = False
    assert group.submit(7).result(60) == 70
    assert disk.groups == [[7]]


def test_a_write_that_was_cancelled_in_time_is_not_written(disk, group):
    first = held_up(disk, group)
    second, third = group.submit(1), group.submit(2)
    assert second.cancel()
    assert not first.cancel()
    disk.go.set()
    assert third.result(60) == 20
    assert disk.groups == [[0], [2]]


def test_one_cancelled_while_the_server_is_away_stays_cancelled(disk, group):
    first = held_up(disk, group)
    second = group.submit(1)
    assert second.cancel()
    disk.away = True
    disk.go.set()
    with pytest.raises(StoreError, match="away"):
        first.result(60)
    assert second.cancelled()


def test_closing_writes_what_waits_and_refuses_what_comes_later(disk, group):
    held_up(disk, group)
    waiting = [group.submit(number) for number in (1, 2, 3, 4)]
    disk.go.set()
    group.close()
    assert [future.result(0) for future in waiting] == [10, 20, 30, 40]
    with pytest.raises(StoreError, match="the store is closed: nothing was kept"):
        group.submit(5).result(0)
    group.close()


def test_what_is_left_to_tidy_is_done_though_no_write_comes(disk, monkeypatch):
    monkeypatch.setattr(group_commit, "TIDY_S", 0.01)
    answers = iter([False, StoreError("the disk failed"), True])
    done = threading.Event()

    def tidy():
        answer = next(answers)
        if isinstance(answer, StoreError):
            raise answer
        if answer:
            done.set()
        return answer

    group = GroupCommit("test", disk.commit, tidy)
    assert group.submit(1).result(60) == 10
    assert done.wait(60)
    group.close()
    assert disk.groups == [[1]]
