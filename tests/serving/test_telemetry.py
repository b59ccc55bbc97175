"""The metrics of the service, as a scrape shows them."""

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tesserec.serving.schemas import RecommendResponse
from tesserec.serving.telemetry import NUM_RECENT, RUNGS, Telemetry, TelemetryConfig


def answer(rung="dense", arm="live", total=20.0):
    return RecommendResponse(
        model_version="m1",
        codebook_version="c1",
        table_revision=3,
        response_id="r",
        user_id="ann",
        items=[],
        rung=rung,
        arm=arm,
        stages_ms={"history": 1.0, "model": 15.0, "total": total},
    )


def scraped(telemetry):
    """Value of each sample by name and labels."""
    families = text_string_to_metric_families(telemetry.render().decode())
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def value(telemetry, name, **labels):
    return scraped(telemetry)[(f"tesserec_{name}", *sorted(labels.items()))]


def test_every_rung_is_a_series_from_the_start():
    telemetry = Telemetry()
    telemetry.namespace("default")
    for rung in RUNGS:
        labels = {"namespace": "default", "scenario": "default", "rung": rung, "arm": "canary"}
        assert value(telemetry, "answers_total", **labels) == 0
    assert "segment_popularity" in RUNGS


def test_an_answer_is_counted_with_its_stages():
    telemetry = Telemetry(TelemetryConfig(scenarios=("cart",)))
    shop = telemetry.namespace("shop")
    shop.answered(answer(), "cart", deadline_ms=19.9)
    shop.answered(answer(rung="popularity", arm="canary", total=2.0), "cart", deadline_ms=2.0)
    own = {"namespace": "shop"}
    assert value(telemetry, "answers_total", **own, scenario="cart", rung="dense", arm="live") == 1
    assert value(telemetry, "answers_total", **own, scenario="cart", rung="popularity", arm="canary") == 1
    assert value(telemetry, "answer_seconds_sum", **own) == pytest.approx(0.022)
    assert value(telemetry, "stage_seconds_count", **own, stage="model") == 2
    assert value(telemetry, "stage_seconds_sum", **own, stage="model") == pytest.approx(0.030)
    assert value(telemetry, "deadline_misses_total", **own) == 1


def test_a_scenario_that_is_not_configured_has_no_series_of_its_own():
    telemetry = Telemetry(TelemetryConfig(scenarios=("cart",)))
    shop = telemetry.namespace("shop")
    before = len(scraped(telemetry))
    shop.answered(answer(), "cart")
    after_known = len(scraped(telemetry))
    for number in range(50):
        shop.answered(answer(), f"made-up-{number}")
    assert len(scraped(telemetry)) == after_known
    assert before < after_known  # the stages
    assert value(telemetry, "answers_total", namespace="shop", scenario="other", rung="dense", arm="live") == 50


def test_requests_of_http():
    telemetry = Telemetry()
    telemetry.requested("GET", "/api/items/{item_id}", 404, 0.003)
    telemetry.requested("BREW", "other", 405, 0.001)
    telemetry.refused("rate")
    telemetry.in_flight.inc()
    assert value(telemetry, "requests_total", method="GET", route="/api/items/{item_id}", status="404") == 1
    assert value(telemetry, "requests_total", method="other", route="other", status="405") == 1
    assert value(telemetry, "request_seconds_bucket", route="/api/items/{item_id}", le="0.005") == 1
    assert value(telemetry, "request_seconds_bucket", route="/api/items/{item_id}", le="0.0025") == 0
    assert value(telemetry, "refused_total", reason="rate") == 1
    assert value(telemetry, "in_flight") == 1


