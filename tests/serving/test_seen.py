"""What a whole service shows of itself while it answers: metrics for the dashboard, traces, and logs by request id."""

import dataclasses
import io
import json
import logging
from typing import Any

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from tests.serving.collector import collecting
from tests.serving.connected import CONFIG, service_at
from tests.serving.served_shop import bundle

from tesserec.errors import RequestError
from tesserec.serving.client import Client, RetryConfig
from tesserec.serving.config import GuardConfig
from tesserec.serving.logs import JsonFormatter
from tesserec.serving.rates import RateConfig
from tesserec.serving.schemas import EventIn, RecommendRequest
from tesserec.serving.telemetry import TelemetryConfig
from tesserec.serving.tracing import TracingConfig
from tools import dashboard

TRACE = "0af7651916cd43dd8448eb211c80319c"
MINE = {"X-Request-Id": "mine", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@dataclasses.dataclass
class Seen:
    """What there was to see of a service."""

    scrape: str
    spans: list[Span]
    logged: list[dict[str, Any]]
    version: str

    def value(self, name: str, **labels: str) -> float:
        """Of all samples of that name with these labels."""
        families = text_string_to_metric_families(self.scrape)
        samples = [s for family in families for s in family.samples if s.name == f"tesserec_{name}"]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())


def traffic(url: str, key: str) -> None:
    """Nine requests that are taken, one of which is wrong, and one too many."""
    with Client(url, key=key, retry=RetryConfig(times=0)) as client:
        for user in ("u01", "u02", "u01"):
            client.recommend(user)
        client.ask(RecommendRequest(user_id="u03", scenario="cart", query="lamp", explain=True))
        client.recommend_for_history(["i01"])
        for _ in range(2):
            client.add_events([EventIn(event_id="e1", user_id="u01", item_id="i05")])
        client.put_item("new", {"title": "garden red bench", "price": 2.0})
        headers = {**MINE, "X-API-Key": key}
        assert httpx2.get(f"{url}/api/recommend/ann?filter=1+%3C", headers=headers).status_code == 422
        with pytest.raises(RequestError, match="429"):
            client.search("lamp")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A service after ``traffic``."""
    stream, logger = io.StringIO(), logging.getLogger("tesserec")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel("INFO")
    with collecting() as collector:
        config = dataclasses.replace(
            CONFIG,
            guards=GuardConfig(rates=RateConfig(per_key="9/minute", per_address=None)),
            telemetry=TelemetryConfig(scenarios=("cart",)),
            tracing=TracingConfig(otlp_endpoint=collector.url),
        )
        with service_at(tmp_path_factory.mktemp("seen") / "home", bundle("mosaic"), config=config) as running:
            keys = [running.service.keys.create(name, ["read", "write"])[1] for name in ("shop", "prometheus")]
            traffic(running.url, keys[0])
            scrape = httpx2.get(f"{running.url}/metrics", headers={"X-API-Key": keys[1]})
            version = running.service.shop("default").deployment.current().version
        spans = collector.all
    logger.removeHandler(handler)
    logger.setLevel(level)
    return Seen(scrape.text, spans, [json.loads(line) for line in stream.getvalue().splitlines()], version)


def test_every_metric_of_the_dashboard_is_in_a_scrape(seen: Seen) -> None:
    board = json.loads(dashboard.FILE.read_text(encoding="utf-8"))
    assert dashboard.missing(board, seen.scrape) == []


def test_the_metrics_say_what_happened(seen: Seen) -> None:
    recommended = {"route": "/api/recommend", "status": "200"}
    assert seen.value("requests_total", **recommended) == 5
    assert seen.value("requests_total", route="/api/recommend/{user_id}", status="422") == 1
    assert seen.value("requests_total", status="429") == seen.value("refused_total", reason="rate") == 1
    assert seen.value("answers_total", arm="live") == 5
    assert seen.value("answers_total", scenario="cart", rung="generative") == 1
    assert seen.value("stage_seconds_count", stage="model") == 5
    assert seen.value("stage_seconds_count", stage="explain") == 1
    assert seen.value("batch_requests_sum", rung="generative") >= 5
    assert (seen.value("events_total", outcome="accepted"), seen.value("events_total", outcome="duplicate")) == (1, 1)
    assert seen.value("commit_writes_sum") >= 3
    assert 0 < seen.value("commit_seconds_sum") < 60
    assert (seen.value("items"), seen.value("cold_items"), seen.value("table_revision")) == (25, 1, 1)
    assert seen.value("model_info", arm="live", model_version=seen.version) == 1
    assert seen.value("store_up") == 1
    assert seen.value("in_flight") == 1, "the scrape itself"
    assert seen.value("queue_depth") == 0


def test_users_are_no_labels(seen: Seen) -> None:
    assert "u01" not in seen.scrape
    assert "ann" not in seen.scrape.replace("channel", "")


def test_a_request_is_traced_with_its_stages(seen: Seen) -> None:
    roots = [span for span in seen.spans if span.name == "POST /api/recommend"]
    assert len(roots) == 5
    for root in roots:
        children = {span.name: span for span in seen.spans if span.parent_span_id == root.span_id}
        assert {"history", "model", "slate"} <= set(children)
        assert all(root.start_time_unix_nano <= span.start_time_unix_nano for span in children.values())
        assert all(span.end_time_unix_nano <= root.end_time_unix_nano for span in children.values())
        noted = {a.key: a.value.string_value for a in children["model"].attributes}
        assert noted == {"rung": "generative", "model_version": seen.version}


def test_a_trace_goes_on_from_the_caller_and_names_nobody(seen: Seen) -> None:
    (mine,) = (span for span in seen.spans if span.trace_id.hex() == TRACE and span.kind == Span.SPAN_KIND_SERVER)
    noted = {a.key: a.value.string_value or a.value.int_value for a in mine.attributes}
    assert mine.name == "GET /api/recommend/{user_id}"
    assert noted == {"http.route": "/api/recommend/{user_id}", "http.response.status_code": 422, "request_id": "mine"}
    assert not any(b"u01" in span.SerializeToString() for span in seen.spans)


def test_a_refusal_is_logged_under_its_request_id_and_names_nobody(seen: Seen) -> None:
    (line,) = (line for line in seen.logged if line.get("request_id") == "mine")
    assert (line["route"], line["status"], line["level"]) == ("/api/recommend/{user_id}", 422, "INFO")
    assert "u01" not in json.dumps(seen.logged)
    assert "/ann" not in json.dumps(seen.logged)
