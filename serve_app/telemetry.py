"""Logs and metrics: the only file that names a metric.

Log lines are JSON objects on stderr; `bound(trace_id)` puts the run's id on every line written inside it.
Metrics go through Ray's metrics endpoint; outside a Ray process they are dropped.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson
from loguru import logger

if TYPE_CHECKING:
    from loguru import Message

__all__ = ["bound", "configure_logging", "count", "gauge", "logger", "observe"]

_LATENCY_S = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300]

# name: (kind, description, tag names). Histograms are seconds.
METRICS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "aifactory_requests_total": ("counter", "HTTP requests by path and status", ("path", "status")),
    "aifactory_runs_total": ("counter", "runs by route and outcome", ("route", "outcome")),
    "aifactory_run_seconds": ("histogram", "time from claim to settled", ("route",)),
    "aifactory_time_to_first_token_seconds": ("histogram", "time from request to the first token", ("route",)),
    "aifactory_sse_seconds": ("histogram", "how long a stream was open", ("route",)),
    "aifactory_streams_dropped_total": ("counter", "streams without their whole answer", ("route", "reason")),
    "aifactory_cache_results_total": ("counter", "recall results", ("result",)),
    "aifactory_cache_vetoes_total": ("counter", "stored answers and questions that a cache guard kept back", ("rule",)),
    "aifactory_cache_verified_total": ("counter", "semantic answers compared with a fresh one", ("verdict",)),
    "aifactory_rag_total": ("counter", "questions on route rag, by whether documents had something to say", ("result",)),
    "aifactory_limit_refusals_total": ("counter", "requests refused by a limit of their key or project", ("limit",)),
    "aifactory_queue_seconds": ("histogram", "time a workflow run waited for a worker", ()),
    "aifactory_queue_lag": ("gauge", "workflow runs in the queue, waiting or being worked on", ()),
    "aifactory_task_seconds": ("histogram", "time of one debate task", ("model",)),
    "aifactory_events_unpublished_total": ("counter", "events that NATS did not take", ()),
    "aifactory_engine_running": ("gauge", "requests an engine is working on", ("model",)),
    "aifactory_engine_waiting": ("gauge", "requests that wait inside an engine", ("model",)),
}


def _to_json(message: "Message") -> None:
    record = message.record
    line: dict[str, Any] = {
        "time": record["time"].isoformat(),
        "level": record["level"].name,
        "message": record["message"],
        "logger": record["name"],
        **record["extra"],
    }
    if record["exception"] is not None:
        kind, value, _ = record["exception"]
        line["error"] = f"{kind.__name__ if kind else 'error'}: {value}"
        line["traceback"] = str(record["exception"].traceback and message).partition("\n")[2][-4000:]
    # The process's own stderr, which Ray keeps per worker: Serve replaces sys.stderr with a logger that buffers.
    stream = sys.__stderr__ or sys.stderr
    try:
        text = orjson.dumps(line, default=str).decode()
    except orjson.JSONEncodeError:  # half a surrogate pair, a huge number: rare, and no reason to lose the line
        text = json.dumps(line, default=str)
    stream.write(text + "\n")
    stream.flush()


def configure_logging(level: str = "INFO", **context: str) -> None:
    """Send loguru to stderr as one JSON object a line, with `context` on each."""
    # diagnose=False: loguru would print local variables, prompts among them.
    logger.remove()
    logger.add(_to_json, level=level, backtrace=False, diagnose=False)
    logger.configure(extra=context)


@contextmanager
def bound(trace_id: str, **context: str) -> Iterator[None]:
    """Put `trace_id` (and `context`) on every log line written inside the block."""
    with logger.contextualize(trace_id=trace_id, **context):
        yield


@cache
def _metric(name: str) -> Any:
    from ray.util import metrics

    kind, description, tags = METRICS[name]
    if kind == "histogram":
        return metrics.Histogram(name, description=description, boundaries=_LATENCY_S, tag_keys=tags)
    return {"counter": metrics.Counter, "gauge": metrics.Gauge}[kind](name, description=description, tag_keys=tags)


@cache
def _in_ray() -> bool:
    import ray

    return bool(ray.is_initialized())


def count(name: str, amount: float = 1, **tags: str) -> None:
    """Add to a counter."""
    if _in_ray():
        _metric(name).inc(amount, tags=tags)


def observe(name: str, seconds: float, **tags: str) -> None:
    """Put one duration into a histogram."""
    if _in_ray():
        _metric(name).observe(seconds, tags=tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge."""
    if _in_ray():
        _metric(name).set(value, tags=tags)
