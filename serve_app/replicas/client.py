"""Asks the replicas over Ray Serve. Holds handles only: importing this module imports neither vLLM nor torch."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from serve_app.configured import ModelConfig
from serve_app.errors import AifactoryError, Overloaded, UpstreamFailed
from serve_app.events import EventBody, TokenEvent, ToolCallEvent
from serve_app.ports import ModelCard
from serve_app.replicas.catalog import Catalog, deployment_name
from serve_app.replicas.chunks import ChunkReader, error_from_replica, parse_chunk
from serve_app.replicas.ends import CompletionEnds, choices_due, completions_due
from serve_app.replicas.probe import replica_stats
from serve_app.replicas.whole import comes_whole
from serve_app.settings import APP_NAME, Settings
from serve_app.telemetry import logger

_RETRY_AFTER_S: Final = 1.0
_STATS_TIMEOUT_S: Final = 5.0
_PROBE_PAUSE_S: Final = 0.1
_USAGE_WAIT_S: Final = 5.0  # for what comes after the last choice has ended


class ServeReplicas:
    """The `Replicas` port on Ray Serve deployments. `handles` by model id; those not given are looked up by name."""

    def __init__(self, settings: Settings, handles: Mapping[str, Any] | None = None) -> None:
        self._catalog = Catalog(settings.models)
        self._settings = settings
        self._handles: dict[str, Any] = dict(handles or {})
        self._streaming: dict[str, Any] = {}

    def take(self, settings: Settings) -> None:
        """Take over changed live settings; calls under way keep the old ones."""
        self._settings = settings

    def cards(self) -> list[ModelCard]:
        """Every model id that may be asked for, adapters included."""
        return self._catalog.cards()

    async def stream(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[EventBody, None]:
        """See ports.Replicas.stream."""
        reader = ChunkReader(choices_due(body), request_id)
        patience = self._patience(whole=comes_whole(body))
        async with self._call("chat_batches", model, adapter, body, request_id, patience) as chunks:
            try:
                async for raw in chunks:
                    for event in reader.feed(raw):
                        chunks.spoken = chunks.spoken or isinstance(event, TokenEvent | ToolCallEvent)
                        yield event
                    chunks.complete = reader.complete
            except UpstreamFailed as error:
                _forgive(error, complete=reader.complete)
        yield reader.finish()

    async def completions(
        self, model: str, adapter: str | None, body: dict[str, Any], *, request_id: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """See ports.Replicas.completions."""
        ends = CompletionEnds(completions_due(body))
        patience = self._patience(whole=not body.get("stream"))
        async with self._call("completion_batches", model, adapter, body, request_id, patience) as chunks:
            try:
                async for raw in chunks:
                    chunks.spoken = True
                    chunk = parse_chunk(raw)
                    ends.note(chunk)
                    if not body.get("stream"):
                        ends.check()  # all of it is here: whoever asked may not read on
                    chunks.complete = ends.complete
                    yield chunk
            except UpstreamFailed as error:
                _forgive(error, complete=ends.complete)
        ends.check()

    async def answers(self, timeout_s: float) -> bool:
        """Whether at least one replica of every model answers. A model that may scale to zero counts as answering."""
        needed = [m for m in self._catalog if m.replicas is not None or m.autoscaling.min_replicas > 0]
        try:
            async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
                for model in needed:
                    group.create_task(self._wait_for_answer(model, timeout_s))
        except TimeoutError:
            return False
        return True

    async def stats(self) -> list[dict[str, Any]]:
        """`{model, replica, running, waiting}` of every replica, from the engines. A silent replica is left out, and logged."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._model_stats(model, _STATS_TIMEOUT_S)) for model in self._catalog]
        return [row for task in tasks for row in task.result()]

    async def _wait_for_answer(self, model: ModelConfig, timeout_s: float) -> None:
        while True:
            if await self._model_stats(model, timeout_s):
                return
            await asyncio.sleep(_PROBE_PAUSE_S)

    async def _model_stats(self, model: ModelConfig, timeout_s: float) -> list[dict[str, Any]]:
        try:
            async with asyncio.timeout(timeout_s):
                return await replica_stats(deployment_name(model.model_id))
        except (RayError, TimeoutError) as error:
            logger.warning("replicas of {} do not answer: {}: {}", model.model_id, type(error).__name__, error)
            return []

    def _patience(self, *, whole: bool) -> "_Patience":
        """How long a call may be silent. An answer that comes `whole` is all silence until it is there."""
        live = self._settings
        first_s = live.request_timeout_s if whole else live.first_token_timeout_s
        return _Patience(first_s, live.stall_timeout_s, min(live.stall_timeout_s, _USAGE_WAIT_S))

    @asynccontextmanager
    async def _call(
        self, method: str, model_id: str, adapter: str | None, body: dict[str, Any], request_id: str, patience: "_Patience"
    ) -> AsyncIterator["_ReplicaStream"]:
        """Call a streaming method on a replica; leaving the block before the end aborts the request in the engine."""
        asked = f"{model_id}:{adapter}" if adapter else model_id
        model, adapter = self._catalog.resolve(asked)
        handle = self._stream_handle(model, asked if adapter else None)
        response = getattr(handle, method).remote({**body, "model": asked}, request_id)
        stream = _ReplicaStream(response, asked, patience)
        try:
            await stream.open()
            yield stream
        finally:
            stream.close()

    def _stream_handle(self, model: ModelConfig, multiplexed: str | None) -> Any:
        if multiplexed:
            # Serve then prefers a replica that has the adapter loaded.
            return self._handle(model).options(stream=True, multiplexed_model_id=multiplexed)
        if model.model_id not in self._streaming:
            self._streaming[model.model_id] = self._handle(model).options(stream=True)
        return self._streaming[model.model_id]

    def _handle(self, model: ModelConfig) -> Any:
        if model.model_id not in self._handles:
            self._handles[model.model_id] = serve.get_deployment_handle(deployment_name(model.model_id), app_name=APP_NAME)
        return self._handles[model.model_id]


