"""Admission: what kind a request is, and how many of a kind are worked on."""

import pytest

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


def test_a_kind_that_is_full_lets_others_in() -> None:
    admission = Admission(AdmissionConfig(recommend=2, read=1))
    assert [admission.enter(Kind.RECOMMEND) for _ in range(3)] == [True, True, False]
    assert admission.enter(Kind.READ)
    admission.leave(Kind.RECOMMEND)
    assert [admission.enter(Kind.RECOMMEND) for _ in range(2)] == [True, False]


def test_health_is_never_refused() -> None:
    admission = Admission(AdmissionConfig())
    assert all(admission.enter(Kind.HEALTH) for _ in range(10_000))
