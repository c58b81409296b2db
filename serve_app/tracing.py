"""Sends spans to a collector over OTLP/HTTP: the only file that imports OpenTelemetry, which is the extra `tracing`.

Making a span costs the event loop an object and a place in a bounded queue. A thread does the rest: it hands what has
gathered to OpenTelemetry's SDK once a second. A collector that is away costs spans, never latency; it is logged when it
falls silent and when it is back. OpenTelemetry's own environment (OTEL_EXPORTER_OTLP_HEADERS, _CERTIFICATE,
_COMPRESSION, _TIMEOUT, OTEL_RESOURCE_ATTRIBUTES) holds beside our settings.
"""

import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from serve_app.settings import Settings
from serve_app.spans import Place, Span, drop_spans, send_spans_to
from serve_app.telemetry import logger

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext

_PATH: Final = "/v1/traces"
_MOST_WAITING: Final = 8192  # spans
_BATCH: Final = 128  # spans: encoding more at once would hold up the event loop for more than a few milliseconds
_EVERY_S: Final = 1.0
_FLUSH_S: Final = 3.0  # what a process that ends gives the collector
_LET_GO_S: Final = 1.0


class TracingUnavailable(RuntimeError):
    """The settings ask for spans that cannot be sent from here; the message says why and what to do."""


class Tracing(Protocol):
    """The sending of one process's spans."""

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and end. Blocks."""
        ...


def check_tracing(settings: Settings) -> None:
    """Raises TracingUnavailable when the settings ask for spans that cannot be sent."""
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TracingUnavailable(f"otlp_endpoint {endpoint!r} is no address of a collector; it looks like http://collector:4318")
    try:
        missing = find_spec("opentelemetry.exporter.otlp.proto.http") is None or find_spec("opentelemetry.sdk.trace") is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise TracingUnavailable(
            "otlp_endpoint is set, but OpenTelemetry is not installed here: pip install -e '.[tracing]' in the clone, or unset it"
        )


def start_tracing(settings: Settings, *, component: str) -> Tracing | None:
    """Send the spans of this process from now on; None without otlp_endpoint. Raises as check_tracing does."""
    check_tracing(settings)
    if settings.otlp_endpoint is None:
        return None
    sender = SpanSender(settings.otlp_endpoint, component=component)
    send_spans_to(sender.take, ratio=settings.trace_sample_ratio)
    return sender


class SpanSender:
    """Sends to one collector, from a thread of its own, until `close`. `endpoint`: with or without the path /v1/traces."""

    def __init__(self, endpoint: str, *, component: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        _silence("opentelemetry.exporter.otlp")  # a line for each failed try; we say it once
        address = endpoint.rstrip("/")
        self._address = address if address.endswith(_PATH) else address + _PATH
        self._exporter = OTLPSpanExporter(self._address)
        self._spans = _SdkSpans(component)
        self._waiting: deque[Span] = deque()
        self._awake = threading.Event()
        self._closed = False
        self._lost = 0
        self._away = False
        self._thread = threading.Thread(target=self._run, name="send spans", daemon=True)
        self._thread.start()

    def take(self, span: Span) -> None:
        """One more span; thread-safe, never blocks. When too many wait, it is lost."""
        if self._closed or len(self._waiting) >= _MOST_WAITING:
            self._lost += 1
            return
        self._waiting.append(span)

    def close(self) -> None:
        """See Tracing."""
        drop_spans(self.take)
        self._closed = True
        self._awake.set()
        self._thread.join(_FLUSH_S)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # ends the pauses between tries
        self._thread.join(_LET_GO_S)
        if lost := self._lost + len(self._waiting):
            logger.warning("spans were not sent", spans=lost, collector=self._address)

    def _run(self) -> None:
        while not self._closed:
            self._awake.wait(_EVERY_S)
            self._send_waiting()
        self._send_waiting()

    def _send_waiting(self) -> None:
        tried = 0
        while self._waiting and not (self._closed and self._away and tried):  # nobody waits for a collector that is away
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            tried += 1
            try:
                self._note(self._send(batch), len(batch))
            except Exception as error:  # noqa: BLE001 - one bad batch must not end the sending; the log has the cause
                self._lost += len(batch)
                logger.opt(exception=error).error("spans could not be sent")

    def _send(self, batch: Sequence[Span]) -> bool:
        from opentelemetry.sdk.trace.export import SpanExportResult

        return self._exporter.export(self._spans.made_of(batch)) is SpanExportResult.SUCCESS

    def _note(self, sent: bool, count: int) -> None:
        if not sent:
            self._lost += count
            if not self._away:
                logger.warning("the collector of traces takes no spans; they are lost until it does", collector=self._address)
        elif self._away:
            logger.info("the collector of traces is back", collector=self._address, lost=self._lost)
            self._lost = 0
        self._away = not sent


class _SdkSpans:
    """Our spans as the SDK's. Used by one thread."""

    def __init__(self, component: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
        from opentelemetry.sdk.trace.id_generator import IdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        class GivenIds(IdGenerator):
            trace_id = span_id = 0

            def generate_trace_id(self) -> int:
                return self.trace_id

            def generate_span_id(self) -> int:
                return self.span_id

        class Gather(SpanProcessor):
            def __init__(self) -> None:
                self.ended: list[ReadableSpan] = []

            def on_end(self, span: "ReadableSpan") -> None:
                self.ended.append(span)

        self._ids = GivenIds()
        self._gather = Gather()
        resource = Resource.create(
            {
                "service.namespace": "aifactory",
                "service.name": f"aifactory-{component}",
                "service.version": version("aifactory"),
                "host.name": socket.gethostname(),
            }
        )
        # Which runs are traced was decided before.
        self._provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=self._ids)
        self._provider.add_span_processor(self._gather)
        self._tracer = self._provider.get_tracer("aifactory", version("aifactory"))

    def made_of(self, spans: Sequence[Span]) -> "list[ReadableSpan]":
        self._gather.ended = []
        for span in spans:
            self._make(span)
        return self._gather.ended

    def _make(self, span: Span) -> None:
        from opentelemetry.trace import Link, SpanKind, Status, StatusCode

        self._ids.trace_id, self._ids.span_id = int(span.place.trace_id, 16), int(span.span_id, 16)
        attributes = {"aifactory.trace_id": span.place.run, **span.facts}
        if span.error is not None:
            attributes["error.type"] = span.error
        made = self._tracer.start_span(
            span.name,
            context=_under(span),
            kind=SpanKind[span.kind.upper()],
            attributes=attributes,
            links=[Link(_context(place, place.exchange)) for place in span.links],
            start_time=_nanoseconds(span.start),
        )
        for name, moment in span.moments.items():
            made.add_event(name, timestamp=_nanoseconds(moment))
        if span.failed:
            made.set_status(Status(StatusCode.ERROR))
        made.end(_nanoseconds(max(span.start, span.end or span.start)))


def _under(span: Span) -> "Context":
    """The context of a span's parent; an empty one for the first span of a trace."""
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    if span.parent is None:
        return Context()
    return set_span_in_context(NonRecordingSpan(_context(span.place, span.parent)), Context())


def _context(place: Place, span_id: str) -> "SpanContext":
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(place.trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _nanoseconds(unix_s: float) -> int:
    return int(unix_s * 1e9)


def _silence(name: str) -> None:
    quiet = logging.getLogger(name)
    quiet.propagate = False
    if not quiet.handlers:
        quiet.addHandler(logging.NullHandler())
