"""Asks a stack over OpenAI's API: for each question a single answer, the debates, and as many samples as the dearest pays for."""

import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai
from openai import AsyncOpenAI

from bench.debate_quality.budget import samples_to_draw
from bench.debate_quality.questions import Question
from bench.debate_quality.replies import SAMPLE, SINGLE, Debated, Replies, Reply

# Asking again would not help: the run ends, and what was said so far is kept.
_REFUSED: Final = (
    openai.BadRequestError,
    openai.AuthenticationError,
    openai.PermissionDeniedError,
    openai.NotFoundError,
    openai.UnprocessableEntityError,
)
_MOST_FAILURES: Final = 10  # in a row: then the stack is away, and the rest would fail as slowly
STYLES: Final = {
    "short": "Reply with the answer only.",
    "reason": "Think step by step, briefly. Then end with one line: Answer: and the answer.",
}


class Refused(Exception):
    """The stack does not take such requests; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How every question is asked. `max_tokens`: of each call, be it a draft, a sample or the single answer."""

    model: str
    debates: tuple[Debated, ...]
    style: str
    max_tokens: int
    temperature: float
    seed: int


async def ask_all(client: AsyncOpenAI, terms: Terms, questions: Sequence[Question], replies: Replies, lanes: int) -> int:
    """Ask what the file does not hold yet, `lanes` questions at a time; the number of requests that failed.

    Raises an ExceptionGroup of Refused when the stack refuses a request.
    """
    asker = _Asker(client, terms, replies)
    left = iter(enumerate(questions, 1))
    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(_lane(asker, left, len(questions)))
    return asker.failed


async def _lane(asker: "_Asker", left: Iterator[tuple[int, Question]], of: int) -> None:
    for number, question in left:
        began = time.perf_counter()
        await asker.ask(question)
        print(f"{number}/{of} {question.id}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


class _Asker:
    def __init__(self, client: AsyncOpenAI, terms: Terms, replies: Replies) -> None:
        self._client, self._terms, self._replies = client, terms, replies
        self.failed = self._in_a_row = 0

    async def ask(self, question: Question) -> None:
        """Everything about one question. The samples are one pool: each debate is compared with as many of it as it pays for."""
        await self._once(question, SINGLE, 0, {"temperature": 0})
        for debated in self._terms.debates:
            wanted = {"strategy": debated.strategy, "rounds": debated.rounds, "drafts": False}
            # The debaters' temperatures are those of the stack's preset.
            await self._once(question, debated.arm, 0, {"extra_body": {"x_route": "workflow", "x_debate": wanted}})
        paid = [reply.tokens for d in self._terms.debates if (reply := self._replies.get(question.id, d.arm))]
        if paid:
            await self._draw(question, max(paid))

    async def _draw(self, question: Question, budget: int) -> None:
        failed = self.failed
        while self.failed == failed:
            drawn = [reply.tokens for reply in self._replies.samples(question.id)]
            count = samples_to_draw(drawn, budget, self._terms.max_tokens)
            if count == 0:
                return
            async with asyncio.TaskGroup() as group:
                for index in range(len(drawn), len(drawn) + count):
                    group.create_task(self._once(question, SAMPLE, index, {"temperature": self._terms.temperature}))

    async def _once(self, question: Question, arm: str, index: int, options: dict[str, Any]) -> None:
        if self._replies.get(question.id, arm, index) is not None:
            return
        began = time.perf_counter()
        try:
            reply = await self._request(question, arm, index, options)
        except _REFUSED as error:
            raise Refused(f"{arm} of {question.id}: {error}") from error
        except openai.APIError as error:
            self.failed += 1
            self._in_a_row += 1
            text = f"{type(error).__name__}: {error}"
            reply = Reply(question=question.id, arm=arm, index=index, error=text)
            print(f"{question.id} {arm} failed: {text}", file=sys.stderr, flush=True)
            if self._in_a_row >= _MOST_FAILURES:
                raise Refused(f"{_MOST_FAILURES} requests in a row; the last: {text}") from error
        else:
            self._in_a_row = 0
        self._replies.add(reply.model_copy(update={"seconds": round(time.perf_counter() - began, 3)}))

    async def _request(self, question: Question, arm: str, index: int, options: dict[str, Any]) -> Reply:
        terms = self._terms
        extra = {**options.pop("extra_body", {}), "x_cache": {"mode": "bypass"}}
        completion = await self._client.chat.completions.create(
            model=terms.model,
            messages=[{"role": "user", "content": f"{question.question}\n{STYLES[terms.style]}"}],
            max_tokens=terms.max_tokens,
            seed=terms.seed + index,
            extra_body=extra,
            **options,
        )
        if completion.usage is None:
            raise Refused(f"{arm} of {question.id}: the answer has no usage, so that tokens cannot be made equal")
        choice = completion.choices[0]
        facts = (completion.model_extra or {}).get("x_factory") or {}
        return Reply(
            question=question.id,
            arm=arm,
            index=index,
            text=choice.message.content or "",
            tokens=completion.usage.completion_tokens,
            finish_reason=choice.finish_reason,
            trace_id=facts.get("trace_id"),
            debate=facts.get("debate"),
        )
