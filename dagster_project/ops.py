"""The steps of a debate: plan → argue, one per debater → review, which may open a further round → decide → commit.

All run on the worker's loop. A debate of one round has no review: its drafts go straight to `decide`.
"""

import time
from typing import Final

from dagster import DynamicOut, DynamicOutput, Failure, In, Nothing, OpExecutionContext, Out, Output, op

from dagster_project import debate as protocol
from dagster_project.asking import Call, ask_again
from dagster_project.assets import materialization
from dagster_project.debate import Draft, RoundEnd
from dagster_project.launch_form import PLAN_CONFIG
from dagster_project.resources import DebateRun, Desk
from dagster_project.rounds import Decision, Held, Round, RoundOver, spent_on
from dagster_project.warm.step_outputs import OutputKey
from dagster_project.warm.thrift import signed
from serve_app.answers import succeeded
from serve_app.errors import AifactoryError, Unavailable
from serve_app.events import ProgressEvent, RoleEvent, TokenEvent, UsageEvent
from serve_app.telemetry import bound, logger, observe

# An operator may bound what all debates together ask of the replicas: Dagster's UI, Deployment, Concurrency.
POOL: Final = "debaters"


def debate_of(context: OpExecutionContext) -> DebateRun:
    """The run that this step belongs to."""
    desk: Desk = context.resources.desk
    return desk.find(context.run_id)


def step_key(context: OpExecutionContext) -> str:
    """The key of the step, such as `argue[A]` or `review_1`."""
    return str(context.get_step_execution_context().step.key)


@op(
    out={
        "tasks": DynamicOut(str),
        "begun": Out(Held, io_manager_key="nothing_held"),
        "more": Out(Held, io_manager_key="nothing_held", is_required=False),
    },
    config_schema=PLAN_CONFIG,
    required_resource_keys={"desk"},
    description="One task per debater; `more` where further rounds may follow the first",
)
@signed
async def plan(context: OpExecutionContext):  # type: ignore[no-untyped-def]  # Dagster would want a tuple
    debate = debate_of(context)
    with bound(debate.run.trace_id):
        tasks = debate.spec.tasks
        await _open_stream(debate, len(tasks))
        logger.info("debate planned", tasks=[t.task for t in tasks], dagster_run_id=context.run_id, take=debate.take)
    yield Output(Held(), "begun")
    if debate.spec.rounds > 1:
        yield Output(Held(), "more")
    for task in tasks:
        yield DynamicOutput(task.task, mapping_key=task.task, output_name="tasks")


async def _open_stream(debate: DebateRun, tasks: int) -> None:
    """Say who speaks, once: a run that is taken up again has said so already, unless it died before its first event."""
    begun = ProgressEvent(step="argue", done=0, of=tasks)
    if not debate.resumed:
        await debate.emit(RoleEvent())
        await debate.emit(begun)
    elif (await debate.emit(begun)).seq == 0:
        await debate.emit(RoleEvent())


@op(
    out=Out(Draft),
    required_resource_keys={"desk"},
    pool=POOL,
    description="One debater answers; its tokens stream as they come",
)
@signed
async def argue(context: OpExecutionContext, label: str) -> Draft:
    return await _argue(context, label, Held())


@op(
    out=Out(Draft),
    required_resource_keys={"desk"},
    pool=POOL,
    description="One debater answers again, now that it has read what the others said",
)
@signed
async def argue_again(context: OpExecutionContext, label: str, heard: Held) -> Draft:
    return await _argue(context, label, heard)


async def _argue(context: OpExecutionContext, label: str, heard: Held) -> Draft:
    debate = debate_of(context)
    key = OutputKey(step_key(context))
    if isinstance(kept := debate.kept.find(key), Draft):
        return kept  # an earlier take got this far, and died before Dagster knew
    held = debate.round(len(heard.rounds) + 1, spent=spent_on(heard.rounds))
    with bound(debate.run.trace_id, task=label):
        started = time.monotonic()
        draft = await _speak(context, debate, held, label, heard)
        observe("aifactory_task_seconds", time.monotonic() - started, model=debate.spec.find(label).model)
        # Before anybody hears of it: who takes the run up must not ask again for what was told as done.
        await debate.keep(key, draft)
        await debate.emit(ProgressEvent(step=held.step, done=held.over(draft), of=len(debate.spec.tasks)))
    return draft


