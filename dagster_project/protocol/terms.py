"""The words of a debate as types: who argues, what was said, who voted, who won. Pure."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from serve_app.configured import Strategy
from serve_app.events import Usage

# How a debate was decided. docs/api.md says what each means.
StopReason = Literal[
    "agreement", "sole_candidate", "verdict", "most_votes", "nearest", "synthesized", "tie_majority", "tie_first",
    "not_comparable", "judge_failed_majority", "judge_failed_first", "embedder_failed_majority", "embedder_failed_first",
    "writer_failed_majority", "writer_failed_first",
]  # fmt: skip
RoundReason = Literal["agreement", "rounds", "budget", "no_candidates", "one_candidate", "time"]


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
    """A debate as the gateway resolved it: the request's x_debate over the preset.

    `judge_model` also writes where the strategy is synthesize. `quorum`: drafts that suffice for a round (None: all);
    once they are there the others get `straggler_s` seconds. `token_budget`: completion tokens of the whole debate
    (None: no bound). `closing_share`: the part of the run's time that is kept for what comes after the rounds.
    """

    tasks: tuple[DebateTask, ...] = Field(min_length=1)
    strategy: Strategy = "judge"
    rounds: int = Field(1, ge=1, le=3)
    judge_model: str
    judge_adapter: str | None = None
    drafts: bool = True
    quorum: int | None = Field(None, ge=1)
    straggler_s: float = Field(10.0, ge=0)
    token_budget: int | None = Field(None, ge=1)
    closing_share: float = Field(0.25, ge=0, lt=1)

    def find(self, label: str) -> DebateTask:
        """The debater of this label. Raises KeyError."""
        for task in self.tasks:
            if task.task == label:
                return task
        raise KeyError(f"the debate has no task {label!r}; it has {[t.task for t in self.tasks]}")

    @property
    def judge_id(self) -> str:
        """The id a client would ask for to get the judge (or the writer)."""
        return f"{self.judge_model}:{self.judge_adapter}" if self.judge_adapter else self.judge_model

    @property
    def enough(self) -> int:
        """Candidates after which a round waits for stragglers only."""
        return len(self.tasks) if self.quorum is None else min(self.quorum, len(self.tasks))


class Draft(_Frozen):
    """What one debater said in one round, or the error that kept it from speaking.

    A straggler that was cut has finish_reason "cancelled", no error, and the text it had said so far.
    """

    task: str
    model: str
    text: str = ""
    reasoning: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    error: dict[str, Any] | None = None
    round: int = 1

    @property
    def is_candidate(self) -> bool:
        """Whether the draft may win: it did not fail, was not cut as a straggler and is not empty."""
        return self.error is None and self.finish_reason != "cancelled" and bool(self.text.strip())


class Ballot(_Frozen):
    """One vote. `order`: the labels as the voter read them (judge). `choice`: a label, or None for no opinion."""

    voter: str
    order: tuple[str, ...] = ()
    choice: str | None = None


class Verdict(_Frozen):
    """Who won, and by which criterion. A merged answer has no winner: text, reasoning, model and finish_reason are the writer's.

    `usage` is what the judge or the writer took.
    """

    winner: str | None
    stop_reason: StopReason
    ballots: tuple[Ballot, ...] = ()
    text: str | None = None
    reasoning: str = ""
    model: str | None = None
    finish_reason: str = "stop"
    usage: Usage = Usage()


class RoundEnd(_Frozen):
    """Whether another round follows; `reason` says why not, and is None when one does."""

    again: bool
    reason: RoundReason | None = None
