"""What is particular to Redis: a server that is killed or stopped, or set up in a way that loses data."""

import signal
import time

import pytest
import redis
from tests.serving.kept import event, ids
from tests.serving.servers import RedisServer

from tesserec.errors import StoreError
from tesserec.serving.redis_store import RedisStore


@pytest.fixture(scope="module")
def server():
    """One that tests may do anything to, as long as it runs when they end."""
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def test_a_killed_server_loses_nothing_and_is_connected_to_again(server):
    store = RedisStore(server.url, "killed")
    for number in range(10):
        store.add_events([event(number)]).result()
    server.signal(signal.SIGKILL)
    with pytest.raises(StoreError, match=r"namespace killed does not answer \(.*nothing was acknowledged"):
        store.add_events([event(10)]).result(60)
    with pytest.raises(StoreError, match="does not answer"):
        store.history("ann", 100)
    server.start()
    assert store.add_events([event(11)]).result(60) == [True]
    assert ids(store.history("ann", 100)) == [*(f"e{number}" for number in range(10)), "e11"]
    store.close()


def test_a_stopped_server_is_given_up_in_time_and_works_again_when_it_goes_on(server):
    store = RedisStore(server.url, "stopped", timeout_s=0.3)
    store.add_events([event(1)]).result()
    server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StoreError, match="nothing was acknowledged"):
            store.add_events([event(2)]).result(60)
        with pytest.raises(StoreError, match="does not answer"):
            store.history("ann", 5)
        assert time.monotonic() - began < 60  # it answers in about a second, and would else wait for ever
    finally:
        server.signal(signal.SIGCONT)
    # The first attempt was kept when the server went on: sent again, it is there once.
    store.add_events([event(2), event(3)]).result(60)
    assert ids(store.history("ann", 10)) == ["e1", "e2", "e3"]
    store.close()


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("appendonly", "no", "appendonly is no, so that what it acknowledges can be lost: set it to yes"),
        (
            "appendfsync",
            "everysec",
            "appendfsync is everysec, so that what it acknowledges can be lost",
        ),
        ("no-appendfsync-on-rewrite", "yes", "no-appendfsync-on-rewrite is yes"),
        ("maxmemory-policy", "allkeys-lru", "maxmemory-policy is allkeys-lru, which throws data away: set noeviction"),
    ],
)
def test_a_server_that_may_lose_what_it_acknowledges_is_refused(server, setting, value, says):
    store = RedisStore(server.url, "before")
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        good = client.config_get(setting)[setting]
        client.config_set(setting, value)
        try:
            with pytest.raises(StoreError, match=says):
                RedisStore(server.url, "unsafe")
            with pytest.raises(StoreError, match=says):
                store.check()
        finally:
            client.config_set(setting, good)
    store.check()
    store.close()


def test_data_of_a_newer_version_are_refused(server):
    RedisStore(server.url, "newer").close()
    with redis.Redis.from_url(server.url) as client:
        client.set("{tesserec:newer}:schema", 99)
    with pytest.raises(StoreError, match="namespace newer was written by a newer tesserec"):
        RedisStore(server.url, "newer")


def test_nothing_of_a_deleted_user_is_left_in_the_files(server):
    store = RedisStore(server.url, "erased")
    secret = "somebody@example.org"
    store.add_events([event(number, user=secret) for number in range(50)]).result()
    assert secret.encode() in server.files()
    assert store.delete_user(secret).result() == 50
    deadline = time.monotonic() + 60
    while secret.encode() in server.files() and time.monotonic() < deadline:
        store.check()  # it is asked for again with each commit, where the file was being written just then
        time.sleep(0.05)
    assert secret.encode() not in server.files()
    store.close()


@pytest.mark.parametrize("changes", [{"user": 7}, {"time": float("nan")}], ids=["user", "time"])
def test_values_of_other_types_are_refused_before_anything_is_written(server, changes):
    store = RedisStore(server.url, "typed")
    with pytest.raises(StoreError, match=r"7 is no text|a time that is not a number"):
        store.add_events([event(1), event(2, **changes)]).result()
    assert store.counts()["events"] == 0
    store.close()


def test_a_full_server_refuses_loses_nothing_and_recovers(server):
    store = RedisStore(server.url, "full")
    store.add_events([event(1)]).result()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1mb")
        try:
            with pytest.raises(StoreError, match="command not allowed when used memory"):
                store.add_events([event(2)]).result()
        finally:
            client.config_set("maxmemory", "0")
    assert store.add_events([event(2)]).result() == [True]
    assert ids(store.history("ann", 10)) == ["e1", "e2"]
    store.close()


def test_an_address_where_nobody_answers(tmp_path):
    with pytest.raises(StoreError, match="does not answer"):
        RedisStore(f"unix://{tmp_path}/nobody", "shop")
