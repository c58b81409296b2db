"""Runs, answers and outcomes for the contract suites of the store."""

import time
from dataclasses import dataclass, replace
from typing import Any

from serve_app.events import ChoiceEnd, DebateReport, TaskReport, Usage
from serve_app.ports import AnswerCache, RunStore
from serve_app.runs import Answer, Outcome, Question, Route, Run, RunStatus, new_trace_id

USAGE = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
OVER = -1.0  # a lease that is over as soon as it is given
SKEW_S = 5.0  # Postgres's clock may be another machine's


@dataclass(frozen=True)
class Store:
    runs: RunStore
    cache: AnswerCache


def a_run(
    text: str = "What is up?",
    *,
    key: str | None = None,
    route: Route = "direct",
    system: str = "",
    project: str = "p",
    **fields: Any,
) -> Run:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    question = Question(project=project, route=route, model="m", adapter=None, messages=messages, params={"temperature": 0.5})
    return replace(run_of(question, key=key), **fields)


def run_of(question: Question, *, key: str | None = None) -> Run:
    return Run(
        trace_id=new_trace_id(),
        req_id=question.req_id,
        key=key or question.req_id,
        keyed=key is not None,
        question=question,
        deadline=time.time() + 60,
    )


def an_answer(text: str = "The sky.", finish_reason: str = "stop", **message: Any) -> Answer:
    return Answer(
        model="m",
        messages=({"role": "assistant", "zz": 1.0, "content": text, "a": None, **message},),
        ends=(ChoiceEnd(finish_reason=finish_reason, stop_reason=2),),
        usage=USAGE,
        winner="m",
        debate=DebateReport(winner="m", strategy="judge", rounds=1, stop_reason="", tasks=(TaskReport(task="A", model="m"),)),
        logprobs=({"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]},),
        extra={"system_fingerprint": "f"},
    )


def succeeded(answer: Answer | None = None) -> Outcome:
    return Outcome(status=RunStatus.SUCCEEDED, reason="stop", usage=USAGE, answer=answer or an_answer())


def failed(*, retryable: bool) -> Outcome:
    error = {"message": "it broke \x00", "type": "server_error", "param": None, "code": "upstream_failed", "retryable": retryable}
    return Outcome(status=RunStatus.FAILED, reason="error", usage=USAGE, error=error)


CANCELLED = Outcome(status=RunStatus.CANCELLED, reason="cancelled", usage=USAGE)
