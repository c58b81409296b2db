"""Background tasks with an owner: nothing runs that nobody ends."""

import asyncio
import contextvars
from collections.abc import Coroutine
from typing import Any, TypeVar

from serve_app.telemetry import logger

T = TypeVar("T")
_CANCEL_AGAIN_S = 0.5


class TaskOwner:
    """Starts tasks and ends them all in close(). A task that fails is logged, never lost silently."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def closed(self) -> bool:
        return self._closed

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str, awaited: bool = False) -> asyncio.Task[T]:
        """Run `work` until it ends or the owner closes. Raises RuntimeError after close().

        `awaited`: somebody takes the result, so that an error of it is not logged here.

        The task starts in an empty context: Ray Serve notes the current request in a context variable and, when that
        request's client leaves, cancels every replica call made under it, also those that others still read.
        """
        if self._closed:
            work.close()
            raise RuntimeError(f"cannot start {name}: its owner is closed")
        task = asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._forget if awaited else self._ended)
        return task

    async def close(self, timeout_s: float = 5) -> None:
        """Cancel what still runs and wait for it, at most `timeout_s` seconds."""
        self._closed = True
        left: set[asyncio.Task[Any]] = set(self._tasks)
        deadline = asyncio.get_running_loop().time() + timeout_s
        while left and (remaining_s := deadline - asyncio.get_running_loop().time()) > 0:
            # Again and again: asyncio.wait_for of Python 3.11 swallows a cancel that meets its result.
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=min(_CANCEL_AGAIN_S, remaining_s))
        for task in left:
            logger.error("task did not end in time", task=task.get_name())

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.opt(exception=error).error("background task failed", task=task.get_name())
