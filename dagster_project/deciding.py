"""The step `decide`: who wins, by the strategy of the debate; or nobody, and why."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NoReturn

from dagster import Failure, OpExecutionContext, Out, op

from dagster_project import debate as protocol
from dagster_project.asking import Call, ask_again
from dagster_project.debate import Ballot, Draft, Verdict
from dagster_project.ops import debate_of, in_order
from dagster_project.resources import DebateRun
from dagster_project.rounds import Decision, Held, Speaking, spent_on
from dagster_project.warm.step_outputs import OutputKey
from dagster_project.warm.thrift import signed
from serve_app.errors import AifactoryError, DeadlineExceeded, Unavailable, UpstreamFailed, from_body
from serve_app.events import ProgressEvent, TokenEvent, Usage
from serve_app.telemetry import bound, logger

_SPEAKING: Final = OutputKey("decide", "speaking")


@op(
    out=Out(Decision),
    required_resource_keys={"desk"},
    description="Judge, vote, consensus or synthesis over the answers that stand",
)
@signed
async def decide(context: OpExecutionContext, drafts: list[Draft], held: list[Held]) -> Decision:
    """`drafts`: the first round's. `held`: what was held after each reviewed round; only the fullest counts."""
    debate = debate_of(context)
    if isinstance(kept := debate.kept.find(OutputKey("decide")), Decision):
        return kept  # an earlier take got this far, and died before Dagster knew
    with bound(debate.run.trace_id):
        rounds = max((h.rounds for h in held), key=len, default=()) or (in_order(debate, drafts),)
        standing = protocol.standing(debate.spec, rounds)
        if not standing:
            fail(debate, nobody_stands(rounds))
        step = debate.spec.strategy
        if context.retry_number == 0:
            await debate.emit(ProgressEvent(step=step, done=0, of=1))
        verdict = await _verdict(context, debate, standing, spent=spent_on(rounds))
        logger.info("debate decided", strategy=step, winner=verdict.winner, stop_reason=verdict.stop_reason)
        decision = Decision(rounds=rounds, verdict=verdict)
        await debate.keep(OutputKey("decide"), decision)
        await debate.emit(ProgressEvent(step=step, done=1, of=1))
    return decision


def nobody_stands(rounds: tuple[tuple[Draft, ...], ...]) -> AifactoryError:
    """Why there is no candidate: the first error, else the clock, else silence."""
    drafts = [draft for in_round in rounds for draft in in_round]
    if failed := next((d.error for d in drafts if d.error), None):
        return from_body(failed)
    if any(d.finish_reason == "cancelled" for d in drafts):
        return DeadlineExceeded("no debater answered within the time for the rounds: allow more with x_timeout_s")
    return UpstreamFailed("no debater gave an answer: all drafts are empty")


def fail(debate: DebateRun, error: AifactoryError) -> NoReturn:
    """End the debate with this error. Raises Failure, always."""
    debate.error = error
    raise Failure(f"no answer: {error.message}", allow_retries=False)


async def _verdict(context: OpExecutionContext, debate: DebateRun, standing: list[Draft], *, spent: Usage) -> Verdict:
    foregone = protocol.foregone(standing) is not None
    match debate.spec.strategy:
        case "judge":
            ballots = [] if foregone else await _ballots(context, debate, standing)
            return protocol.judge_verdict(standing, ballots).model_copy(update={"usage": debate.used_by("judge-")})
        case "vote":
            return protocol.vote_verdict(standing)
        case "consensus":
            return protocol.consensus_verdict(standing, [] if foregone else await _vectors(debate, standing))
        case "synthesize":
            return protocol.unwritten_verdict(standing) if foregone else await _write(context, debate, standing, spent)


@asynccontextmanager
async def _in_time(debate: DebateRun) -> AsyncIterator[asyncio.Timeout]:
    """Raises DeadlineExceeded while there is still time to give one of the answers that are there."""
    limit = asyncio.timeout(debate.closing_s)
    try:
        async with limit:
            yield limit
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded("no reply in time; what is left of the run's time is for recording the answer") from None


