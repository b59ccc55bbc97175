"""A collector of OpenTelemetry spans over HTTP: a real server, which decodes what comes."""

import gzip
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(http.server.ThreadingHTTPServer):
    """Keeps the spans that are posted to /v1/traces."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.spans: dict[str, Span] = {}
        """By name; the last one of each."""
        self.all: list[Span] = []
        self.services: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"


class Receiver(http.server.BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        sent = ExportTraceServiceRequest.FromString(body)
        for resource in sent.resource_spans:
            self.server.services.update(
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            found = [span for scope in resource.scope_spans for span in scope.spans]
            self.server.all += found
            self.server.spans.update({span.name: span for span in found})
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector that listens."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
