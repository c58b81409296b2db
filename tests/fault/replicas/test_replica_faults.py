"""Whatever a replica does wrong, a client gets a whole true answer or an exception, never an end that is faked.

Real Ray Serve with the simulated engine, the real gateway on a socket, the real openai client. The times are scaled:
a first token that is due within 60 s may take 0.3 s; where a replica is silent on purpose it has 3 s.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
import ray

from serve_app.events import FinishedEvent
from serve_app.replicas.catalog import deployment_name
from serve_app.replicas.client import ServeReplicas
from serve_app.runs import RunStatus
from serve_app.settings import APP_NAME, Settings
from tests.fault.replica_cluster import TOKENS, error_of, inject, replica_cluster, simulated_model, until_idle
from tests.fault.replicas.cases import CASES, Case
from tests.integration.gateway_server import KEY, GatewayUnderTest, serve_gateway

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's and grpc's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files open
]

PATIENCE_S, SHORT_S = 60.0, 3.0
RETRIES: dict[str, Any] = {
    "replica_retries": 2,
    "retry_backoff_s": 0.02,
    "retry_backoff_max_s": 0.05,
}

MODELS = [simulated_model("sim", ttft_ms=0, itl_ms=0), simulated_model("pair", replicas=2, ttft_ms=5000, itl_ms=20)]
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}], "x_cache": {"mode": "bypass"}}


def every_case(test: Any) -> Any:
    """One test per case, with the patience that suits it."""
    by_case = pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
    return by_case(pytest.mark.usefixtures("patience")(test))


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[None]:
    with replica_cluster(MODELS):
        yield


def patient(seconds: float) -> Settings:
    """Settings that let a replica be silent for so long."""
    return Settings(config="simulated", models=MODELS, first_token_timeout_s=seconds, stall_timeout_s=seconds)


@pytest.fixture(scope="module")
def replicas() -> ServeReplicas:
    return ServeReplicas(patient(PATIENCE_S))


@pytest.fixture
def short_patience(replicas: ServeReplicas) -> Iterator[None]:
    """For a test of a replica that falls silent."""
    replicas.take(patient(SHORT_S))
    yield
    replicas.take(patient(PATIENCE_S))


@pytest.fixture
def patience(case: Case, request: pytest.FixtureRequest) -> None:
    """Short only where silence is the fault."""
    if case.silent:
        request.getfixturevalue("short_patience")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(cluster: None, replicas: ServeReplicas) -> AsyncIterator[GatewayUnderTest]:
    async with serve_gateway({"replicas": replicas}, models=MODELS, **RETRIES) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: GatewayUnderTest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=120) as sdk:
        yield sdk


async def whole(client: openai.AsyncOpenAI, model: str = "sim") -> tuple[str, str]:
    """Text and finish_reason of an answer that is not streamed."""
    answer = await client.chat.completions.create(
        model=model, messages=BODY["messages"], extra_body={"x_cache": {"mode": "bypass"}}
    )
    return answer.choices[0].message.content or "", answer.choices[0].finish_reason


async def streamed(client: openai.AsyncOpenAI, seen: list[str], ends: list[str], model: str = "sim", **asked: int) -> None:
    """Collects the pieces of a streamed answer, and the finish_reasons, as far as they come."""
    stream = await client.chat.completions.create(
        model=model, messages=BODY["messages"], stream=True, extra_body={"x_cache": {"mode": "bypass"}, **asked}
    )
    async for chunk in stream:
        for choice in chunk.choices:
            seen.append(choice.delta.content or "")
            if choice.finish_reason:
                ends.append(choice.finish_reason)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def true_text(client: openai.AsyncOpenAI) -> str:
    """What the engine says when nothing is wrong."""
    await inject("sim")
    text, finish = await whole(client)
    assert finish == "stop"
    return text


@every_case
async def test_whole(case: Case, gateway: GatewayUnderTest, client: openai.AsyncOpenAI, true_text: str) -> None:
    await inject("sim", case.fault)
    answer: list[tuple[str, str]] = []
    error = await error_of(whole(client), answer)
    check_error(error, case, status=True)
    assert answer == ([] if error else [(true_text, case.finish)])
    await check_aftermath(gateway, case)


@every_case
async def test_streamed(case: Case, gateway: GatewayUnderTest, client: openai.AsyncOpenAI, true_text: str) -> None:
    await inject("sim", case.fault)
    seen: list[str] = []
    ends: list[str] = []
    error = await error_of(streamed(client, seen, ends))
    check_error(error, case, status=case.early)  # an early error has its own HTTP status
    if error is None:
        assert ("".join(seen), ends) == (true_text, [case.finish])
    else:
        assert ends == []
        assert true_text.startswith("".join(seen))
        assert bool(seen) != case.early
    await check_aftermath(gateway, case)


@every_case
async def test_on_the_wire(case: Case, gateway: GatewayUnderTest, true_text: str) -> None:
    await inject("sim", case.fault)
    async with httpx.AsyncClient(timeout=120, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as http:
        response = await http.post(f"{gateway.url}/v1/chat/completions", json={**BODY, "model": "sim", "stream": True})
    frames = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    if case.error is None:
        assert frames.pop() == "[DONE]"
        chunks = [json.loads(frame) for frame in frames]
        assert not any("error" in chunk for chunk in chunks)
        assert sum("role" in choice["delta"] for chunk in chunks for choice in chunk["choices"]) == 1
    elif case.early:
        assert response.status_code >= 400
        assert frames == []
        if response.status_code == 429:
            assert 1 <= int(response.headers["retry-after"]) <= 120
    else:
        assert "[DONE]" not in response.text
        assert json.loads(frames.pop())["error"]["code"] == "upstream_failed"
        chunks = [json.loads(frame) for frame in frames]
        assert sum("error" in chunk for chunk in chunks) == 0
        assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} == {None}
    await check_aftermath(gateway, case)


def check_error(error: openai.APIError | None, case: Case, *, status: bool) -> None:
    """The error is the one of the case; `status`: it came as an HTTP status of its own."""
    assert isinstance(error, case.error or type(None))
    if error is not None:
        assert case.code in (None, error.code)
        assert isinstance(error, openai.APIStatusError) == status


async def check_aftermath(gateway: GatewayUnderTest, case: Case) -> None:
    """Nothing is left in the engine, and every run has one end, in the log and in its events."""
    await until_idle(MODELS)
    rows = list(gateway.store._rows.values())
    assert all(row.status.terminal for row in rows)
    assert len(gateway.lifecycle.local_runs) == 0
    last = rows[-1]
    assert last.status is (RunStatus.SUCCEEDED if case.error is None else RunStatus.FAILED)
    async with asyncio.timeout(60), gateway.bus.subscribe(last.trace_id) as events:
        ends = [event.body async for event in events if isinstance(event.body, FinishedEvent)]
    assert [end.reason for end in ends] == ["error" if case.error else case.finish]


async def test_flapping_is_never_seen_by_a_caller(client: openai.AsyncOpenAI, true_text: str) -> None:
    await inject("sim", {"kind": "reset", "every": 2})
    for _ in range(6):
        assert await whole(client) == (true_text, "stop")


async def test_a_run_that_is_out_of_time_is_not_tried_again(client: openai.AsyncOpenAI, gateway: GatewayUnderTest) -> None:
    await inject("sim", {"kind": "no_reply"})
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(
            model="sim", messages=BODY["messages"], extra_body={"x_timeout_s": 0.5, "x_cache": {"mode": "bypass"}}
        )
    assert caught.value.status_code == 504
    await until_idle(MODELS)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    "fault", [{"kind": "cut", "after": 4}, {"kind": "no_finish"}, {"kind": "stall", "after": 4, "seconds": 600}]
)
@pytest.mark.usefixtures("short_patience")
async def test_a_legacy_completion_that_is_cut_is_an_error(
    client: openai.AsyncOpenAI, fault: dict[str, Any], stream: bool
) -> None:
    await inject("sim", {**fault, "after": 4 if stream else 0})
    ends: list[str] = []
    with pytest.raises(openai.APIError):
        await _complete(client, stream, ends)
    assert ends == []
    await until_idle(MODELS)


async def _complete(client: openai.AsyncOpenAI, stream: bool, ends: list[str]) -> None:
    if not stream:
        answer = await client.completions.create(model="sim", prompt="Once", max_tokens=20, extra_body={"x_timeout_s": 1})
        ends += [choice.finish_reason for choice in answer.choices]
        return
    chunks = await client.completions.create(model="sim", prompt="Once", max_tokens=20, stream=True)
    async for chunk in chunks:
        ends += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]


async def test_usage_that_is_missing_is_not_made_up(client: openai.AsyncOpenAI) -> None:
    await inject("sim", {"kind": "bad_usage"})
    answer = await client.chat.completions.create(
        model="sim", messages=BODY["messages"], extra_body={"x_cache": {"mode": "bypass"}}
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == 0


async def test_a_replica_that_dies_before_its_first_token_is_replaced_by_another(client: openai.AsyncOpenAI) -> None:
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(whole(client, "pair"))  # 5 s to its first token: it is found in time
        await _kill_the_busy_one("pair")
    text, finish = asked.result()
    assert (len(text) > TOKENS, finish) == (True, "stop")


async def test_a_replica_that_dies_after_its_first_token_cuts_the_answer(client: openai.AsyncOpenAI) -> None:
    seen: list[str] = []
    ends: list[str] = []
    async with asyncio.TaskGroup() as group:
        asked = group.create_task(error_of(streamed(client, seen, ends, "pair", max_tokens=3000)))  # 60 s: it is found in time
        async with asyncio.timeout(60):
            while not seen:
                await asyncio.sleep(0.01)
        await _kill_the_busy_one("pair")
    assert isinstance(asked.result(), openai.APIError)
    assert ends == []


async def _kill_the_busy_one(model: str) -> None:
    replicas = ServeReplicas(Settings(config="simulated", models=MODELS))
    async with asyncio.timeout(30):
        while True:
            working = [row for row in await replicas.stats() if row["model"] == model and row["running"] + row["waiting"]]
            if working:
                break
            await asyncio.sleep(0.01)
    name = f"SERVE_REPLICA::{APP_NAME}#{deployment_name(model)}#{working[0]['replica']}"
    ray.kill(ray.get_actor(name, namespace="serve"))