async def _ballots(context: OpExecutionContext, debate: DebateRun, standing: list[Draft]) -> list[Ballot]:
    """What the judge says when it reads the answers forwards and backwards."""
    orders = {"judge-1": standing, "judge-2": standing[::-1]}
    async with asyncio.TaskGroup() as both:
        votes = [both.create_task(_vote(context, debate, name, order)) for name, order in orders.items()]
    for name, vote in zip(orders, votes, strict=True):
        if (fault := vote.result()) is not None:
            error, call = fault
            ask_again(context, debate, error, call, seconds_left=debate.run.seconds_left)
            # The answers are there: a judge that is away must not waste them.
            logger.warning("judge failed", call=name, error_code=error.code, error=error.message)
    labels = {name: tuple(d.task for d in order) for name, order in orders.items()}
    return [debate.ballots.get(name) or Ballot(voter=debate.spec.judge_id, order=labels[name]) for name in orders]


async def _vote(
    context: OpExecutionContext, debate: DebateRun, name: str, order: list[Draft]
) -> tuple[AifactoryError, Call] | None:
    """One reading: its ballot is noted, so that a retry asks only for what is missing. Returns the fault, if any."""
    if name in debate.ballots:
        return None
    spec = debate.spec
    call = Call(debate, name, spec.judge_model, spec.judge_adapter, retry=context.retry_number)
    labels = tuple(d.task for d in order)
    try:
        async with _in_time(debate):
            reply = await call.ask(protocol.judge_body(protocol.question_text(debate.run.question.messages), order))
    except AifactoryError as error:
        return error, call
    debate.ballots[name] = Ballot(voter=spec.judge_id, order=labels, choice=protocol.read_vote(reply.text, labels))
    return None


async def _vectors(debate: DebateRun, standing: list[Draft]) -> list[list[float]]:
    """One unit vector per answer; none when the embedder failed, and the next criterion decides."""
    if debate.embed is None:
        logger.error("this worker has no embedder: give its DebateRunner one (embedder.OnDemandEmbedder)")
        return []
    try:
        async with _in_time(debate):
            return await debate.embed([d.text for d in standing])
    except AifactoryError as error:
        logger.warning("answers could not be embedded", error_code=error.code, error=error.message)
        return []


async def _write(context: OpExecutionContext, debate: DebateRun, standing: list[Draft], spent: Usage) -> Verdict:
    """The writer merges the answers; what it writes streams live as the answer, so it can be written only once."""
    if debate.kept.find(_SPEAKING) is not None:
        fail(debate, Unavailable("the worker died while the answer was being written, and part of it was sent; ask again"))
    spec, question = debate.spec, debate.run.question
    call = Call(debate, "writer", spec.judge_model, spec.judge_adapter, retry=context.retry_number)
    body = protocol.synthesize_body(
        protocol.question_text(question.messages),
        standing,
        question.params,
        protocol.allowance(spec, spent=spent, calls=1, closing=True),
        instructions=protocol.instructions_text(question.messages),
    )

    try:
        async with _in_time(debate) as limit:

            async def show(token: TokenEvent) -> None:
                if not limit.expired():
                    limit.reschedule(None)  # what was said cannot be taken back: it goes on until the run's own end
                if debate.kept.find(_SPEAKING) is None:
                    await debate.keep(_SPEAKING, Speaking(take=debate.take))
                await debate.emit(TokenEvent(text=token.text, reasoning=token.reasoning))

            answer = await call.ask(body, show=show)
    except AifactoryError as error:
        if not call.silent:
            fail(debate, error)
        ask_again(context, debate, error, call, seconds_left=debate.run.seconds_left)
        logger.warning("writer failed", error_code=error.code, error=error.message)
        return protocol.unwritten_verdict(standing)
    if not answer.text.strip():
        if not call.silent:
            fail(debate, UpstreamFailed("the writer of the answer thought, and wrote nothing"))
        return protocol.unwritten_verdict(standing)
    return Verdict(
        winner=None,
        stop_reason="synthesized",
        text=answer.text,
        reasoning=str(answer.messages[0].get("reasoning_content") or ""),
        model=spec.judge_id,
        finish_reason=answer.ends[0].finish_reason,
        usage=call.usage,
    )
