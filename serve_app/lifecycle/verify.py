"""Verification of semantic answers, behind the caller's back: ask afresh, compare, and let the cache learn from it.

A sample of the semantic answers is looked at, one at a time, and only while this gateway has nothing else to do. What
cannot be decided (no answer, a cut one, the database away) changes nothing.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal

from serve_app.answers import AnswerBuilder
from serve_app.errors import AifactoryError
from serve_app.events import FinishedEvent
from serve_app.guards import Pair, read
from serve_app.ports import CacheHit, Embedder, Replicas, RunStore
from serve_app.runs import Answer, Run, cacheable, new_trace_id
from serve_app.settings import Settings
from serve_app.tasks import TaskOwner
from serve_app.telemetry import bound, count, logger
from serve_app.trust import CacheTrust

Verdict = Literal["same", "different"]
VERDICTS: Final[tuple[Verdict, ...]] = ("same", "different")

_MOST_WAITING: Final = 16
_QUIET_WITHIN_S: Final = 30.0  # the gateway never had a moment for it: not verified
_LOOK_S: Final = 0.1
_SHORT: Final = 200  # characters: in answers up to this, single names and numbers are what was asked for
_MOST_JUDGED: Final = 4000  # characters of an answer that a judge reads
_AFTER_ALL_OTHERS: Final = 1000  # vLLM's priority: a higher number waits longer


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found: `verdict` None when it could not tell. `similarity` is the cosine of the two answers."""

    verdict: Verdict | None
    similarity: float
    reason: str


