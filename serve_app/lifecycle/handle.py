"""The story of a request: admit, recall, route; its events are read back the same way whatever answered.

READ THIS FIRST. A `Lifecycle` knows ports only: the log, the cache, the bus, the queue, the models.
"""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial

from serve_app.answers import failed, replay, succeeded
from serve_app.documents import Documents
from serve_app.errors import AifactoryError, NotFound, Unavailable
from serve_app.events import FinishedEvent, RecallReport, Usage
from serve_app.guards import load_guards
from serve_app.lifecycle.admit import Attach, Execute, Replay, admit
from serve_app.lifecycle.direct import DirectRun, record
from serve_app.lifecycle.local_runs import LocalRuns
from serve_app.lifecycle.readers import Readers
from serve_app.lifecycle.recall import Recalled, count_recall, embed_question, recall_exact, recall_semantic
from serve_app.lifecycle.replays import ended_with, untold_end
from serve_app.lifecycle.reply import Ask, Reply, held_or_recorded, new_run, replay_recorded, reply_to
from serve_app.lifecycle.research import Research
from serve_app.lifecycle.retry import Backoff
from serve_app.lifecycle.settle import not_recalled
from serve_app.lifecycle.stopping import stop_run
from serve_app.lifecycle.sweep import Sweeper, waiting_lease_s
from serve_app.lifecycle.upkeep import RunUpkeep
from serve_app.lifecycle.verify import Verifier
from serve_app.lifecycle.watch import Watch
from serve_app.ports import AnswerCache, Audience, Embedder, EventBus, Replicas, RunPublisher, RunQueue, RunRecord, RunStore
from serve_app.runs import Answer, Run
from serve_app.settings import Settings
from serve_app.tasks import TaskOwner
from serve_app.telemetry import bound
from serve_app.trust import CacheTrust

_GRACE_S = 5.0  # a run's own deadline speaks before its reader's