def test_what_an_engine_and_its_store_tell():
    telemetry = Telemetry()
    shop = telemetry.namespace("shop")
    assert telemetry.namespace("shop") is shop
    waiting = [1, 2, 3]
    shop.watch_queue(lambda: len(waiting))
    shop.watch_erasing(lambda: 2)
    shop.rung_failed("generative", "late")
    shop.breaker("generative", "open")
    shop.batch("generative", 7)
    shop.events(accepted=5, duplicates=2)
    shop.impressions(20)
    shop.commit(num_writes=12, seconds=0.004)
    shop.store_up(True)
    shop.table(revision=9, num_items=100, num_cold=4)
    expected = {
        ("queue_depth",): 3,
        ("erasing_users",): 2,
        ("rung_failures_total", "rung=generative", "reason=late"): 1,
        ("breaker", "rung=generative"): 1,
        ("breaker", "rung=dense"): 0,
        ("batch_requests_sum", "rung=generative"): 7,
        ("events_total", "outcome=accepted"): 5,
        ("events_total", "outcome=duplicate"): 2,
        ("impressions_total",): 20,
        ("commit_writes_sum",): 12,
        ("commit_seconds_sum",): 0.004,
        ("store_up",): 1,
        ("table_revision",): 9,
        ("items",): 100,
        ("cold_items",): 4,
    }
    for (name, *labels), wanted in expected.items():
        assert value(telemetry, name, namespace="shop", **dict(label.split("=") for label in labels)) == wanted, name
    waiting.clear()
    assert value(telemetry, "queue_depth", namespace="shop") == 0


def test_versions_that_no_longer_answer_are_gone():
    telemetry = Telemetry()
    shop = telemetry.namespace("shop")
    shop.serving(("m1", "c1"), ("m2", None))
    shop.serving(("m2", None))
    rows = [dict(key[1:]) for key in scraped(telemetry) if key[0] == "tesserec_model_info"]
    assert rows == [{"namespace": "shop", "arm": "live", "model_version": "m2", "codebook_version": ""}]


def test_swaps_are_counted_by_kind():
    telemetry = Telemetry()
    shop = telemetry.namespace("shop")

    def counts():
        return [value(telemetry, "swaps_total", namespace="shop", kind=k) for k in ("publish", "rollback", "canary")]

    shop.serving(("m1", "c1"))
    assert counts() == [0, 0, 0]
    shop.serving(("m1", "c1"), ("m2", "c1"))
    assert counts() == [0, 0, 1]
    shop.serving(("m2", "c1"))
    assert counts() == [1, 0, 2]
    shop.serving(("m2", "c1"))
    assert counts() == [1, 0, 2]
    shop.serving(("m1", "c1"))
    assert counts() == [1, 1, 2]


def test_two_services_do_not_see_each_other():
    one, other = Telemetry(), Telemetry()
    one.namespace("shop").events(1, 0)
    other.namespace("shop")
    assert value(other, "events_total", namespace="shop", outcome="accepted") == 0
    assert scraped(one)[("process_resident_memory_bytes",)] > 1e6


def test_the_last_moments():
    shop = Telemetry().namespace("shop")
    assert shop.recent().p99_ms is None
    for ms in range(1, 101):
        shop.answered(answer(total=float(ms)), "default")
    recent = shop.recent(10.0)
    assert (recent.num_answers, recent.per_s) == (100, 10.0)
    assert (recent.p50_ms, recent.p99_ms) == (50.0, 99.0)
    assert recent.rungs == {"dense": 100}
    assert shop.recent(0.0).num_answers == 0


def test_the_rate_is_right_when_the_memory_of_answers_is_full():
    shop = Telemetry().namespace("shop")
    for _ in range(NUM_RECENT + 10):
        shop.answered(answer(), "default")
    assert shop.recent(3600.0).per_s > NUM_RECENT / 3600.0 * 2


def test_threads_lose_no_count():
    telemetry = Telemetry()
    workers = [
        threading.Thread(target=lambda: [telemetry.namespace("shop").events(1, 0) for _ in range(500)])
        for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert value(telemetry, "events_total", namespace="shop", outcome="accepted") == 2000
