"""A real service under load whose stages, store, disk, clock and clients fail: what is documented happens.

Rungs are made slow or broken by ``tesserec serve --fault``; everything else is really done to the process, its database
or its disk. ``docs/operations.md`` says what an operator sees.
"""

import contextlib
import json
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.serving.disks import breaking_disk, small_disk
from tests.serving.servers import PostgresServer
from tests.serving.serving_process import Load, ServingProcess, event, until

from tesserec.serving.engine import LATE_HISTORY
from tesserec.serving.rungs import RUNGS

DEADLINE_S = 1.0
LATEST_S = 2.0
"""For the reply of one of a hundred, with HTTP, clients and whatever else runs on this machine."""
LADDER = f"[ladder]\ndeadline_ms = {1000 * DEADLINE_S:g}\nstep_ms = 100\nopen_s = 0.5\n"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
GONE, CHEAP = "i00", {f"i{number:02}" for number in range(24) if number % 6 < 4} - {"i00"}


def recommend(number):
    """Three items cheaper than 5, which are those of ``CHEAP`` as long as ``GONE`` is deleted."""
    body = {"user_id": f"u{number % 48:02}", "k": 3, "filter": "price < 5"}
    return "POST", "/api/recommend", body


def shown(replies):
    """Every item of every list."""
    return {item["item_id"] for reply in replies for item in reply.body["items"]}


def asked_under_load(serving, seconds=3.0):
    """Replies to recommendations of six clients, and the metrics that must agree with them."""
    serving.good("DELETE", f"/api/items/{GONE}")
    with Load(serving, recommend) as load:
        time.sleep(seconds)
    assert (load.broken, load.statuses()) == ([], {200})
    assert shown(load.replies) <= CHEAP, "filters and deletions hold on every rung"
    assert {len(reply.body["items"]) for reply in load.replies} == {3}
    assert load.p99_s() < LATEST_S
    rungs = Counter(reply.body["rung"] for reply in load.replies)
    print(f"{len(load.replies)} lists, p99 {1e3 * load.p99_s():.0f} ms, {dict(rungs)}")
    assert rungs == {rung: serving.metric("tesserec_answers_total", rung=rung) for rung in rungs}
    return load.replies, rungs


def reached(folder, rung, fault):
    """Reach a rung by what is wrong with all above it."""
    above = RUNGS[: RUNGS.index(rung)]
    options = [word for one in above for word in ("--fault", f"{one}={fault}")]
    with ServingProcess(folder, settings=LADDER, options=options) as serving:
        replies, rungs = asked_under_load(serving)
        assert set(rungs) <= set(RUNGS[RUNGS.index(rung) :])
        assert rungs[rung] > 0.5 * len(replies)
        for one in above:
            assert serving.metric("tesserec_rung_failures_total", rung=one) > 0
            assert any(f"{one} did not answer" in note for reply in replies for note in reply.body["notes"])


def test_the_rung_below_one_that_breaks(tmp_path):
    reached(tmp_path, "dense", "fails")


@pytest.mark.prove
@pytest.mark.parametrize("fault", ["fails", "30"])
@pytest.mark.parametrize("rung", RUNGS)
def test_each_rung_is_reached(tmp_path, rung, fault):
    reached(tmp_path, rung, fault)


@pytest.mark.prove
def test_the_breaker_opens_and_closes_again(tmp_path):
    with ServingProcess(tmp_path, settings=LADDER, options=["--fault", "generative=fails:9"]) as serving:
        states = set()
        with Load(serving, recommend) as load:

            def is_closed():
                states.add(serving.metric("tesserec_breaker", rung="generative"))
                return 1.0 in states and load.replies[-1].body["rung"] == "generative"

            assert until(is_closed)
            time.sleep(1)
            assert serving.metric("tesserec_breaker", rung="generative") == 0
        assert (load.broken, load.statuses()) == ([], {200})
        notes = Counter(note for reply in load.replies for note in reply.body["notes"])
        assert notes["generative did not answer: failed"] > 0
        assert notes["generative did not answer: open"] > 0
        assert load.replies[-1].body["rung"] == "generative"
        assert load.p99_s() < LATEST_S