class Lifecycle:
    """Handles the requests of one gateway process."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: RunStore,
        cache: AnswerCache,
        bus: EventBus,
        queue: RunQueue,
        replicas: Replicas,
        embedder: Embedder | None,
        audience: Audience,
        documents: Documents,
        trust: CacheTrust | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.cache = cache
        self.bus = bus
        self.queue = queue
        self.replicas = replicas
        self.embedder = embedder
        self.guards = load_guards(settings.cache_guards)
        self.documents = documents
        self.research = Research(documents=documents, embedder=embedder, replicas=replicas)
        self.local_runs = LocalRuns(settings.gateway_max_ongoing_requests)
        self._tasks = TaskOwner()
        self.upkeep = RunUpkeep(store, self.local_runs, lease_s=settings.lease_s, most=settings.gateway_max_ongoing_requests)
        self._stop = partial(stop_run, store=store, bus=bus, local_runs=self.local_runs)
        self.verifier = (
            Verifier(lambda: self.settings, store, trust, replicas, embedder, self._tasks, busy=lambda: len(self.local_runs))
            if trust is not None and embedder is not None
            else None
        )
        self.readers = Readers(audience=audience, stop=self._stop, tasks=self._tasks)

    async def start(self) -> None:
        """Listen for cancels and keep the leases of our runs."""
        await self.bus.on_cancel(lambda trace_id, reason: void(self.local_runs.stop(trace_id, reason)))
        self._tasks.spawn(self.upkeep.run(), name="keep leases")
        self._tasks.spawn(Sweeper(lambda: self.settings, store=self.store, bus=self.bus, queue=self.queue).run(), name="sweep")

    async def close(self) -> None:
        """Stop the runs that this process executes; each is settled as failed before this returns."""
        await self._tasks.close(timeout_s=10)

    async def handle(self, ask: Ask) -> Reply:
        """Answer one request. Raises the errors a client should see; the reply's events tell the rest.

        A caller that is cancelled while this runs leaves the run like any reader: a claim is never left without owner.
        """
        task = self._tasks.spawn(self._handle(ask), name=f"request {ask.trace_id}", awaited=True)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._leave_unread)
            raise

    async def _handle(self, ask: Ask) -> Reply:
        if ask.question.route == "rag":
            ask = replace(ask, question=await self.research.of_now(ask.question))
        run = new_run(ask)
        with bound(run.trace_id, route=run.route):
            # While cache and log are asked: most questions are new, and then the vector is wanted next. It begins when this
            # first waits, with the look-up on its way: a hit must not wait for what is done to the text on the event loop.
            embedding = self._tasks.spawn(embed_question(self.embedder, self.guards, run), name="embed", awaited=True)
            try:
                if not run.keyed and (answer := await recall_exact(self.cache, run)):
                    return await self._replay_cached(run, answer)
                if run.cache.mode == "only":
                    return await self._only_from_cache(run, embedding)
                lease_s = self.settings.lease_s
                if run.route == "workflow":
                    lease_s = waiting_lease_s(run, lease_s)  # it may wait in the queue until its deadline
                match await admit(self.store, run, lease_s=lease_s):
                    case Replay(record=row):
                        return replay_recorded(row, shared=not run.keyed)
                    case Attach(record=row):
                        return await self._attach(row, deadline=run.deadline)
                    case Execute() as admitted:
                        return await self._execute(admitted, embedding)
            finally:
                embedding.cancel()

    async def attach(self, row: RunRecord, *, after: int = -1) -> Reply:
        """Read an existing run along, from event `after` + 1 on: GET /v1/runs/{trace_id}/events."""
        return await self._attach(row, deadline=time.time() + self.settings.request_timeout_s, after=after)

    async def read_to_the_end(self, row: RunRecord, after: int) -> bool:
        """Whether a reader that has event `after` has all of an ended run."""
        last = await self.bus.last_event(row.trace_id)
        if last is None:
            return False
        end = [last, *await untold_end(row, last)][-1]
        return isinstance(end.body, FinishedEvent) and after >= end.seq

    async def cancel(self, row: RunRecord, reason: str) -> None:
        """Stop a run wherever it executes, also one that nobody executes yet. Does nothing when it has ended."""
        if not row.status.terminal:
            await self._stop(row.trace_id, reason)

    async def _execute(self, admitted: Execute, embedding: "asyncio.Task[Run]") -> Reply:
        """The run is ours: from here on it must reach an end, whatever happens."""
        stack, publisher = AsyncExitStack(), None
        try:
            if admitted.run.route != "workflow":
                # Before anything that takes time: whoever attaches now reads from here.
                publisher = await self.bus.open_run(admitted.run.trace_id)
            # An identical run may have ended between our first look and the claim.
            answer = await recall_exact(self.cache, admitted.run) if admitted.seen_before or admitted.run.keyed else None
            near: Recalled | None = None
            if answer is None:
                admitted = replace(admitted, run=replace(admitted.run, embedding=(await embedding).embedding))
                near = await recall_semantic(self.cache, self.guards, admitted.run)
            run = admitted.run
            if near is not None and run.cache.mode != "provisional":
                answer = near.answer
            if answer is not None:
                publisher = publisher or await self.bus.open_run(run.trace_id)
            # There before the first event, also of a run that a worker publishes.
            events = await stack.enter_async_context(self.bus.subscribe(run.trace_id))
            reading = await stack.enter_async_context(self.readers.reading(run.trace_id, keyed=run.keyed))
            if answer is not None and publisher is not None:
                await self._settle_cached(admitted, publisher, answer)
            elif publisher is not None:
                self._start_direct(admitted, publisher)
            else:
                await self.queue.submit(run)
        except BaseException as error:
            await self._abandon(admitted, stack, publisher, error)
            raise
        report = answer.cache if answer is not None and answer.cache else not_recalled(run)
        count_recall(report.result)
        if near is not None:
            self._learn(run, near, stack)
        watch = self._watch(run.trace_id, run.deadline + _GRACE_S, recorded=admitted.recorded)
        stack.push_async_callback(watch.close)
        shown = near if run.cache.mode == "provisional" else None
        return reply_to(run, admitted.created, report, reading.until_end(watch.events(events)), stack, provisional=shown)

    def _learn(self, run: Run, near: Recalled, stack: AsyncExitStack) -> None:
        """Let the cache learn from a semantic answer: from a debate that went on behind it, or from a sample asked afresh."""
        if self.verifier is None:
            return
        if run.cache.mode == "provisional":
            stack.callback(self.verifier.offer_recorded, run, near.hit)
        else:
            self.verifier.offer(run, near.hit)

    def _start_direct(self, admitted: Execute, publisher: RunPublisher) -> None:
        backoff = Backoff.of(self.settings)
        direct = DirectRun(
            admitted,
            store=self.store,
            replicas=self.replicas,
            publisher=publisher,
            backoff=backoff,
            unrecorded=self.upkeep.record_later,
            research=self.research,
        )
        self.local_runs.add(admitted.run, direct.stop, recorded=admitted.recorded)
        task = self._tasks.spawn(direct.execute(), name=f"run {admitted.run.trace_id}")
        task.add_done_callback(lambda _: self.local_runs.remove(admitted.run.trace_id))

    async def _settle_cached(self, admitted: Execute, publisher: RunPublisher, answer: Answer) -> None:
        """A claimed run that the cache answers: recorded like any other, but the entry is not copied under a new name."""
        run = replace(admitted.run, cache=replace(admitted.run.cache, mode="bypass"))
        outcome = succeeded(answer)
        for body in replay(answer):
            if not isinstance(body, FinishedEvent):
                await publisher.emit(body)
        if not await record(self.store, publisher, run, outcome, recorded=admitted.recorded):
            self.upkeep.record_later(run, outcome)

    async def _replay_cached(self, run: Run, answer: Answer) -> Reply:
        """An exact hit needs no claim: nothing is executed. Its events go out under the request's own trace_id."""
        publisher = await self.bus.open_run(run.trace_id)
        stack = AsyncExitStack()
        events = await stack.enter_async_context(self.bus.subscribe(run.trace_id))
        for body in replay(answer):
            await publisher.emit(body)
        report = answer.cache or RecallReport(result="exact")
        count_recall(report.result)
        return reply_to(run, run.started, report, events, stack)

    async def _only_from_cache(self, run: Run, embedding: "asyncio.Task[Run]") -> Reply:
        answer = await recall_exact(self.cache, run) if run.keyed else None
        if answer is None:
            run = await embedding
            near = await recall_semantic(self.cache, self.guards, run)
            answer = near.answer if near is not None else None
        if answer is None:
            count_recall("miss")
            raise NotFound("the cache has no answer to this (x_cache.mode is only)", param="x_cache", code="cache_miss")
        return await self._replay_cached(run, answer)

    async def _attach(self, row: RunRecord, *, deadline: float, after: int = -1) -> Reply:
        last = await self.bus.last_event(row.trace_id) if row.status.terminal else None
        if row.status.terminal and last is None:
            if after >= 0:
                raise NotFound(f"events of run {row.trace_id} are no longer held; read it without Last-Event-ID", param="after")
            return replay_recorded(row)
        stack = AsyncExitStack()
        events = await stack.enter_async_context(self.bus.subscribe(row.trace_id, after=after))
        reading = await stack.enter_async_context(self.readers.reading(row.trace_id, keyed=row.keyed))
        # A debate answers only once it has ended; of one that a writer merged, Watch knows.
        watch = self._watch(row.trace_id, deadline, after=after, seen=after >= 0 and row.route != "workflow")
        stack.push_async_callback(watch.close)
        held = held_or_recorded(events, row, after)
        end = await untold_end(row, last) if last is not None else []
        watched = watch.events(ended_with(held, end, after) if end else held)
        return Reply(
            trace_id=row.trace_id,
            route=row.route,
            model=row.model,
            created=int(row.created_at),
            cache=RecallReport(result="attached"),
            events=reading.until_end(watched),
            traceparent=row.traceparent,
            _stack=stack,
        )

    def _watch(self, trace_id: str, deadline: float, *, recorded: bool = True, after: int = -1, seen: bool = False) -> Watch:
        check_s = self.settings.lease_s / 3
        return Watch(self.store, trace_id, deadline=deadline, check_s=check_s, recorded=recorded, after=after, seen=seen)

    def _leave_unread(self, task: asyncio.Task[Reply]) -> None:
        if not task.cancelled() and task.exception() is None and not self._tasks.closed:
            self._tasks.spawn(task.result().close(), name="leave unread run")

    async def _abandon(
        self, admitted: Execute, stack: AsyncExitStack, publisher: RunPublisher | None, error: BaseException
    ) -> None:
        """A claimed run that could not be started, or whose caller left meanwhile: its row must not stay `running`."""
        run = admitted.run
        await stack.aclose()
        if self.local_runs.stop(run.trace_id, "the client left"):
            return  # it settles itself
        cause = error if isinstance(error, AifactoryError) else Unavailable("the request ended before its run began; retry")
        publisher = publisher or await self.bus.open_run(run.trace_id)
        # Whoever attached meanwhile gets this end too.
        outcome = failed(cause, Usage())
        if not await record(self.store, publisher, run, outcome, recorded=admitted.recorded):
            self.upkeep.record_later(run, outcome)


def void(_: object) -> None:
    """Drop a result where a callback must return nothing."""
