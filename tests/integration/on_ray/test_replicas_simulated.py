"""ServeReplicas against simulated replicas on a real Ray Serve."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from contextlib import aclosing
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest
import ray
from ray.serve.handle import DeploymentHandle

from serve_app.configured import ModelConfig, SimulatedConfig
from serve_app.errors import BadRequest, NotFound, Overloaded, UpstreamFailed
from serve_app.events import EventBody, FinishedEvent, RoleEvent, TokenEvent, ToolCallEvent, UsageEvent
from serve_app.replicas.catalog import deployment_name
from serve_app.replicas.client import ServeReplicas
from serve_app.settings import APP_NAME, Settings
from tests.fault.replica_cluster import replica_cluster

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's and grpc's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files open
    pytest.mark.timeout(400),  # the first test waits for Ray and for every replica
]

_HELLO = [{"role": "user", "content": "hello"}]


def model(model_id: str, *, ongoing: int = 64, queued: int = 64, replicas: int = 1, **pace: Any) -> ModelConfig:
    return ModelConfig(
        model_id=model_id,
        engine="simulated",
        num_cpus=0.1,
        replicas=replicas,
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        simulated=SimulatedConfig(**pace),
    )


SETTINGS = Settings(
    config="simulated",
    models=[
        model("fast", ttft_ms=0, itl_ms=0, seed=1),
        model("slow", ttft_ms=20, itl_ms=20, default_tokens=2000),
        model("narrow", ongoing=1, queued=1, ttft_ms=0, itl_ms=50, default_tokens=200),
        model("mortal", ttft_ms=0, itl_ms=50, default_tokens=200),
        model("threefold", replicas=3, ttft_ms=0, itl_ms=50, default_tokens=2000),
    ],
)


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[None]:
    with replica_cluster(SETTINGS.models):
        yield


@pytest.fixture
def replicas(cluster: None) -> ServeReplicas:
    return ServeReplicas(SETTINGS)


async def ask(replicas: ServeReplicas, model_id: str, **body: Any) -> list[EventBody]:
    stream = replicas.stream(model_id, None, {"messages": _HELLO, **body}, request_id="r")
    return [event async for event in stream]


async def tokens(replicas: ServeReplicas, model_id: str, **body: Any) -> AsyncGenerator[TokenEvent, None]:
    async with aclosing(replicas.stream(model_id, None, {"messages": _HELLO, **body}, request_id="r")) as stream:
        async for event in stream:
            if isinstance(event, TokenEvent):
                yield event


async def busy(replicas: ServeReplicas, model_id: str) -> int:
    return sum(row["running"] + row["waiting"] for row in await replicas.stats() if row["model"] == model_id)


async def until_busy(replicas: ServeReplicas, model_id: str, count: int, timeout_s: float = 30) -> float:
    """Wait until the replica works on `count` requests; the seconds it took."""
    start = monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            if await busy(replicas, model_id) == count:
                return monotonic() - start
            await asyncio.sleep(0.01)


async def test_an_answer_comes_in_order_with_usage_and_one_end(replicas: ServeReplicas) -> None:
    events = await ask(replicas, "fast", max_tokens=6)
    assert isinstance(events[0], RoleEvent)
    assert len([e for e in events if isinstance(e, TokenEvent)]) == 6
    counted = [e.usage.completion_tokens for e in events if isinstance(e, UsageEvent)]
    assert counted == [1, 2, 3, 4, 5, 6]
    assert isinstance(events[-1], FinishedEvent)
    assert events[-1].reason == "length"
    assert sum(isinstance(e, FinishedEvent) for e in events) == 1


async def test_the_same_request_gets_the_same_answer(replicas: ServeReplicas) -> None:
    assert await ask(replicas, "fast") == await ask(replicas, "fast")


async def test_several_choices_are_all_ended(replicas: ServeReplicas) -> None:
    events = await ask(replicas, "fast", n=3, max_tokens=2)
    assert isinstance(events[-1], FinishedEvent)
    assert [end.index for end in events[-1].choices] == [0, 1, 2]
    assert {e.index for e in events if isinstance(e, TokenEvent)} == {0, 1, 2}


async def test_a_judge_answers_with_a_label(replicas: ServeReplicas) -> None:
    events = await ask(replicas, "fast", structured_outputs={"choice": ["A", "B", "C"]})
    assert "".join(e.text for e in events if isinstance(e, TokenEvent)) in ("A", "B", "C")


async def test_a_forced_tool_call_arrives_whole(replicas: ServeReplicas) -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    events = await ask(replicas, "fast", tools=tools, tool_choice="required")
    calls = [e for e in events if isinstance(e, ToolCallEvent)]
    assert [(c.name, c.arguments) for c in calls] == [("search", "{}")]


async def test_tokens_come_one_by_one(replicas: ServeReplicas) -> None:
    times = [monotonic() async for _ in tokens(replicas, "slow", max_tokens=300)]
    gaps = [after - before for before, after in pairwise(times)]
    assert sum(gap > 0.01 for gap in gaps) >= 60  # 20 ms each; a clump would leave one gap with it all


async def test_leaving_stops_the_replica(replicas: ServeReplicas) -> None:
    async for _ in tokens(replicas, "slow"):
        assert await busy(replicas, "slow") == 1
        break
    assert await until_busy(replicas, "slow", 0) < 10  # of the 40 s that its answer takes


async def test_a_cancelled_caller_stops_the_replica(replicas: ServeReplicas) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ask(replicas, "slow"))
        await until_busy(replicas, "slow", 1)
        task.cancel()
    assert await until_busy(replicas, "slow", 0) < 10  # of the 40 s that its answer takes


async def test_a_caller_cancelled_as_its_call_is_assigned_stops_the_replica(
    replicas: ServeReplicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve on one loop, as in a gateway: in that moment its own `cancel` finds nothing to cancel."""
    handle: Any = DeploymentHandle(deployment_name("slow"), APP_NAME)
    handle._init(_run_router_in_separate_loop=False)
    there = ServeReplicas(SETTINGS, {"slow": handle})
    await ask(there, "slow", max_tokens=1)
    remote, assigned = DeploymentHandle.remote, asyncio.Event()

    def cancel_when_assigned(*args: Any, **kwargs: Any) -> Any:
        response, caller = remote(*args, **kwargs), asyncio.current_task()
        assert caller is not None

        def cancel(_: Any) -> None:
            assigned.set()
            caller.cancel()

        response._replica_result_future.add_done_callback(cancel)
        return response

    try:
        with monkeypatch.context() as patch:
            patch.setattr(DeploymentHandle, "remote", cancel_when_assigned)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(ask(there, "slow"))
        assert task.cancelled()
        assert assigned.is_set()
        await ask(replicas, "slow", max_tokens=1)  # behind the other one: that has begun now, if it ever does
        assert await until_busy(replicas, "slow", 0) < 10  # of the 40 s that its answer takes
    finally:
        await handle.shutdown_async()


