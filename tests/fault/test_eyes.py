"""The eyes of bench/chaos: each question gets its own answer."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench.chaos.eyes import Eyes
from serve_app.local.processes import child_environment
from tests.e2e.stack_under_test import until

ROOT = Path(__file__).resolve().parents[2]
# Says in a file that it has been asked for seats, and answers once another file is there.
SLOW_WITH_SEATS = """
import pathlib, sys, time
from bench.chaos.eyes import answer

folder = pathlib.Path(sys.argv[1])

def look(question):
    if question == "seats":
        (folder / "asked").touch()
        while not (folder / "go on").exists():
            time.sleep(0.01)
        return [{"role": "worker", "name": "w", "pid": 1}]
    return [{"running": 1, "waiting": 0}]

answer(sys.stdin, look)
"""


@pytest.fixture
async def eyes(tmp_path: Path) -> AsyncIterator[Eyes]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SLOW_WITH_SEATS,
        str(tmp_path),
        cwd=ROOT,
        env=child_environment({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    opened = Eyes(process)
    yield opened
    (tmp_path / "go on").touch()
    await opened.close()


async def test_a_cancelled_question_does_not_shift_the_answers(eyes: Eyes, tmp_path: Path) -> None:
    given_up = asyncio.ensure_future(eyes.seats())
    await until((tmp_path / "asked").exists, 60, "the first question")
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    (tmp_path / "go on").touch()
    assert await eyes.engines() == [{"running": 1, "waiting": 0}]
    assert [seat.name for seat in await eyes.seats()] == ["w"]
