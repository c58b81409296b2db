"""`aifactory keys …` on a real Postgres: what is printed works, and what is wrong is told."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.store.api_keys import ApiKeys, KeyOwner
from serve_app.store.pool import PostgresPool

AIFACTORY = str(Path(sys.executable).parent / "aifactory")


class Office:
    """The command line, on one database."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._env = {**os.environ, "AIFACTORY_POSTGRES_DSN": dsn, "AIFACTORY_STATE_DIR": str(folder), "COLUMNS": "300"}  # noqa: TID251
        self._dsn = dsn

    async def run(self, *arguments: str, code: int = 0) -> str:
        done = await asyncio.to_thread(
            subprocess.run,
            [AIFACTORY, "keys", *arguments],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return (done.stdout if code == 0 else done.stderr).strip()

    async def listed(self, *of: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(await self.run("list", "--json", *of))
        return told

    async def owner(self, key: str) -> KeyOwner | None:
        pool = PostgresPool(self._dsn)
        try:
            return await ApiKeys(pool).check(key)
        finally:
            await pool.close()


@pytest.fixture
def office(postgres_dsn: str, tmp_path: Path) -> Office:
    return Office(postgres_dsn, tmp_path)


async def test_a_key_from_its_making_to_its_end(office: Office) -> None:
    rates = ["--requests-per-minute", "60", "--concurrent", "4", "--tokens", "1000", "--per", "month"]
    first = await office.run("create", "--project", "blue", "--also", "green", *rates)
    owner = await office.owner(first)
    assert owner is not None
    assert owner.projects == ("blue", "green")
    [entry] = (await office.listed())["keys"]
    assert entry["key_id"] == owner.key_id
    assert entry["limits"] == {"requests_per_minute": 60, "concurrent_runs": 4, "tokens": 1000, "period": "month"}
    assert first not in json.dumps(entry)
    second = await office.run("rotate", owner.key_id, "--grace-s", "600")
    assert await office.owner(first) == await office.owner(second) == owner
    shown = await office.run("list")
    assert "60 requests/minute, 4 at once, 0 of 1000 tokens/month" in shown
    assert "the one before until" in shown
    await office.run("revoke", owner.key_id)
    assert await office.owner(first) is None
    assert await office.owner(second) is None
    assert "no key" in await office.run("revoke", owner.key_id, code=1)
    assert "no key" in await office.run("rotate", owner.key_id, code=1)


async def test_limits_of_a_project(office: Office) -> None:
    await office.run("limit", "--project", "blue", "--concurrent", "3")
    assert (await office.listed())["projects"]["blue"]["limits"]["concurrent_runs"] == 3
    assert "whole project" in await office.run("list", "--project", "blue")
    assert (await office.listed("--project", "green"))["projects"] == {}
    await office.run("limit", "--project", "blue", "--none")
    assert (await office.listed())["projects"] == {}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["limit", "--concurrent", "3"], "either a key or --project"),
        (["limit", "--project", "p"], "--none"),
        (["limit", "--project", "p", "--none", "--concurrent", "3"], "--none"),
        (["limit", "--project", "p", "--tokens", "3"], "--per day"),
        (["limit", "--project", "a b", "--concurrent", "3"], "cannot name a project"),
        (["limit", "nonsense", "--concurrent", "3"], "no key 'nonsense'"),
        (["create", "--project", "a/b"], "cannot name a project"),
    ],
)
async def test_what_is_wrong_is_told(office: Office, arguments: list[str], told: str) -> None:
    assert told in await office.run(*arguments, code=1)