def _forgive(error: UpstreamFailed, *, complete: bool) -> None:
    """Once all choices have their ends, only the usage or the stream's own end can be missing. Raises `error` else."""
    if not complete:
        raise error
    logger.warning("replica fault after the whole answer: {}", error.message)


@dataclass(frozen=True, slots=True)
class _Patience:
    """Seconds to wait: for the first token in all, between tokens, and once the answer is complete."""

    first_s: float
    stall_s: float
    rest_s: float


class _ReplicaStream:
    """The items of one call that streams batches of them, Ray's faults turned into our errors.

    The reader says when the first token has `spoken` and when the answer is `complete`: what may be waited for then.
    """

    def __init__(self, response: Any, model_id: str, patience: _Patience) -> None:
        self.spoken = False
        self.complete = False
        self._response = response
        self._model_id = model_id
        self._patience = patience
        self._asked = time.monotonic()
        self._chunks = 0
        self._batch: deque[Any] = deque()
        self._ended = False

    async def open(self) -> None:
        """Read the first item, the status. Raises the error that the replica reports."""
        try:
            head = await self._next()
        except StopAsyncIteration:
            raise UpstreamFailed(f"the replica of {self._model_id} sent nothing") from None
        if not isinstance(head, dict) or not isinstance(head.get("status"), int):
            raise UpstreamFailed(f"the replica of {self._model_id} did not begin with a status")
        if head["status"] != 200:
            raise error_from_replica(head.get("error"), status=head["status"])

    def __aiter__(self) -> "_ReplicaStream":
        return self

    async def __anext__(self) -> Any:
        item = await self._next()
        self._chunks += 1
        return item

    def close(self) -> None:
        """Abort the call unless it ran to its end."""
        if not self._ended:
            self._ended = True
            self._abort(self._response)
            # Ray 2.60, private: a call whose assignment has just ended, and of which nobody has read yet, has neither a task
            # to cancel nor a result that `cancel` knows of. The engine would write its whole answer for nobody.
            self._response._replica_result_future.add_done_callback(self._abort_assigned)

    def _abort_assigned(self, assigned: Any) -> None:
        if not assigned.cancelled() and assigned.exception() is None:
            self._abort(assigned.result())

    def _abort(self, call: Any) -> None:
        try:
            call.cancel()
        except (RayError, RayServeException) as error:  # it has failed already, so there is nothing to abort
            logger.debug("nothing to abort at {}: {}", self._model_id, error)

    async def _next(self) -> Any:
        while not self._batch:
            self._batch.extend(await self._next_batch())
        return self._batch.popleft()

    async def _next_batch(self) -> Any:
        wait_s, waited = self._wait()
        try:
            async with asyncio.timeout(wait_s):
                return await anext(self._response)
        except StopAsyncIteration:
            self._ended = True
            raise
        except TimeoutError as error:
            raise UpstreamFailed(f"the replica of model {self._model_id} {waited}") from error
        except Exception as error:
            # Ray raises what the replica raised, as it is: an engine that died (EngineDeadError) among it.
            self._ended = True
            raise self._translate(error) from error

    def _wait(self) -> tuple[float, str]:
        """Seconds to wait for the next item, and what to say when it does not come."""
        patience = self._patience
        if not self.spoken:
            left = self._asked + patience.first_s - time.monotonic()
            return max(0.0, left), f"gave no token within {patience.first_s:g} s"
        silence_s = patience.rest_s if self.complete else patience.stall_s
        return silence_s, f"was silent for {silence_s:g} s after {self._chunks} chunks"

    def _translate(self, error: Exception) -> AifactoryError:
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, BackPressureError):
            wait = cause.retry_after_s or _RETRY_AFTER_S
            return Overloaded(f"the queue of model {self._model_id} is full; try again in {wait:g} s", retry_after_s=wait)
        where = f"after {self._chunks} chunks" if self._chunks else "before the first token"
        logger.warning("replica of {} failed {}: {}: {}", self._model_id, where, type(cause).__name__, cause)
        return UpstreamFailed(f"the replica of model {self._model_id} failed {where} ({type(cause).__name__})")
