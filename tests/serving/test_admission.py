"""Admission: what kind a request is, and how many of a kind are worked on."""

import asyncio

import pytest

from tesserec.serving import admission
from tesserec.serving.admission import Admission, AdmissionConfig, Kind, kind_of


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/api/health/live", Kind.HEALTH),
        ("POST", "/api/health/live", Kind.WRITE),
        ("GET", "/api/recommend/u1", Kind.RECOMMEND),
        ("POST", "/api/recommend", Kind.RECOMMEND),
        ("GET", "/api/items/i1/similar", Kind.RECOMMEND),
        ("GET", "/api/search", Kind.RECOMMEND),
        ("GET", "/api/items/i1", Kind.READ),
        ("PUT", "/api/items/i1/similar", Kind.WRITE),
        ("POST", "/api/events", Kind.WRITE),
        ("DELETE", "/api/users/u1", Kind.WRITE),
        ("TRACE", "/api/users/u1", Kind.WRITE),
        ("POST", "/api/import/a", Kind.IMPORT),
        ("GET", "/api/admin/versions", Kind.ADMIN),
        ("GET", "/metrics", Kind.READ),
        ("GET", "/", Kind.READ),
        ("GET", "", Kind.READ),
    ],
)
def test_kinds(method: str, path: str, kind: Kind) -> None:
    assert kind_of(method, path) is kind


def enter(counts: Admission, kind: Kind) -> str | None:
    reason = counts.refusal(kind)
    if reason is None:
        counts.enter(kind)
    return reason


def test_a_kind_that_is_full_lets_others_in() -> None:
    async def entered() -> None:
        counts = Admission(AdmissionConfig(recommend=2, read=1))
        assert [enter(counts, Kind.RECOMMEND) for _ in range(3)] == [None, None, "in_flight"]
        assert enter(counts, Kind.READ) is None
        counts.leave(Kind.RECOMMEND)
        assert [enter(counts, Kind.RECOMMEND) for _ in range(2)] == [None, "in_flight"]

    asyncio.run(entered())


def test_health_is_never_refused() -> None:
    counts = Admission(AdmissionConfig())
    assert all(enter(counts, Kind.HEALTH) is None for _ in range(10_000))


def test_lists_are_refused_while_the_loop_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0
    monkeypatch.setattr(admission, "monotonic", lambda: seconds)
    others: list[list[str | None]] = []

    async def turns() -> None:
        counts = Admission(AdmissionConfig(max_lag_ms=20))

        async def refused(number: int) -> list[bool]:
            """Of requests that are ready at once, each of which keeps the loop for 20 ms; then it does what waited."""
            nonlocal seconds
            found = []
            for _ in range(number):
                found.append(enter(counts, Kind.RECOMMEND) == "lag")
                seconds += 0.0 if found[-1] else 0.02
            others.append([counts.refusal(kind) for kind in (Kind.READ, Kind.WRITE, Kind.ADMIN, Kind.HEALTH)])
            await asyncio.sleep(2 * admission.TICK_S)
            return found

        assert await refused(5) == [False] * 5, "one pause is no queue"
        assert await refused(5) == [False, False, True, True, True]
        assert others[-1] == ["lag", None, None, None]
        assert await refused(1) == [False]
        assert await refused(5) == [False] * 5, "it had caught up"
        assert await refused(5) == [False, False, True, True, True]

    asyncio.run(turns())
