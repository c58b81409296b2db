"""The owner of background tasks ends them all, also those that swallow a cancel."""

import asyncio

import pytest

from serve_app.tasks import TaskOwner


async def test_close_ends_a_task_that_swallows_the_first_cancel() -> None:
    owner, begun = TaskOwner(), asyncio.Event()

    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60)  # as a wait_for whose result met the cancel

    task = owner.spawn(stubborn(), name="stubborn")
    await begun.wait()
    await owner.close(timeout_s=5)
    assert task.done()
    assert len(owner) == 0


async def test_nothing_starts_after_close() -> None:
    owner = TaskOwner()
    await owner.close()
    with pytest.raises(RuntimeError, match="closed"):
        owner.spawn(asyncio.sleep(0), name="late")
