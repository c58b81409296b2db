"""A collector of traces on a real socket: takes OTLP over HTTP, decodes it with OpenTelemetry's own protobuf."""

import asyncio
import gzip
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from serve_app.settings import Settings
from serve_app.tracing import start_tracing

WAIT_S = 30.0
PATH, DEBATE = "POST /v1/chat/completions", "invoke_workflow debate"
CALLER, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # of a client that traces too
TRACEPARENT = f"00-{CALLER}-{CALLERS_SPAN}-01"


@dataclass(frozen=True)
class Seen:
    """One span as it arrived. Ids in hex, times in nanoseconds; `parent` empty for a first span."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent: str
    start: int
    end: int
    facts: dict[str, Any]
    failed: bool
    events: dict[str, int]
    links: list[tuple[str, str]]
    service: str


@dataclass
class Collector:
    """What has arrived. `status` is what it answers."""

    url: str
    spans: list[Seen] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    refused: list[Seen] = field(default_factory=list)
    status: int = 200

    def named(self, name: str) -> list[Seen]:
        return [span for span in list(self.spans) if span.name.startswith(name)]

    def one(self, name: str) -> Seen:
        (span,) = self.named(name)
        return span

    def of(self, trace_id: str) -> list[Seen]:
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    async def until(self, *names: str, count: int = 1) -> None:
        """Wait for so many spans of each of these names."""
        begun = time.monotonic()
        while any(len(self.named(name)) < count for name in names):
            told = sorted(span.name for span in list(self.spans))
            assert time.monotonic() - begun < WAIT_S, f"waited for {names}, there are {told}"
            await asyncio.sleep(0.02)


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            assert self.path == "/v1/traces"
            if collector.status == 200:
                collector.raw.append(raw)
                collector.spans.extend(_decoded(raw))
            else:
                collector.refused.extend(_decoded(raw))
            self.send_response(collector.status)
            self.send_header("content-type", "application/x-protobuf")
            self.end_headers()
            self.wfile.write(ExportTraceServiceResponse().SerializeToString())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_address[1]}")
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    try:
        yield collector
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@contextmanager
def collecting_from(component: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that gets the spans of this process, under the name of a component, soon after they end."""
    monkeypatch.setattr("serve_app.tracing._EVERY_S", 0.05)
    with collecting() as collector:
        sending = start_tracing(Settings(config="simulated", otlp_endpoint=collector.url), component=component)
        assert sending is not None
        try:
            yield collector
        finally:
            sending.close()


def _decoded(raw: bytes) -> Iterator[Seen]:
    for resource in ExportTraceServiceRequest.FromString(raw).resource_spans:
        service = _facts(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Seen(
                    name=span.name,
                    kind=span.kind,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent=span.parent_span_id.hex(),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    facts=_facts(span.attributes),
                    failed=span.status.code == 2,
                    events={event.name: event.time_unix_nano for event in span.events},
                    links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    service=service,
                )


def _facts(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
