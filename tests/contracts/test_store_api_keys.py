"""API keys, against a real Postgres."""

from uuid import uuid4

import pytest

from serve_app.store.api_keys import ApiKeys, create_key
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
