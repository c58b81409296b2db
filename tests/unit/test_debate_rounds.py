"""A round while it is held: who is cut, and when."""

import asyncio
import time
from collections.abc import Awaitable

import pytest

from dagster_project.debate import DebateSpec, DebateTask, Draft
from dagster_project.rounds import Round, RoundOver
from serve_app.events import Usage


async def test_a_debater_that_is_through_may_meet_one_that_is_just_being_cut() -> None:
    tasks = tuple(DebateTask(task=task, model="m") for task in "ABC")
    spec = DebateSpec(tasks=tasks, judge_model="m", quorum=1, straggler_s=0)
    held = Round(spec, 1, ends_at=time.time() + 60, spent=Usage())
    speaks, is_cut, may_leave = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def straggler() -> None:
        async with held.floor():
            speaks.set()
            try:
                await asyncio.Event().wait()
            finally:
                is_cut.set()
                await may_leave.wait()  # a replica's stream takes its time to close

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        cut = group.create_task(_until_over(straggler()))
        await speaks.wait()
        assert held.over(Draft(task="A", model="m", text="Paris")) == 1
        await is_cut.wait()
        assert held.over(Draft(task="B", model="m", text="Ly", finish_reason="cancelled")) == 2
        may_leave.set()
    assert cut.result()


async def _until_over(speech: Awaitable[None]) -> bool:
    with pytest.raises(RoundOver):
        await speech
    return True