class Verifier:
    """Verifies a sample of the semantic answers of one gateway. `busy` counts the runs that it has in flight."""

    def __init__(
        self,
        settings: Callable[[], Settings],  # those of now: some change while the gateway lives
        store: RunStore,
        trust: CacheTrust,
        replicas: Replicas,
        embedder: Embedder,
        tasks: TaskOwner,
        *,
        busy: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = store
        self._trust = trust
        self._replicas = replicas
        self._embedder = embedder
        self._tasks = tasks
        self._busy = busy
        self._waiting = 0
        self._one_at_a_time = asyncio.Semaphore(1)

    @property
    def idle(self) -> bool:
        """Whether nothing is being verified, or waits for it."""
        return self._waiting == 0

    def offer(self, run: Run, hit: CacheHit) -> None:
        """A semantic answer was given: perhaps verify it. Returns at once."""
        if run.route == "direct" and random.random() < self._settings().cache_verify_share:  # noqa: S311 - a sample, not a secret
            self._begin(run, self._ask_afresh(run, hit))

    def offer_recorded(self, run: Run, hit: CacheHit) -> None:
        """A semantic answer was shown while a debate went on, which is over now: compare the two. Returns at once."""
        self._begin(run, self._read_recorded(run, hit))

    def _begin(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        if self._waiting >= _MOST_WAITING or self._tasks.closed:
            work.close()
            count("aifactory_cache_verified_total", verdict="skipped")
            return
        self._waiting += 1
        self._tasks.spawn(self._verify(run, work), name=f"verify {run.trace_id}")

    async def compare(self, run: Run, hit: CacheHit, fresh: Answer) -> Comparison:
        """Compare the stored answer with a fresh one to the same question, and let the cache learn from it.

        Raises what the embedder or the database raises.
        """
        found = await self._compared(run, hit.answer, fresh)
        if found.verdict == "same":
            await self._trust.confirm(run.question.scope)
        elif found.verdict == "different":
            reason = f"a fresh answer to a question of similarity {hit.similarity:.3f} differed: {found.reason}"
            await self._trust.refute(run.question.scope, hit, reason=reason)
        outcome = {"same": "confirmed", "different": "refuted", None: "undecided"}[found.verdict]
        count("aifactory_cache_verified_total", verdict=outcome)
        logger.info(
            "semantic answer verified",
            verdict=outcome,
            reason=found.reason,
            stored=hit.trace_id,
            similarity=round(hit.similarity, 4),
        )
        return found

    async def _verify(self, run: Run, work: Coroutine[Any, Any, None]) -> None:
        try:
            with bound(run.trace_id, route=run.route):
                async with self._one_at_a_time:
                    await work
        except AifactoryError as error:
            count("aifactory_cache_verified_total", verdict="undecided")
            logger.info("semantic answer not verified", error=error.message)
        finally:
            self._waiting -= 1
            work.close()  # of one that was never begun

    async def _ask_afresh(self, run: Run, hit: CacheHit) -> None:
        trust = await self._trust.trust(run.question.scope)
        if random.random() >= trust.share:  # noqa: S311 - a sample, not a secret
            return
        if not await self._quiet():
            count("aifactory_cache_verified_total", verdict="skipped")
            return
        question = run.question
        fresh = await self._whole(question.model, question.adapter, {**question.params, "messages": question.messages})
        await self.compare(run, hit, fresh)

    async def _read_recorded(self, run: Run, hit: CacheHit) -> None:
        row = await self._store.find(run.trace_id)
        if row is not None and row.answer is not None:
            await self.compare(run, hit, row.answer)

    async def _quiet(self) -> bool:
        """Wait for a moment without runs here."""
        until = asyncio.get_running_loop().time() + _QUIET_WITHIN_S
        while self._busy() > 0:
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def _whole(self, model: str, adapter: str | None, body: dict[str, Any]) -> Answer:
        """The replica's whole answer. Raises AifactoryError: the replica's own, or that there was none in time."""
        known = next((m for m in self._settings().models if m.model_id == model), None)
        if known is not None and known.engine_args.get("scheduling_policy") == "priority":
            body = {**body, "priority": _AFTER_ALL_OTHERS}
        builder = AnswerBuilder(model)
        try:
            async with asyncio.timeout(self._settings().request_timeout_s):
                async with aclosing(self._replicas.stream(model, adapter, body, request_id=new_trace_id())) as stream:
                    async for event in stream:
                        builder.add(event)
                        if isinstance(event, FinishedEvent):
                            return builder.answer(event)
        except TimeoutError as error:
            raise AifactoryError("no fresh answer in time") from error
        raise AifactoryError("the replica ended its stream without saying how")

    async def _compared(self, run: Run, stored: Answer, fresh: Answer) -> Comparison:
        if not cacheable(fresh) or not fresh.text.strip():
            return Comparison(None, 0.0, "the fresh answer was cut or empty")
        if _plain(stored.text) == _plain(fresh.text):
            return Comparison("same", 1.0, "the same text")
        if max(len(stored.text), len(fresh.text)) <= _SHORT and _contradict(stored.text, fresh.text):
            return Comparison("different", 0.0, "each has a name, a number or a negation that the other has not")
        one, other = await self._embedder.embed([stored.text, fresh.text])
        similarity = sum(a * b for a, b in zip(one, other, strict=True))
        if similarity < self._settings().cache_verify_similarity:
            return Comparison("different", similarity, f"their similarity is {similarity:.3f}")
        judge = self._settings().cache_judge_model
        if judge is None:
            return Comparison("same", similarity, f"their similarity is {similarity:.3f}")
        verdict = await self._judged(judge, run, stored, fresh)
        return Comparison(verdict, similarity, f"the judge says {verdict or 'nothing of use'}")

    async def _judged(self, model: str, run: Run, stored: Answer, fresh: Answer) -> Verdict | None:
        question = (run.question.last_user_text or "")[:_MOST_JUDGED]
        prompt = (
            "Two answers to one question follow. Do they say the same? Wording, length and order do not count; facts do. "
            f"Reply with one word: same or different.\n\nQuestion: {question}\n\n"
            f"First answer: {stored.text[:_MOST_JUDGED]}\n\nSecond answer: {fresh.text[:_MOST_JUDGED]}"
        )
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": 8,
            "structured_outputs": {"choice": list(VERDICTS)},
        }
        said = (await self._whole(model, None, body)).text.strip()
        return next((verdict for verdict in VERDICTS if verdict == said), None)


def _contradict(one: str, other: str) -> bool:
    """Whether two short texts differ in facts: each names or counts something that the other does not, or one says no."""
    pair = Pair(read(one), read(other))
    facts = [
        [w for w in words if w.kind in ("number", "unit", "date") or (w.at and w.raw[0].isupper())] for words in pair.left_over
    ]
    return all(facts) or pair.differs("negation")


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".!")
