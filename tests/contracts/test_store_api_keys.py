"""API keys, against a real Postgres."""

import asyncio
from uuid import uuid4

import pytest

from serve_app.limits import Limits, key_subject, project_subject
from serve_app.store.api_keys import ApiKeys, create_key
from serve_app.store.limits import PostgresLimits
from serve_app.store.pool import PostgresPool


@pytest.fixture
def keys(postgres_pool: PostgresPool) -> ApiKeys:
    return ApiKeys(postgres_pool)


async def test_a_key_stands_for_its_project(keys: ApiKeys, postgres_dsn: str) -> None:
    key = await create_key(postgres_dsn, "blue", projects=["green", "blue"])
    owner = await keys.check(key)
    assert owner is not None
    assert (owner.project, owner.projects) == ("blue", ("blue", "green"))
    assert key.startswith("aif-")
    assert len(key) >= 4 + 43  # 32 random bytes


async def test_two_keys_of_one_project_differ(keys: ApiKeys) -> None:
    assert await keys.create("blue") != await keys.create("blue")


@pytest.mark.parametrize("key", ["", "aif-", "aif-wrong", "sk-wrong", "aif-\udcff", "aif-\x00", "aif-" + "x" * 10_000])
async def test_a_wrong_key_is_nobody(keys: ApiKeys, key: str) -> None:
    await keys.create("blue")
    assert await keys.check(key) is None


async def test_the_key_itself_is_not_stored(keys: ApiKeys, postgres_pool: PostgresPool) -> None:
    key = await keys.create("blue")
    async with postgres_pool.connection() as connection:
        row = await connection.fetchval("SELECT api_keys::text FROM api_keys")
    assert key[4:16] not in row


async def test_a_revoked_key_is_nobody_and_stays_listed(keys: ApiKeys) -> None:
    key, other = await keys.create("blue"), await keys.create("green")
    owner = await keys.check(key)
    assert owner is not None
    assert await keys.revoke(owner.key_id)
    assert not await keys.revoke(owner.key_id)
    assert await keys.check(key) is None
    assert await keys.check(other) is not None
    listed = await keys.list()
    assert [(entry.project, entry.prefix, entry.revoked_at is None) for entry in listed] == [
        ("blue", key[:10], False),
        ("green", other[:10], True),
    ]
    assert [entry.project for entry in await keys.list("green")] == ["green"]


@pytest.mark.parametrize("key_id", ["", "nonsense", str(uuid4())])
async def test_an_unknown_key_cannot_be_revoked(keys: ApiKeys, key_id: str) -> None:
    assert not await keys.revoke(key_id)


@pytest.mark.parametrize("project", ["", " ", "a b", "-a", "a" * 65, "a\n", "ü", "a/b"])
async def test_a_project_needs_a_plain_name(keys: ApiKeys, project: str) -> None:
    with pytest.raises(ValueError, match="cannot name a project"):
        await keys.create("blue", projects=[project])
    assert await keys.list() == []


async def test_a_rotated_key_is_the_same_key(keys: ApiKeys, postgres_pool: PostgresPool) -> None:
    first = await keys.create("blue", projects=["green"], limits=Limits(requests_per_minute=5))
    owner = await keys.check(first)
    assert owner is not None
    second = await keys.rotate(owner.key_id, grace_s=3600)
    assert second is not None
    assert second != first
    assert await keys.check(first) == await keys.check(second) == owner
    [entry] = await keys.list()
    assert (entry.key_id, entry.prefix) == (owner.key_id, second[:10])
    assert entry.rotated_at is not None
    assert entry.old_until is not None
    assert entry.old_until - entry.rotated_at == pytest.approx(3600, abs=1)
    async with postgres_pool.connection() as connection:  # an hour later
        await connection.execute("UPDATE retired_keys SET valid_until = now()")
    assert await keys.check(first) is None
    assert await keys.check(second) == owner
    assert (await keys.list())[0].old_until is None


async def test_no_earlier_key_outlives_the_last_grace(keys: ApiKeys) -> None:
    first = await keys.create("blue")
    owner = await keys.check(first)
    assert owner is not None
    second = await keys.rotate(owner.key_id, grace_s=3600)
    third = await keys.rotate(owner.key_id, grace_s=3600)
    assert second is not None
    assert third is not None
    assert [await keys.check(key) == owner for key in (first, second, third)] == [True, True, True]
    fourth = await keys.rotate(owner.key_id, grace_s=0)
    assert fourth is not None
    assert [await keys.check(key) for key in (first, second, third)] == [None, None, None]
    assert await keys.check(fourth) == owner


async def test_rotations_at_once_leave_every_key_good(keys: ApiKeys) -> None:
    owner = await keys.check(await keys.create("blue"))
    assert owner is not None
    made = await asyncio.gather(*(keys.rotate(owner.key_id, grace_s=3600) for _ in range(8)))
    assert len(set(made)) == 8
    assert all([await keys.check(key or "") == owner for key in made])


async def test_revoking_takes_the_earlier_keys_too(keys: ApiKeys) -> None:
    first = await keys.create("blue")
    owner = await keys.check(first)
    assert owner is not None
    second = await keys.rotate(owner.key_id, grace_s=3600)
    assert await keys.revoke(owner.key_id)
    assert await keys.check(first) is None
    assert await keys.check(second or "") is None
    assert await keys.rotate(owner.key_id, grace_s=60) is None
    assert await keys.rotate("nonsense", grace_s=60) is None


async def test_a_key_knows_which_limits_concern_it(keys: ApiKeys, postgres_pool: PostgresPool) -> None:
    limits = PostgresLimits(postgres_pool)
    key = await keys.create("blue", projects=["green"])
    owner = await keys.check(key)
    assert owner is not None
    assert owner.limited == frozenset()
    await limits.set_of_project("green", Limits(concurrent_runs=1))
    await limits.set_of_project("red", Limits(concurrent_runs=1))
    await limits.set_of_key(owner.key_id, Limits(tokens=5, period="month"))
    owner = await keys.check(key)
    assert owner is not None
    assert owner.limited == {key_subject(owner.key_id), project_subject("green")}
