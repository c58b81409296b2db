"""The protocol of a debate: who is asked what, and who wins. Pure: no Dagster, no network.

One strategy so far, `judge`: every debater answers the question once; a judge model reads all answers in both
orders (A B C and C B A) and names the best. A judge that changes its mind with the order has no opinion: that is a
tie, and the next criterion decides (most debaters agree on one short answer; else the first task).
"""

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.events import ChoiceEnd, DebateReport, TaskReport, Usage
from serve_app.runs import Answer

StopReason = Literal["verdict", "sole_candidate", "tie_majority", "tie_first", "judge_failed_majority", "judge_failed_first"]

# The judge must fit into a small context beside several answers.
_QUESTION_CHARS: Final = 2400
_ANSWER_CHARS: Final = 1600
_JUDGE_MAX_TOKENS: Final = 8
_SHORT_ANSWER_WORDS: Final = 12
# A draft is one plain text: these would make it something else.
_NOT_FOR_DRAFTS: Final = frozenset(
    {"n", "stream", "stream_options", "logprobs", "top_logprobs"}
    | {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"}
)
_JUDGE_SYSTEM: Final = "You are an impartial judge. Correctness counts first, then clarity. Length and order do not count."
_ARTICLES: Final = frozenset({"a", "an", "the"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class DebateTask(_Frozen):
    """One debater."""

    task: str = Field(min_length=1)
    model: str
    adapter: str | None = None
    system: str | None = None
    temperature: float | None = None

    @property
    def model_id(self) -> str:
        """The id a client would ask for: the model, with its adapter if it has one."""
        return f"{self.model}:{self.adapter}" if self.adapter else self.model


class DebateSpec(_Frozen):
    """A debate as the gateway resolved it: the request's x_debate over the preset."""

    tasks: tuple[DebateTask, ...] = Field(min_length=1)
    strategy: Literal["judge"] = "judge"
    rounds: Literal[1] = 1
    judge_model: str
    judge_adapter: str | None = None
    drafts: bool = True

    def find(self, label: str) -> DebateTask:
        """The debater of this label. Raises KeyError."""
        for task in self.tasks:
            if task.task == label:
                return task
        raise KeyError(f"the debate has no task {label!r}; it has {[t.task for t in self.tasks]}")


class Draft(_Frozen):
    """What one debater said, or the error that kept it from speaking."""

    task: str
    model: str
    text: str = ""
    reasoning: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    error: dict[str, Any] | None = None

    @property
    def is_candidate(self) -> bool:
        """Whether the draft may win: it did not fail and is not empty."""
        return self.error is None and bool(self.text.strip())


class Verdict(_Frozen):
    """Who won, and by which criterion."""

    winner: str
    stop_reason: StopReason


def task_body(task: DebateTask, messages: Sequence[dict[str, Any]], params: dict[str, Any]) -> dict[str, Any]:
    """The chat request for one debater. Names are stripped: a debater judges what was said, not by whom."""
    said = [{k: v for k, v in message.items() if k != "name"} for message in messages]
    if task.system:
        said = _with_system(said, task.system)
    body = {k: v for k, v in params.items() if k not in _NOT_FOR_DRAFTS}
    if task.temperature is not None:
        body["temperature"] = task.temperature
    return {**body, "messages": said}


def _with_system(messages: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    # Many chat templates take one system message only, and only at the start.
    first = messages[0] if messages else None
    if first is not None and first.get("role") == "system":
        return [{**first, "content": f"{plain_text(first.get('content'))}\n\n{system}"}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def plain_text(content: Any) -> str:
    """The text of a message's content, whether a string or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict) and part.get("type") == "text")
    return ""


def question_text(messages: Sequence[dict[str, Any]]) -> str:
    """The conversation as the judge reads it: the question alone, or who said what."""
    said = [(str(m.get("role", "user")), plain_text(m.get("content"))) for m in messages if m.get("role") != "system"]
    if len(said) == 1:
        return said[0][1]
    return "\n".join(f"{role}: {text}" for role, text in said)


def candidates(spec: DebateSpec, drafts: Sequence[Draft]) -> list[Draft]:
    """The drafts that may win, in the order of the specification."""
    place = {task.task: number for number, task in enumerate(spec.tasks)}
    return sorted((d for d in drafts if d.is_candidate), key=lambda d: place[d.task])


def judge_body(question: str, answers: Sequence[Draft]) -> dict[str, Any]:
    """The chat request for the judge, with the answers in the given order. It can only reply with one of the labels."""
    shown = "\n\n".join(f"Answer {d.task}:\n{_cut(d.text.strip(), _ANSWER_CHARS)}" for d in answers)
    labels = [d.task for d in answers]
    asked = f"Question:\n{_cut(question, _QUESTION_CHARS)}\n\n{shown}\n\n"
    asked += f"Which answer is the most correct and helpful? Reply with its letter only: {', '.join(labels)}."
    return {
        "messages": [
            {"role": "system", "content": _JUDGE_SYSTEM},
            {"role": "user", "content": asked},
        ],
        "structured_outputs": {"choice": labels},
        "temperature": 0,
        "max_tokens": _JUDGE_MAX_TOKENS,
    }


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + " […]"


def read_vote(reply: str, labels: Sequence[str]) -> str | None:
    """The label a judge named, or None when it named none of them."""
    word = reply.strip().strip(".:()\"'* ")
    return word if word in labels else None


def decide(standing: Sequence[Draft], votes: Sequence[str | None]) -> Verdict:
    """The winner among at least one candidate. `votes`: one per order, None where the judge failed.

    Raises ValueError when nobody stands.
    """
    if not standing:
        raise ValueError("a debate without a candidate has no winner")
    if len(standing) == 1:
        return Verdict(winner=standing[0].task, stop_reason="sole_candidate")
    named = set(votes)
    judged = bool(votes) and None not in named
    if judged and len(named) == 1:
        return Verdict(winner=str(votes[0]), stop_reason="verdict")
    agreed = _majority(standing)
    if agreed is not None:
        return Verdict(winner=agreed, stop_reason="tie_majority" if judged else "judge_failed_majority")
    return Verdict(winner=standing[0].task, stop_reason="tie_first" if judged else "judge_failed_first")


def short_answer(text: str) -> str | None:
    """The canonical form in which two short answers can be compared; None for a long one."""
    tail = re.split(r"(?i)\banswer\s*(?:is\b|:)", text)[-1]
    words = [w for w in re.sub(r"[^\w\s.,+-]", " ", tail.casefold()).split() if w not in _ARTICLES]
    words = [w for w in (word.strip(".,") for word in words) if w]
    return " ".join(words) if 0 < len(words) <= _SHORT_ANSWER_WORDS else None


def _majority(standing: Sequence[Draft]) -> str | None:
    """The first task of the one largest group that gave the same short answer; None when no group is larger."""
    groups: dict[str, list[str]] = {}
    for draft in standing:
        answer = short_answer(draft.text)
        if answer is not None:
            groups.setdefault(answer, []).append(draft.task)
    sizes = sorted((len(tasks) for tasks in groups.values()), reverse=True)
    if not sizes or sizes[0] < 2 or (len(sizes) > 1 and sizes[1] == sizes[0]):
        return None
    return next(tasks[0] for tasks in groups.values() if len(tasks) == sizes[0])


def total_usage(parts: Sequence[Usage]) -> Usage:
    """The sum of all calls: what the debate cost."""
    return sum(parts, start=Usage())


def report(spec: DebateSpec, drafts: Sequence[Draft], verdict: Verdict) -> DebateReport:
    """How the debate went: the `debate` object of x_factory. Its winner is a task label."""
    by_task = {d.task: d for d in drafts}
    return DebateReport(
        winner=verdict.winner,
        strategy=spec.strategy,
        rounds=spec.rounds,
        stop_reason=verdict.stop_reason,
        tasks=tuple(
            TaskReport(task=t.task, model=t.model_id, usage=by_task[t.task].usage, finish_reason=by_task[t.task].finish_reason)
            for t in spec.tasks
            if t.task in by_task
        ),
    )


def answer(model: str, spec: DebateSpec, drafts: Sequence[Draft], verdict: Verdict, usage: Usage) -> Answer:
    """The answer of the debate: the winner's text. Its `winner` is the model that won."""
    won = next(d for d in drafts if d.task == verdict.winner)
    message: dict[str, Any] = {"role": "assistant", "content": won.text}
    return Answer(
        model=model,
        messages=(message,),
        ends=(ChoiceEnd(finish_reason=won.finish_reason),),
        usage=usage,
        winner=won.model,
        debate=report(spec, drafts, verdict),
    )
