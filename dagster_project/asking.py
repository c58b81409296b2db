"""One question to one replica, as a step of a debate asks it: text goes out as it comes, a fault is retried by Dagster.

Retries happen in one layer only, and it is Dagster's: a step that may ask again raises RetryRequested, waits as the UI
shows it (STEP_UP_FOR_RETRY), and begins anew. It may ask again after a fault of a replica, as long as no text came.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

from dagster import OpExecutionContext, RetryRequested

from dagster_project.resources import DebateRun
from serve_app.answers import AnswerBuilder
from serve_app.call_spans import model_call
from serve_app.errors import AifactoryError, UpstreamFailed, from_body
from serve_app.events import FinishedEvent, TokenEvent, Usage, UsageEvent
from serve_app.runs import Answer
from serve_app.spans import Fact
from serve_app.telemetry import logger


class Call:
    """One call: what it has said and used so far stays here, however it ends."""

    def __init__(
        self,
        debate: DebateRun,
        name: str,
        model: str,
        adapter: str | None,
        *,
        retry: int = 0,
        task: str | None = None,
        round: int | None = None,
    ) -> None:
        """`task` and `round`: whose answer it is, None for a judge or a writer."""
        marks = [name, *([f"t{debate.take}"] if debate.take > 1 else ()), *([str(retry)] if retry else ())]
        self.name = "-".join(marks)  # an engine takes a request id once, and a dead worker's call may still run in it
        self.usage = Usage()
        self._debate = debate
        self._model = model
        self._adapter = adapter
        self._builder = AnswerBuilder(model)
        self._facts: dict[str, Fact | None] = {
            "aifactory.debate.role": name.partition("-")[0] if task is None else "debater",
            "aifactory.task": task,
            "aifactory.round": round,
            "aifactory.call": self.name,
            "aifactory.dagster_run_id": debate.dagster_run_id,
        }

    @property
    def silent(self) -> bool:
        """True until a first piece of text came."""
        return self._builder.empty

    @property
    def said(self) -> Answer:
        """What came so far, as an answer that was cut."""
        return self._builder.answer(FinishedEvent(reason="cancelled"))

    async def ask(self, body: dict[str, Any], *, show: Callable[[TokenEvent], Awaitable[Any]] | None = None) -> Answer:
        """The whole answer; `show` gets each piece of it as it comes. Cancelling it closes the stream in the engine.

        Raises the replica's error, or errors.UpstreamFailed.
        """
        debate, request_id = self._debate, f"{self._debate.run.trace_id}-{self.name}"
        asked = debate.replicas.stream(self._model, self._adapter, body, request_id=request_id)
        model = f"{self._model}:{self._adapter}" if self._adapter else self._model
        watched = model_call(debate.run, asked, model=model, body=body, request_id=request_id, facts=self._facts)
        async with aclosing(watched) as stream:
            async for event in stream:
                self._builder.add(event)
                match event:
                    case TokenEvent(index=0) if show is not None:
                        await show(event)
                    case UsageEvent():
                        self.usage = event.usage
                        debate.spent(self.name, event.usage)
                    case FinishedEvent(reason="error"):
                        raise from_body(event.error or {"message": f"model {self._model!r} failed"})
                    case FinishedEvent():
                        return self._builder.answer(event)
                    case _:
                        pass
        raise UpstreamFailed(f"model {self._model!r} ended its stream without saying how")


def ask_again(context: OpExecutionContext, debate: DebateRun, error: AifactoryError, call: Call, *, seconds_left: float) -> None:
    """Raises dagster.RetryRequested when the step may ask again after this error; else returns."""
    pause = debate.backoff.pause(error, context.retry_number, seconds_left=seconds_left) if call.silent else None
    if pause is not None:
        logger.warning("replica fault, trying again", call=call.name, retry=context.retry_number + 1, error=error.message)
        raise RetryRequested(max_retries=debate.backoff.retries, seconds_to_wait=pause) from error