async def _speak(context: OpExecutionContext, debate: DebateRun, held: Round, label: str, heard: Held) -> Draft:
    """The draft of one debater: what it said, what it had said when the round ended, or the error that kept it silent."""
    spec, question = debate.spec, debate.run.question
    task = spec.find(label)
    stood = protocol.standing(spec, heard.rounds)
    body = protocol.task_body(spec, task, question.messages, question.params, previous=stood, max_tokens=held.max_tokens)
    name = label if held.number == 1 else f"{label}-r{held.number}"
    call = Call(debate, name, task.model, task.adapter, retry=context.retry_number, task=label, round=held.number)

    async def show(token: TokenEvent) -> None:
        told = TokenEvent(text=token.text, task=label, reasoning=token.reasoning, round=held.number, attempt=debate.take)
        await debate.emit(told)

    error = None
    try:
        async with held.floor():
            answer = await call.ask(body, show=show if spec.drafts else None)
        end = answer.ends[0].finish_reason
    except RoundOver:
        logger.info("debater cut: its round is over", model=task.model_id)
        answer, end = call.said, "cancelled"
    except AifactoryError as fault:
        ask_again(context, debate, fault, call, seconds_left=held.seconds_left)
        logger.warning("debater failed", model=task.model_id, error_code=fault.code, error=fault.message)
        answer, end, error = call.said, "error", fault.record()
    reasoning = str(answer.messages[0].get("reasoning_content") or "")
    said = {"text": answer.text, "reasoning": reasoning, "finish_reason": end, "usage": call.usage, "error": error}
    return Draft.model_validate({"task": label, "model": task.model_id, "round": held.number, **said})


@op(
    ins={"before": In(Held)},
    out={"held": Out(Held), "tasks": DynamicOut(str, is_required=False)},
    required_resource_keys={"desk"},
    description="One round is over: it was the last, or the debaters hear each other and answer again",
)
@signed
async def review(context: OpExecutionContext, drafts: list[Draft], before: Held):  # type: ignore[no-untyped-def]
    debate = debate_of(context)
    with bound(debate.run.trace_id):
        rounds = (*before.rounds, in_order(debate, drafts))
        end = protocol.after_round(debate.spec, rounds, spent=spent_on(rounds))
        if end.again and debate.rounds_are_over:
            end = RoundEnd(again=False, reason="time")
        logger.info("round ended", round=len(rounds), again=end.again, reason=end.reason)
        held = Held(rounds=rounds, end=end)
        await debate.keep(OutputKey(step_key(context), "held"), held)
        if end.again:
            await debate.emit(ProgressEvent(step=f"round_{len(rounds) + 1}", done=0, of=len(debate.spec.tasks)))
    yield Output(held, "held")
    if end.again:
        for task in debate.spec.tasks:
            yield DynamicOutput(task.task, mapping_key=task.task, output_name="tasks")


def in_order(debate: DebateRun, drafts: list[Draft]) -> tuple[Draft, ...]:
    """The drafts of a round as the specification names their tasks."""
    place = {task.task: number for number, task in enumerate(debate.spec.tasks)}
    return tuple(sorted(drafts, key=lambda draft: place[draft.task]))


@op(required_resource_keys={"desk"}, out=Out(Nothing), description="Record the answer, finish the run")
@signed
async def commit(context: OpExecutionContext, decision: Decision):  # type: ignore[no-untyped-def]
    debate = debate_of(context)
    rounds, verdict = decision.rounds, decision.verdict
    with bound(debate.run.trace_id):
        answer = protocol.answer(debate.run.question.model, debate.spec, rounds, verdict, debate.usage)
        # Only what is recorded is streamed as the answer: a job that runs again must not answer twice. A merged answer
        # has been streamed while it was written.
        text = () if verdict.text is not None else (TokenEvent(text=answer.text),)
        try:
            ours = await debate.settle(succeeded(answer), closing=(*text, UsageEvent(usage=answer.usage)))
        except Unavailable as error:
            debate.unrecorded = error
            raise
        if not ours:
            raise Failure("another attempt owns this run: the answer was not recorded", allow_retries=False)
    # Yielded, so that the step's thread writes it to Postgres: here the loop of all runs would wait.
    yield materialization(debate, answer, page=context.resources.desk.page(debate.run.trace_id))
    yield Output(None)