def refused(reply):
    """Whether a write was refused as documented."""
    kept = (reply.status, reply.headers["Content-Type"], reply.headers["Retry-After"], reply.body["detail"][:40])
    return kept == (503, "application/problem+json", "1", "the store does not keep or read now: nothing was"[:40])


def write_until_refused(serving, begin=0, seconds=90.0):
    """Ids of events that were acknowledged before the first that was refused."""
    kept, limit = [], time.monotonic() + seconds
    for number in range(begin, 10**6):
        reply = serving.ask("POST", "/api/events", event(number, session="x" * 200))
        if reply.status != 200:
            assert refused(reply), reply
            return kept
        kept.append(f"e{number}")
        assert time.monotonic() < limit, "nothing was refused"
    raise AssertionError


def stored(serving, user="ann"):
    """Ids of a user's events."""
    return {one["event_id"] for one in serving.good("GET", f"/api/users/{user}/export")["events"]}


@pytest.mark.prove
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_database_that_hangs_or_is_killed(tmp_path, number):
    server = PostgresServer()
    try:
        server.start()
        with ServingProcess(tmp_path, settings=LADDER, store=server.url) as serving:
            assert serving.good("POST", "/api/events", event(1)) == {"accepted": 1, "duplicates": 0}
            server.signal(number)
            with Load(serving, recommend) as load:
                assert refused(serving.ask("POST", "/api/events", event(2)))
                assert until(lambda: serving.ask("GET", "/api/health/ready").status == 503)
                time.sleep(2)
            assert (load.broken, load.statuses()) == ([], {200})
            assert load.p99_s() < LATEST_S
            rungs = Counter(reply.body["rung"] for reply in load.replies)
            print(f"{number.name}: {len(load.replies)} lists, p99 {1e3 * load.p99_s():.0f} ms, {dict(rungs)}")
            late = [reply.body for reply in load.replies if LATE_HISTORY in reply.body["notes"]]
            assert late
            assert {body["rung"] for body in late} == {"popularity"}
            if number == signal.SIGSTOP:
                server.signal(signal.SIGCONT)
            else:
                server.start()
            assert until(lambda: serving.ask("POST", "/api/events", event(3)).status == 200)
            assert until(lambda: serving.ask("GET", "/api/health/ready").status == 200)
            assert {"e1", "e3"} <= stored(serving)
            assert until(lambda: serving.ask(*recommend(5)).body["rung"] == "generative")
            assert serving.stop() == 0
    finally:
        if number == signal.SIGSTOP:
            server.signal(signal.SIGCONT)
        server.remove()


@pytest.mark.prove
def test_a_full_disk(tmp_path):
    with (
        small_disk(tmp_path / "disk", "24m") as disk,
        ServingProcess(tmp_path, disk / "home", settings=LADDER) as serving,
    ):
        first = {f"e{n}" for n in range(3) if serving.good("POST", "/api/events", event(n))}
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        kept = write_until_refused(serving, 3)
        with Load(serving, recommend) as load:
            assert refused(serving.ask("POST", "/api/events", event(10**6)))
            time.sleep(1)
        assert (load.broken, load.statuses()) == ([], {200})
        assert load.p99_s() < LATEST_S
        filler.unlink()
        assert until(lambda: serving.ask("POST", "/api/events", event(10**6 + 1)).status == 200)
        assert until(lambda: serving.ask("GET", "/api/health/ready").status == 200)
        wanted = {*first, *kept, f"e{10**6 + 1}"}
        assert wanted <= stored(serving)
        serving.process.kill()
        serving.process.wait()
        serving.start()
        assert wanted <= stored(serving), "nothing acknowledged is lost"


@pytest.mark.prove
def test_a_disk_that_becomes_read_only(tmp_path):
    with (
        breaking_disk(tmp_path / "disk") as (disk, break_it),
        ServingProcess(tmp_path, disk / "home", settings=LADDER) as serving,
    ):
        serving.good("POST", "/api/events", event(1))
        break_it()
        write_until_refused(serving, 2)
        with Load(serving, recommend) as load:
            assert until(lambda: serving.ask("GET", "/api/health/ready").status == 503)
            time.sleep(1)
        assert (load.broken, load.statuses()) == ([], {200})
        assert serving.ask("GET", "/api/health/live").status == 200
        assert serving.stop() == 0
        with pytest.raises(AssertionError, match=r"[Rr]ead-?only"):
            serving.start()


