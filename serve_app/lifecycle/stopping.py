"""Stopping a run, wherever it executes.

Here at once; elsewhere through the log, which keeps the request for the run's owner, and through NATS, which is quick.
"""

import asyncio

from serve_app.errors import Unavailable
from serve_app.lifecycle.local_runs import LocalRuns
from serve_app.ports import EventBus, RunStore
from serve_app.telemetry import logger


async def stop_run(trace_id: str, reason: str, *, store: RunStore, bus: EventBus, local_runs: LocalRuns) -> None:
    """Ask the run's owner to stop it. One that nobody executes right now is ended by whoever takes it up.

    Without NATS its owner hears of it within a third of a lease. Raises errors.Unavailable when neither the log nor
    NATS took the request.
    """
    if local_runs.stop(trace_id, reason):
        return  # it settles itself
    # Side by side: the one must not wait for the other while that is away.
    logged, sent = await asyncio.gather(
        store.request_cancel(trace_id, reason), bus.publish_cancel(trace_id, reason), return_exceptions=True
    )
    for failure in (logged, sent):
        if isinstance(failure, BaseException) and not isinstance(failure, Unavailable):
            raise failure
    if isinstance(logged, Unavailable) and isinstance(sent, Unavailable):
        raise logged
    if isinstance(logged, Unavailable):
        logger.warning("cancel not in the log, only sent", trace_id=trace_id, error=logged.message)
    elif isinstance(sent, Unavailable):
        logger.warning("cancel not sent; the run's owner finds it in the log", trace_id=trace_id, error=sent.message)
