"""A direct run: executed in this process, from the replica to the publisher, always with an end."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from serve_app.answers import AnswerBuilder, cancelled, failed, succeeded
from serve_app.call_spans import model_call
from serve_app.errors import AifactoryError, Cancelled, DeadlineExceeded, Unavailable
from serve_app.events import FinishedEvent, RoleEvent, UsageEvent
from serve_app.lifecycle.admit import Execute
from serve_app.lifecycle.research import Findings, Research, is_too_long
from serve_app.lifecycle.retry import Backoff
from serve_app.lifecycle.settle import finish_unrecorded, settle
from serve_app.ports import Replicas, RunPublisher, RunStore
from serve_app.runs import Outcome, Run, RunStatus
from serve_app.spans import timed
from serve_app.telemetry import bound, logger, observe

_SETTLE_TRIES = 4


class DirectRun:
    """One question put to a replica, from this process; its events go to the publisher as they come.

    Until the first token is published, a retryable fault is met by asking again; after it, never. No other layer retries.
    """

    def __init__(
        self,
        admitted: Execute,
        *,
        store: RunStore,
        replicas: Replicas,
        publisher: RunPublisher,
        backoff: Backoff,
        unrecorded: Callable[[Run, Outcome], None],
        research: Research | None = None,
    ) -> None:
        self.run = admitted.run
        self._recorded = admitted.recorded
        self._store = store
        self._replicas = replicas
        self._publisher = publisher
        self._backoff = backoff
        self._unrecorded = unrecorded
        self._research = research
        self._findings: Findings | None = None  # of route rag
        self._builder = AnswerBuilder(admitted.run.question.model_id)
        self._task: asyncio.Task[None] | None = None
        self._stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """End the run early: the engine request is aborted, the run is settled as cancelled."""
        self._stop_reason = reason
        if self._task is not None:
            self._task.cancel()

    async def execute(self) -> None:
        """Run to the end. Whatever happens, the run is settled before this returns."""
        self._task = asyncio.current_task()
        with bound(self.run.trace_id, route=self.run.route):
            outcome = await self._outcome()
            # From here a stop comes too late, and nothing may tear the commit apart: it is bounded by its own tries.
            task, self._task = self._task, None
            recording = asyncio.ensure_future(self._record(outcome))
            while not recording.done():
                try:
                    await asyncio.shield(recording)
                except asyncio.CancelledError:
                    if task is not None:
                        task.uncancel()

    async def _record(self, outcome: Outcome) -> None:
        if outcome.usage.total_tokens:
            await self._publisher.emit(UsageEvent(usage=outcome.usage))
        if not await record(self._store, self._publisher, self.run, outcome, recorded=self._recorded):
            self._unrecorded(self.run, outcome)

    async def _outcome(self) -> Outcome:
        try:
            if self._stop_reason is not None:  # stopped before it began
                raise asyncio.CancelledError
            async with asyncio.timeout(self.run.seconds_left):
                return await self._answer()
        except TimeoutError:
            return failed(DeadlineExceeded(f"the run did not finish within its {_deadline_s(self.run):g} s"), self._builder.usage)
        except asyncio.CancelledError:
            if self._task is not None:
                self._task.uncancel()  # the end of the run is still ours to record
            if self._stop_reason is None:
                return failed(Unavailable("the gateway is shutting down; retry"), self._builder.usage)
            return cancelled(Cancelled.because(self._stop_reason), self._builder.usage)
        except AifactoryError as error:
            return failed(error, self._builder.usage)
        except Exception as error:  # noqa: BLE001 - the caller must get an end, whatever broke; the log gets the cause
            logger.opt(exception=error).error("direct run broke")
            return failed(AifactoryError("internal error; the log has the cause under this trace_id"), self._builder.usage)

    async def _answer(self) -> Outcome:
        """Ask until a replica speaks, within the bounds of the backoff."""
        if self._research is not None and self.run.route == "rag":
            with timed(self.run, "retrieval") as span:
                self._findings = await self._research.find(self.run.question)
                passages = len(self._findings.evidence)
                span.note({"gen_ai.operation.name": "retrieval", "aifactory.rag.passages": passages})
        for retry in range(self._backoff.retries + 1):
            try:
                # A name of its own: the engine may not have let go of the one before.
                return await self._with_less_evidence(self.run.trace_id if retry == 0 else f"{self.run.trace_id}-{retry}")
            except AifactoryError as error:
                pause = self._backoff.pause(error, retry, seconds_left=self.run.seconds_left)
                if pause is None or not self._builder.empty:
                    raise
                logger.warning("replica fault before the first token, asking again", retry=retry + 1, error=error.message)
            self._builder = AnswerBuilder(self.run.question.model_id)
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    async def _with_less_evidence(self, request_id: str) -> Outcome:
        """Ask; a prompt that is too long loses evidence and is asked again, until it is the client's own."""
        while True:
            try:
                return await self._stream(request_id)
            except AifactoryError as error:
                less = self._findings.fewer() if self._findings is not None else None
                if less is None or not is_too_long(error) or not self._builder.empty:
                    raise
                self._findings = less
                request_id += "-less"

    async def _stream(self, request_id: str) -> Outcome:
        question, findings = self.run.question, self._findings
        body = {**question.params, "messages": findings.messages(question) if findings else question.messages}
        roles: list[RoleEvent] | None = []  # held back until there is a token, so that a retry does not repeat them
        asked = self._replicas.stream(question.model, question.adapter, body, request_id=request_id)
        stream = model_call(self.run, asked, model=question.model_id, body=body, request_id=request_id)
        try:
            async for event in stream:
                self._builder.add(event)
                if isinstance(event, UsageEvent):
                    continue
                if isinstance(event, RoleEvent) and roles is not None:
                    roles.append(event)
                    continue
                if roles is not None:
                    observe("aifactory_time_to_first_token_seconds", time.time() - self.run.started, route=self.run.route)
                    for role in roles:
                        await self._publisher.emit(role)
                    roles = None
                if isinstance(event, FinishedEvent):
                    answer = self._builder.answer(event)
                    return succeeded(replace(answer, rag=findings.report()) if findings else answer)
                await self._publisher.emit(event)
        finally:
            await stream.aclose()  # closing it early aborts the request in the engine
        raise AssertionError("a replica stream ends with finished or raises")


