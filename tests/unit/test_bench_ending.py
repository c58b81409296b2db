"""A bench that is told to stop ends what it has started."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAITS = """
from bench.ending import end_on_sigterm
from contextlib import contextmanager
import sys

@contextmanager
def server():
    try:
        yield
    finally:
        print("ending", flush=True)
        sys.stdin.readline()
        print("ended", flush=True)

end_on_sigterm()
"""
PLAIN = """
import time
with server():
    print("up", flush=True)
    time.sleep(60)
"""
LOOP = """
import asyncio, {loop}
async def wait():
    with server():
        print("up", flush=True)
        await asyncio.sleep(60)
{loop}.run(wait())
"""


@pytest.mark.parametrize(
    "body", [PLAIN, LOOP.format(loop="asyncio"), LOOP.format(loop="uvloop")], ids=["plain", "asyncio", "uvloop"]
)
def test_sigterm_ends_what_runs_also_when_it_is_said_twice(body: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", WAITS + body], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.readline() == "ending\n"
        process.terminate()
        assert process.communicate("\n", timeout=60)[0] == "ended\n"
    assert process.returncode == 143
