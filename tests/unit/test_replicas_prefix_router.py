"""The turns of a conversation go to one replica, as long as that one is not busier than the others."""

import gc
from collections import Counter
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve._private.request_router import PendingRequest

from serve_app.replicas.prefix_router import PrefixRouter, prefix_key, ranked

_SYSTEM = {"role": "system", "content": "You are a lawyer."}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def key(*messages: Any) -> bytes | None:
    return prefix_key([{"model": "m", "messages": list(messages)}, "request-id"])


def _picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def idle(count: int) -> dict[str, int]:
    return {f"replica-{number}": 0 for number in range(count)}


def test_the_turns_of_a_conversation_have_one_key() -> None:
    first = key(_SYSTEM, user("May I park here?"))
    answer = {"role": "assistant", "content": "No."}
    assert first == key(_SYSTEM, user("May I park here?"), answer, user("And at night?"))
    assert first != key(_SYSTEM, user("May I swim here?"))
    assert first != key(user("May I park here?"))


def test_pictures_count_and_only_the_beginning_of_a_long_prompt_does() -> None:
    def seen(url: str) -> bytes | None:
        return key(user("what is it?"), {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})

    assert seen("a") == seen("b")  # the second message of the user is no beginning
    pictures = [key({"role": "user", "content": [_picture(url)]}) for url in ("a", "b", "x" * 200, "x" * 201)]
    assert len(set(pictures)) == 4
    assert key({"role": "user", "content": [_picture("a"), {"type": "text", "text": "?"}]}) not in pictures
    assert key(user("x" * 10_000 + "a")) == key(user("x" * 10_000 + "b"))
    assert prefix_key([{"prompt": "x" * 2000 + "a"}]) == prefix_key([{"prompt": "x" * 2000 + "b"}])
    assert prefix_key([{"prompt": "a"}]) != prefix_key([{"prompt": [1, 2, 3]}])


@pytest.mark.parametrize(
    "arguments",
    [[], ["text"], [{}], [{"messages": []}], [{"messages": "x"}], [{"messages": {"role": "user"}}], [{"prompt": ""}],
     [{"messages": [user("\ud800")]}], [{"prompt": "\ud800"}]],
)  # fmt: skip
def test_a_request_without_a_beginning_has_no_key(arguments: list[Any]) -> None:
    """Nor does it break the router, which others wait for."""
    assert prefix_key(arguments) is None


def test_messages_that_are_none_still_have_a_key() -> None:
    assert prefix_key([{"messages": ["x", 5, {"role": "user"}]}])


def test_keys_spread_over_the_replicas_and_keep_theirs_when_one_goes() -> None:
    keys = [f"conversation {number}".encode() for number in range(400)]
    before = {key: ranked(key, idle(4))[0] for key in keys}
    counts = Counter(before.values())
    assert len(counts) == 4
    assert min(counts.values()) > 50
    after = {key: ranked(key, idle(3))[0] for key in keys}
    assert all(after[key] == replica for key, replica in before.items() if replica != "replica-3")


def test_the_order_does_not_depend_on_who_asks() -> None:
    loads = idle(4)
    assert ranked(b"k", loads) == ranked(b"k", dict(reversed(loads.items())))
    assert sorted(ranked(b"k", loads)) == sorted(loads)


def test_a_replica_that_is_busier_than_the_others_comes_last() -> None:
    favourite, *others = ranked(b"k", idle(3))
    assert ranked(b"k", {**idle(3), favourite: 3})[0] == favourite  # a handful is not much
    assert ranked(b"k", {**idle(3), favourite: 4}) == [*others, favourite]
    everybody = dict.fromkeys([favourite, *others], 100)
    assert ranked(b"k", everybody)[0] == favourite
    assert ranked(b"k", {**everybody, favourite: 150})[-1] == favourite


def test_conversations_with_one_long_system_prompt_are_told_apart() -> None:
    system = {"role": "system", "content": "You are a lawyer. " * 600}
    keys = [key(system, user(f"Question {number}")) for number in range(3)]
    assert len(set(keys)) == 3
    parts = {"role": "system", "content": [{"type": "text", "text": system["content"]}]}
    assert key(parts, user("Question 0")) == keys[0]
    assert key(system, *[user("hi")] * 30) == key(system, user("hi"))
    assert key(*[{"role": "assistant", "content": "x"}] * 500, user("a")) != key(*[system] * 500, user("b"))


class _Replica:
    """As much of Serve's replica as choosing takes."""

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, DeploymentID("model"))


async def test_a_request_that_waits_is_read_and_counted_once() -> None:
    """Serve asks for a choice at each of its attempts, every few milliseconds while all replicas are full."""
    router = PrefixRouter(deployment_id=DeploymentID("model"), handle_source=DeploymentHandleSource.REPLICA)
    router.initialize_state()
    replicas: list[Any] = [_Replica(name) for name in ("a", "b")]
    reads = 0

    class Body(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            nonlocal reads
            reads += 1
            return super().get(name, default)

    def pending() -> PendingRequest:
        metadata = RequestMetadata(request_id="same", internal_request_id="same")
        return PendingRequest([Body(messages=[user("May I park here?")])], {}, metadata)

    first = pending()
    chosen = await router.choose_replicas(replicas, first)
    once = reads
    for _ in range(20):
        assert await router.choose_replicas(replicas, first) == chosen
    assert reads == once
    assert sum(router._loads(dict.fromkeys("ab", replicas[0])).values()) == 1

    await router.choose_replicas(replicas, second := pending())
    assert sum(router._loads(dict.fromkeys("ab", replicas[0])).values()) == 2
    del first, second
    gc.collect()
    assert not router._keys


def test_a_burst_of_one_prompt_is_shared_out() -> None:
    loads = idle(4)
    for _ in range(100):
        loads[ranked(b"k", loads)[0]] += 1
    assert max(loads.values()) <= 1.25 * 25 + 1
    assert min(loads.values()) > 0