async def record(store: RunStore, publisher: RunPublisher, run: Run, outcome: Outcome, *, recorded: bool = True) -> bool:
    """Settle, and try again a few times when the database is away. False when the end was said but could not be recorded.

    A plain unkeyed answer that has reached its reader is not spoilt because it cannot be recorded; a keyed one is
    ended as an error, since its key could not replay it.
    """
    if not recorded:
        await finish_unrecorded(publisher, run, outcome)
        return True
    for attempt in range(_SETTLE_TRIES):
        try:
            await settle(store, publisher, run, outcome)
        except Unavailable as error:
            logger.warning("the outcome could not be recorded yet", error=error.message, attempt=attempt)
            await asyncio.sleep(0.25 * 2**attempt)
        except Exception as error:  # noqa: BLE001 - readers must get an end, whatever broke; the log gets the cause
            logger.opt(exception=error).error("the outcome could not be recorded")
            broken = AifactoryError("the answer could not be recorded; the log has the cause under this trace_id")
            outcome = failed(broken, outcome.usage)
            break
        else:
            return True
    if run.keyed and outcome.status is RunStatus.SUCCEEDED:
        away = Unavailable("the answer could not be recorded under its Idempotency-Key: Postgres is away; retry")
        outcome = failed(away, outcome.usage)
    await finish_unrecorded(publisher, run, outcome)
    return False


def _deadline_s(run: Run) -> float:
    return round(run.deadline - run.started, 3)