@pytest.mark.prove
@pytest.mark.skipif(not FAKETIME.exists(), reason=f"no {FAKETIME}: install faketime")
def test_a_clock_that_is_set_back(tmp_path):
    clock = tmp_path / "clock"
    clock.write_text("+0\n")
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with ServingProcess(tmp_path, settings=LADDER, environment=environment) as serving:
        serving.good("POST", "/api/events", event(1))
        with Load(serving, recommend, threads=2) as load:
            clock.write_text("-3600\n")
            time.sleep(2)
        serving.good("POST", "/api/events", event(2))
        serving.good("POST", "/api/events", event(3, time=time.time() + 60))
        assert (load.broken, load.statuses()) == ([], {200})
        assert load.p99_s() < LATEST_S, "deadlines are of a clock that nobody sets"
        times = {one["event_id"]: one["time"] for one in serving.good("GET", "/api/users/ann")["history"]}
        assert times["e2"] < times["e1"] - 3000, "the clock was really set back"
        assert list(times) == ["e3", "e1", "e2"], "a history is in the order of the times, latest first"
        assert serving.good("POST", "/api/events", event(2)) == {"accepted": 0, "duplicates": 1}
        assert serving.ask(*recommend(1)).body["rung"] == "generative"


@pytest.mark.prove
def test_clients_that_go_away_free_their_slots(tmp_path):
    settings = "[ladder]\ndeadline_ms = 10000\n[guards.admission]\nrecommend = 20\n"
    with ServingProcess(tmp_path, settings=settings, options=["--fault", "generative=4:1"]) as serving:
        body = json.dumps({"user_id": "u01", "k": 3, "deadline_ms": 10_000})
        head = "POST /api/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}"
        clients = [socket.create_connection(("127.0.0.1", serving.port)) for _ in range(20)]
        for client in clients:
            client.sendall(f"{head}\r\n\r\n{body}".encode())
        began = time.monotonic()
        assert until(lambda: serving.metric("tesserec_in_flight") == 21, 3), "twenty, and who reads the metric"
        assert serving.ask(*recommend(2)).status == 429
        for client in clients:
            client.close()
        assert until(lambda: serving.metric("tesserec_in_flight") == 1, 3)
        assert time.monotonic() - began < 4, "while the worker is still busy with the first"
        assert serving.metric("tesserec_requests_total", status="499") == 20
        assert serving.metric("tesserec_queue_depth") == 0
        assert serving.ask(*recommend(3)).status == 200


@pytest.mark.prove
def test_sigterm_under_load(tmp_path):
    with ServingProcess(tmp_path, settings=f"drain_s = 2\n{LADDER}") as serving:
        kept, sent, balanced = [], iter(range(10**9)), threading.Event()
        lock = threading.Lock()

        def mixed(number):
            if number % 2:
                return recommend(number)
            with lock:
                return "POST", "/api/events", event(next(sent), user=f"w{number % 5}")

        def balancer():
            """As a load balancer: no more requests after the service said that it is not ready."""
            chance = random.Random(0)
            while serving.ask("GET", "/api/health/ready").status == 200:
                serving_replies.append(serving.ask(*recommend(chance.randrange(48))))
            balanced.set()

        serving_replies = []
        watching = threading.Thread(target=balancer)
        watching.start()
        with Load(serving, mixed) as load:
            time.sleep(1.5)
            began = time.monotonic()
            code = serving.stop()
            seconds = time.monotonic() - began
        watching.join()
        assert (code, balanced.is_set()) == (0, True)
        assert 1.9 < seconds < 30
        assert {reply.status for reply in serving_replies} == {200}
        assert load.statuses() == {200}
        assert min(moment for moment, _ in load.broken) > began + 1.9, "none before it stopped to listen"
        kept = {reply.body["accepted"] for reply in load.replies if "accepted" in reply.body}
        assert kept == {1}
        num_kept = sum("accepted" in reply.body for reply in load.replies)
        serving.start()
        there = set().union(*(stored(serving, f"w{n}") for n in range(5)))
        print(f"{len(load.replies)} replies, {num_kept} events acknowledged, {len(there)} there, {seconds:.1f} s")
        assert num_kept <= len(there) <= num_kept + len(load.broken)
