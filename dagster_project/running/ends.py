"""What is said of a run that nobody executes to its end right now: it waits, it is given up, its end is told late."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from serve_app.answers import cancelled, failed
from serve_app.errors import AifactoryError, Cancelled, DeadlineExceeded, Unavailable
from serve_app.events import Usage
from serve_app.lifecycle.settle import settle
from serve_app.lifecycle.sweep import tell_end, waiting_lease_s
from serve_app.ports import EventBus, RunRecord, RunStore
from serve_app.runs import Run
from serve_app.telemetry import logger

_RETRY_S: Final = 1.0  # pause while a part is away


async def wait_out(
    work: Callable[[bool], Awaitable[float | None]], let_wait: Callable[[Run], Awaitable[None]], run: Run, *, longest_s: float
) -> float | None:
    """`work` again and again while a part is away, until the run's deadline: a run has only a few deliveries.

    `work` gets whether it has been tried before. The pauses double up to `longest_s`. Raises errors.Unavailable.
    """
    tries = 0
    while True:
        try:
            return await work(tries > 0)
        except Unavailable as error:
            pause_s = min(_RETRY_S * 2**tries, longest_s)
            if run.seconds_left < pause_s:
                raise
            logger.warning("run waits: a part that it needs is away", error=error.message, tries=tries)
            await let_wait(run)
            await asyncio.sleep(pause_s)
            tries += 1


def overdue(run: Run) -> DeadlineExceeded:
    """The error of a debate whose time is over."""
    return DeadlineExceeded(f"the debate did not finish within its {run.deadline - run.started:g} s")


async def end_unstarted(store: RunStore, bus: EventBus, run: Run, record: RunRecord) -> bool:
    """End a run that nobody executes if it was cancelled or its time is over. Raises errors.Unavailable."""
    if record.cancel_reason is not None:
        outcome = cancelled(Cancelled.because(record.cancel_reason), Usage())
    elif run.seconds_left <= 0:
        outcome = failed(overdue(run), Usage())
    else:
        return False
    await settle(store, await bus.open_run(run.trace_id, resume=True), run, outcome)
    return True


async def let_wait(store: RunStore, run: Run, *, lease_s: float) -> None:
    """The run has no owner until somebody takes it up again, and is not abandoned."""
    try:
        await store.extend_leases([run.trace_id], lease_s=waiting_lease_s(run, lease_s))
    except Unavailable as error:
        logger.warning("lease of a waiting run not extended", error=error.message)


async def give_up(store: RunStore, bus: EventBus, run: Run, tries: int) -> None:
    """The last of so many tries came to nothing: tell whoever waits. A run that was cancelled meanwhile ends as that."""
    logger.error("run given up: it was delivered for the last time", delivery=tries)
    try:
        record = await store.find(run.trace_id)
        outcome = failed(Unavailable(f"the debate could not be finished in {tries} tries; retry"), Usage())
        if record is not None and record.cancel_reason is not None:
            outcome = cancelled(Cancelled.because(record.cancel_reason), Usage())
        await settle(store, await bus.open_run(run.trace_id, resume=True), run, outcome)
    except AifactoryError as error:
        logger.error("and that could not be recorded", error=error.message)


async def tell_later(store: RunStore, bus: EventBus, record: RunRecord, *, patience_s: float) -> float | None:
    """A process may have died between the record of a run's end and its `finished`: then readers still wait.

    Unless it lives and is just about to say so: then after how many seconds to look again. Raises errors.Unavailable.
    """
    fresh_s = record.updated_at + patience_s - time.time()
    if fresh_s > 0 and patience_s > 0:
        return fresh_s
    await tell_end(store, bus, record, perhaps_said=True)
    return None
