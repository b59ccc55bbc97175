"""Spans reach a collector over OTLP/HTTP."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tests.serving.collector import Collector, collecting

from tesserec.config import build
from tesserec.errors import RecipeError, ServiceError
from tesserec.serving.tracing import Tracing, TracingConfig


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def test_a_request_with_its_stages_reaches_the_collector(collector: Collector) -> None:
    tracing = Tracing(TracingConfig(otlp_endpoint=collector.url))
    assert tracing.on
    caller = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with tracing.request("POST /api/recommend", caller, {"namespace": "shop"}) as request:
        with tracing.span("history"):
            pass
        with tracing.span("model", {"rung": "dense"}) as model:
            model.set_attribute("batch", 4)
            time.sleep(0.002)
        with tracing.span("slate"):
            pass
        request.set_attribute("rung", "dense")
    tracing.close()
    spans = collector.spans
    assert set(spans) == {"POST /api/recommend", "history", "model", "slate"}
    root = spans["POST /api/recommend"]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (caller[3:35].decode(), caller[36:52].decode())
    assert root.kind == Span.SPAN_KIND_SERVER
    assert all(spans[name].parent_span_id == root.span_id for name in ("history", "model", "slate"))
    assert {a.key: a.value.string_value or a.value.int_value for a in spans["model"].attributes} == {
        "rung": "dense",
        "batch": 4,
    }
    assert {a.key: a.value.string_value for a in root.attributes} == {"namespace": "shop", "rung": "dense"}
    assert spans["model"].end_time_unix_nano - spans["model"].start_time_unix_nano >= 2_000_000
    assert collector.services == {"tesserec"}


def test_a_share_of_the_requests_is_traced(collector: Collector) -> None:
    tracing = Tracing(TracingConfig(otlp_endpoint=collector.url, sample_share=0.0))
    with tracing.request("not asked for", None):
        pass
    with tracing.request("asked for", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
        pass
    tracing.close()
    assert set(collector.spans) == {"asked for"}


@pytest.mark.parametrize("traceparent", [None, b"", b"00-nonsense", b"\xfc" * 1000])
def test_a_caller_without_a_usable_trace_starts_one(collector: Collector, traceparent: bytes | None) -> None:
    tracing = Tracing(TracingConfig(otlp_endpoint=collector.url))
    with tracing.request("alone", traceparent):
        pass
    tracing.close()
    assert collector.spans["alone"].parent_span_id == b""


def test_a_collector_that_is_not_there_costs_spans_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with Collector() as gone:
        url = gone.url
    tracing = Tracing(TracingConfig(otlp_endpoint=url))
    with tracing.request("lost", None):
        pass
    tracing.close()
    assert "Failed to export" in caplog.text


def test_without_an_endpoint_there_is_one_span_that_does_nothing() -> None:
    tracing = Tracing()
    assert not tracing.on
    assert tracing.request("a", b"00-x") is tracing.span("b", {"c": 1})
    with tracing.span("a") as outer, tracing.span("b") as inner:
        outer.set_attribute("k", 1)
        assert inner is outer
    tracing.close()


def test_without_an_endpoint_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys; from tesserec.serving.tracing import Tracing; t = Tracing()\n"
        "with t.request('a', None), t.span('b'): pass\n"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_endpoint_without_opentelemetry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ServiceError, match=r"needs the package opentelemetry.*: pip install 'tesserec\[tracing\]'"):
        Tracing(TracingConfig(otlp_endpoint="http://localhost:4318/v1/traces"))


def test_an_endpoint_is_an_address() -> None:
    with pytest.raises(RecipeError, match=r"tracing\.otlp_endpoint = 'localhost:4318'"):
        build(TracingConfig, {"otlp_endpoint": "localhost:4318"}, "tracing")