@pytest.mark.parametrize("stream", [True, False])
async def test_completions_pass_through_and_stop(replicas: ServeReplicas, stream: bool) -> None:
    body = {"prompt": "Once", "max_tokens": 3, "stream": stream}
    chunks = [c async for c in replicas.completions("fast", None, body, request_id="r")]
    assert len(chunks) == (3 if stream else 1)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    async with asyncio.TaskGroup() as group:
        endless = replicas.completions("slow", None, {**body, "max_tokens": 2000}, request_id="r")
        task = group.create_task(_drain(endless))
        await until_busy(replicas, "slow", 1)
        task.cancel()
    assert await until_busy(replicas, "slow", 0) < 10  # of the 40 s that its answer takes


async def _drain(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


async def test_a_full_queue_is_overload_and_empties_again(replicas: ServeReplicas) -> None:
    async with asyncio.TaskGroup() as group:
        first = group.create_task(ask(replicas, "narrow"))
        await until_busy(replicas, "narrow", 1)
        # One of the two waits, the other finds the queue full; which, the router decides.
        both = [group.create_task(_outcome(ask(replicas, "narrow", max_tokens=1))) for _ in range(2)]
        done, waiting = await asyncio.wait(both, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        (refused,) = done
        assert isinstance(refused.result(), Overloaded)
        assert refused.result().retry_after_s > 0
        first.cancel()
    (served,) = waiting
    assert isinstance(served.result(), list)
    await until_busy(replicas, "narrow", 0)


async def _outcome(work: Awaitable[Any]) -> Any:
    try:
        return await work
    except Overloaded as error:
        return error


@pytest.mark.parametrize(("field", "value"), [("max_tokens", -1), ("messages", []), ("temperature", -1)])
async def test_a_refused_request_names_the_field(replicas: ServeReplicas, field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        await ask(replicas, "fast", **{field: value})
    assert caught.value.param == field


@pytest.mark.parametrize("model_id", ["unknown", "fast:adapter"])
async def test_an_unknown_model_is_not_found(replicas: ServeReplicas, model_id: str) -> None:
    base, _, adapter = model_id.partition(":")
    with pytest.raises(NotFound, match="use one of: fast, slow"):
        await anext(aiter(replicas.stream(base, adapter or None, {"messages": _HELLO}, request_id="r")))


async def test_every_model_answers_and_reports(replicas: ServeReplicas) -> None:
    assert await replicas.answers(10)
    assert {row["model"] for row in await replicas.stats()} == {"fast", "slow", "narrow", "mortal", "threefold"}


async def loads(replicas: ServeReplicas) -> dict[str, int]:
    """Requests of each replica of `threefold`."""
    return {row["replica"]: row["running"] + row["waiting"] for row in await replicas.stats() if row["model"] == "threefold"}


async def whose(replicas: ServeReplicas, *messages: dict[str, str]) -> str:
    """The replica that answers, which nothing else keeps busy."""
    async with aclosing(tokens(replicas, "threefold", messages=list(messages))) as answer:
        await anext(answer)
        (mine,) = [replica for replica, load in (await loads(replicas)).items() if load]
    await until_busy(replicas, "threefold", 0)
    return mine


async def test_the_turns_of_a_conversation_go_to_one_replica_and_conversations_to_all(replicas: ServeReplicas) -> None:
    assert len(await loads(replicas)) == 3
    first: dict[str, str] = {}
    for question in map(str, range(60)):  # ids of replicas are random: a dozen may leave one out
        first[question] = await whose(replicas, {"role": "user", "content": question})
        if len(first) >= 4 and set(first.values()) == set(await loads(replicas)):
            break
    assert set(first.values()) == set(await loads(replicas))
    for question in list(first)[:4]:
        later = [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "and then?"}]
        assert await whose(replicas, {"role": "user", "content": question}, *later) == first[question]


async def test_a_burst_of_one_prompt_is_shared_out(replicas: ServeReplicas) -> None:
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask(replicas, "threefold")) for _ in range(24)]
        await until_busy(replicas, "threefold", 24)
        busiest = max((await loads(replicas)).values())
        for task in asked:
            task.cancel()
    assert busiest <= 14  # of 24; by the prompt alone one replica would have them all
    await until_busy(replicas, "threefold", 0)


async def test_a_model_that_is_not_deployed_does_not_answer(cluster: None) -> None:
    settings = SETTINGS.model_copy(update={"models": [*SETTINGS.models, model("absent")]})
    assert not await ServeReplicas(settings).answers(1)


async def test_a_replica_that_dies_cuts_the_stream_with_an_error(replicas: ServeReplicas) -> None:
    stream = tokens(replicas, "mortal")
    await anext(stream)
    _kill_replica_of("mortal")
    with pytest.raises(UpstreamFailed, match="after"):
        await _drain(stream)
    async with asyncio.timeout(60):
        while not await replicas.answers(5):  # Serve starts another
            pass
    assert await ask(replicas, "mortal", max_tokens=1)


def _kill_replica_of(model_id: str) -> None:
    names = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if f"#{deployment_name(model_id)}#" in a["name"]]
    assert names
    for name in names:
        ray.kill(ray.get_actor(name, namespace="serve"))


def test_the_client_imports_without_vllm_and_torch() -> None:
    heavy = "{'vllm', 'torch', 'ray.llm'} & set(sys.modules)"
    code = f"import sys, serve_app.replicas.client, serve_app.replicas.simulated; sys.exit(bool({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
