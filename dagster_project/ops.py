"""The steps of a debate: plan → argue, one per debater → judge → commit. All run on the worker's loop."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

from dagster import DynamicOut, DynamicOutput, Failure, OpExecutionContext, Out, op

from dagster_project import debate as protocol
from dagster_project.assets import materialization
from dagster_project.debate import DebateTask, Draft, Verdict
from dagster_project.resources import DebateRun, Desk
from serve_app.answers import AnswerBuilder, succeeded
from serve_app.errors import AifactoryError, Unavailable, UpstreamFailed, from_body
from serve_app.events import FinishedEvent, ProgressEvent, RoleEvent, TokenEvent, UsageEvent
from serve_app.telemetry import bound, logger, observe

_BACKOFF_S: Final = 0.2
_MAX_BACKOFF_S: Final = 2.0


def _debate(context: OpExecutionContext) -> DebateRun:
    desk: Desk = context.resources.desk
    return desk.find(context.run_id)


@op(out=DynamicOut(str), required_resource_keys={"desk"}, description="One task per debater")
async def plan(context: OpExecutionContext) -> AsyncIterator[Any]:
    debate = _debate(context)
    with bound(debate.run.trace_id):
        tasks = debate.spec.tasks
        await _open_stream(debate, len(tasks))
        logger.info("debate planned", tasks=[t.task for t in tasks], dagster_run_id=context.run_id)
    for task in tasks:
        yield DynamicOutput(task.task, mapping_key=task.task)


async def _open_stream(debate: DebateRun, tasks: int) -> None:
    """Say who speaks, once: a run that is taken up again has said so already, unless it died before its first event."""
    begun = ProgressEvent(step="argue", done=0, of=tasks)
    if not debate.resumed:
        await debate.emit(RoleEvent())
        await debate.emit(begun)
    elif (await debate.emit(begun)).seq == 0:
        await debate.emit(RoleEvent())


@op(out=Out(Draft), required_resource_keys={"desk"}, description="One debater answers; its tokens stream as they come")
async def argue(context: OpExecutionContext, label: str) -> Draft:
    debate = _debate(context)
    task = debate.spec.find(label)
    with bound(debate.run.trace_id, task=label):
        started = time.monotonic()
        try:
            draft = await _ask_debater(debate, task)
        except AifactoryError as error:
            logger.warning("debater failed", model=task.model_id, error_code=error.code, error=error.message)
            draft = Draft(task=label, model=task.model_id, finish_reason="error", error=error.body())
        observe("aifactory_task_seconds", time.monotonic() - started, model=task.model)
        await debate.emit(ProgressEvent(step="argue", done=debate.task_done(), of=len(debate.spec.tasks)))
    return draft


async def _ask_debater(debate: DebateRun, task: DebateTask) -> Draft:
    question = debate.run.question
    body = protocol.task_body(task, question.messages, question.params)
    shown_as = task.task if debate.spec.drafts else None
    builder, end = await _ask(debate, task.model, task.adapter, body, call=task.task, draft_of=shown_as)
    answer = builder.answer(end)
    message = answer.messages[0]
    return Draft(
        task=task.task,
        model=task.model_id,
        text=answer.text,
        reasoning=str(message.get("reasoning_content") or ""),
        finish_reason=answer.ends[0].finish_reason,
        usage=answer.usage,
    )


async def _ask(
    debate: DebateRun, model: str, adapter: str | None, body: dict[str, Any], *, call: str, draft_of: str | None
) -> tuple[AnswerBuilder, FinishedEvent]:
    """One call to a replica, tried again after a retryable fault as long as no token came. The only layer that retries."""
    for attempt in range(debate.task_retries + 1):
        builder = AnswerBuilder(model)
        name = call if attempt == 0 else f"{call}-{attempt}"
        try:
            return builder, await _stream(debate, builder, model, adapter, body, call=name, draft_of=draft_of)
        except AifactoryError as error:
            if not error.retryable or not builder.empty or attempt == debate.task_retries:
                raise
            logger.warning("replica fault, trying again", call=call, attempt=attempt + 1, error=error.message)
            pause = min(error.retry_after_s or _BACKOFF_S * 2**attempt, _MAX_BACKOFF_S)
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, not a secret
    raise AssertionError("unreachable: the last attempt returns or raises")


async def _stream(
    debate: DebateRun,
    builder: AnswerBuilder,
    model: str,
    adapter: str | None,
    body: dict[str, Any],
    *,
    call: str,
    draft_of: str | None,
) -> FinishedEvent:
    """Collect one stream of a replica and publish its text as it comes. Closing it early aborts it in the engine."""
    request_id = f"{debate.run.trace_id}-{call}"
    async with aclosing(debate.replicas.stream(model, adapter, body, request_id=request_id)) as stream:
        async for event in stream:
            builder.add(event)
            match event:
                case TokenEvent(index=0) if draft_of is not None:
                    await debate.emit(TokenEvent(text=event.text, task=draft_of, reasoning=event.reasoning))
                case UsageEvent():
                    debate.spent(call, event.usage)
                case FinishedEvent(reason="error"):
                    raise from_body(event.error or {"message": f"model {model!r} failed"})
                case FinishedEvent():
                    return event
                case _:
                    pass
    raise UpstreamFailed(f"model {model!r} ended its stream without saying how")


@op(
    out={"drafts": Out(list), "verdict": Out(Verdict)},
    required_resource_keys={"desk"},
    description="The judge reads all answers in both orders",
)
async def judge(context: OpExecutionContext, drafts: list[Draft]) -> tuple[list[Draft], Verdict]:
    debate = _debate(context)
    with bound(debate.run.trace_id):
        standing = protocol.candidates(debate.spec, drafts)
        if not standing:
            failed = next((d.error for d in drafts if d.error), None)
            debate.error = from_body(failed) if failed else UpstreamFailed("no debater gave an answer: all drafts are empty")
            raise Failure(f"no candidate: {debate.error.message}", allow_retries=False)
        await debate.emit(ProgressEvent(step="judge", done=0, of=1))
        votes = await _votes(debate, standing) if len(standing) > 1 else []
        verdict = protocol.decide(standing, votes)
        logger.info("debate judged", winner=verdict.winner, stop_reason=verdict.stop_reason, votes=votes)
        await debate.emit(ProgressEvent(step="judge", done=1, of=1))
    return drafts, verdict


async def _votes(debate: DebateRun, standing: list[Draft]) -> list[str | None]:
    """What the judge says when it reads the answers forwards and backwards."""
    async with asyncio.TaskGroup() as both:
        forwards = both.create_task(_vote(debate, standing, "judge-1"))
        backwards = both.create_task(_vote(debate, standing[::-1], "judge-2"))
    return [forwards.result(), backwards.result()]


async def _vote(debate: DebateRun, order: list[Draft], call: str) -> str | None:
    spec = debate.spec
    body = protocol.judge_body(protocol.question_text(debate.run.question.messages), order)
    try:
        builder, end = await _ask(debate, spec.judge_model, spec.judge_adapter, body, call=call, draft_of=None)
    except AifactoryError as error:
        # The answers are there: a judge that is away must not waste them.
        logger.warning("judge failed", call=call, error_code=error.code, error=error.message)
        return None
    return protocol.read_vote(builder.answer(end).text, [d.task for d in order])


@op(required_resource_keys={"desk"}, description="Record the answer in one transaction, then finish the run")
async def commit(context: OpExecutionContext, drafts: list[Draft], verdict: Verdict) -> str:
    debate = _debate(context)
    with bound(debate.run.trace_id):
        question = debate.run.question
        answer = protocol.answer(question.model, debate.spec, drafts, verdict, debate.usage)
        # Only what is recorded is streamed as the answer: a job that runs again must not answer twice.
        closing = (TokenEvent(text=answer.text), UsageEvent(usage=answer.usage))
        try:
            ours = await debate.settle(succeeded(answer), closing=closing)
        except Unavailable as error:
            debate.unrecorded = error
            raise
        if not ours:
            raise Failure("another attempt owns this run: the answer was not recorded", allow_retries=False)
    context.log_event(materialization(debate, answer))
    return verdict.winner
