"""ServeReplicas against a real vLLM engine on CPU with the default model."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
import pytest
from ray import serve

from serve_app.configured import AdapterConfig
from serve_app.errors import BadRequest, NotFound
from serve_app.events import EventBody, FinishedEvent, RoleEvent, TokenEvent, UsageEvent
from serve_app.local.model import resolve_model
from serve_app.replicas.catalog import deployment_name
from serve_app.replicas.client import ServeReplicas
from serve_app.replicas.deployment import build_deployment
from serve_app.settings import APP_NAME, Settings
from tests.integration.lora_adapters import greedy_tokens, make_adapter, merge

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),  # converting the model and starting the engine
    pytest.mark.filterwarnings("ignore"),  # vLLM, transformers and torch warn of many things of their own
]

_FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
_STORY = [{"role": "user", "content": "Write a long story about a dog."}]
_GOOD = (("law", 1, 0.05), ("medicine", 3, 0.05), ("poetry", 1, 0.08))  # name, seed, scale of the weights
_COMPARED = 16  # tokens
_TOOL = {
    "type": "function",
    "function": {"name": "search", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}


@pytest.fixture(scope="module")
def model_folder(request: pytest.FixtureRequest) -> Path:
    assert request.config.cache
    folder = request.config.cache.mkdir("models")  # converting takes a while; pytest keeps it for the next run
    return Path(resolve_model(Settings(config="local").models[0].source or "", folder, folder / "convert.log"))


@pytest.fixture(scope="module")
def adapters(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with three good adapters and some that no engine should see."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, seed, scale in _GOOD:
        make_adapter(model_folder, folder / name, seed=seed, scale=scale)
    make_adapter(model_folder, folder / "too-large", seed=1, rank=64)
    make_adapter(model_folder, folder / "larger-than-told", seed=1, rank=64, r=8)
    make_adapter(model_folder, folder / "cut", seed=1)
    (folder / "cut" / "adapter_model.safetensors").write_bytes(b"0" * 1000)
    return folder


@pytest.fixture(scope="module")
def settings(adapters: Path) -> Settings:
    local = Settings(config="local")
    where = AdapterConfig(directory=str(adapters), max_adapters_per_replica=2)
    return local.model_copy(update={"models": [local.models[0].model_copy(update={"adapters": where})]})


@pytest.fixture(scope="module")
def cluster(local_ray: None, settings: Settings, model_folder: Path) -> Iterator[None]:
    serve.run(build_deployment(settings.models[0], source_path=str(model_folder)), name=APP_NAME, route_prefix=None)
    yield
    serve.delete(APP_NAME)


@pytest.fixture
def replicas(cluster: None, settings: Settings) -> ServeReplicas:
    return ServeReplicas(settings)


async def ask(replicas: ServeReplicas, adapter: str | None = None, **body: Any) -> list[EventBody]:
    asked = {"messages": _FRANCE, "temperature": 0, "max_tokens": 12, **body}
    return [event async for event in replicas.stream("smollm2-135m", adapter, asked, request_id="r")]


def text(events: list[EventBody], index: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, TokenEvent) and e.index == index)


def end(events: list[EventBody]) -> FinishedEvent:
    assert isinstance(events[-1], FinishedEvent)
    return events[-1]


async def until_idle(replicas: ServeReplicas) -> float:
    """Seconds until the engine works on nothing."""
    start = monotonic()
    async with asyncio.timeout(30):
        while True:
            (row,) = await replicas.stats()
            if row["running"] + row["waiting"] == 0:
                return monotonic() - start
            await asyncio.sleep(0.01)


async def until_busy(replicas: ServeReplicas) -> None:
    async with asyncio.timeout(30):
        while True:
            (row,) = await replicas.stats()
            if row["running"] + row["waiting"]:
                return
            await asyncio.sleep(0.01)


async def test_the_capital_of_france(replicas: ServeReplicas) -> None:
    assert await replicas.answers(30)
    events = await ask(replicas)
    assert isinstance(events[0], RoleEvent)
    assert "Paris" in text(events)
    assert end(events).reason == "stop"
    usage = [e.usage for e in events if isinstance(e, UsageEvent)]
    assert usage[0].completion_tokens == 0
    assert usage[-1].completion_tokens >= 6
    assert usage[-1].total_tokens == usage[-1].prompt_tokens + usage[-1].completion_tokens


async def test_the_engine_computes_in_its_own_process(replicas: ServeReplicas) -> None:
    """A worker beside it would watch shared memory in a busy loop, on the cores that compute."""
    assert await replicas.answers(30)
    titles = [title for process in psutil.Process().children(recursive=True) if (title := _title(process)).startswith("VLLM::")]
    assert titles == ["VLLM::EngineCore"]


async def test_tokens_come_one_by_one(replicas: ServeReplicas) -> None:
    counts, times = [], []
    async with aclosing(_stream(replicas, messages=_STORY, max_tokens=20, temperature=0)) as stream:
        async for event in stream:
            if isinstance(event, UsageEvent):
                counts.append(event.usage.completion_tokens)
                times.append(monotonic())
    assert counts[-1] == 20
    # The engine joins tokens only when it is read too slowly, as on a machine that is busy with something else.
    assert sum(later - earlier == 1 for earlier, later in pairwise(counts)) >= 10
    assert sum(later - earlier < 0.0005 for earlier, later in pairwise(times)) <= 9


async def _stream(replicas: ServeReplicas, **body: Any) -> AsyncGenerator[EventBody, None]:
    asked = {"messages": _FRANCE, **body}
    async with aclosing(replicas.stream("smollm2-135m", None, asked, request_id="r")) as stream:
        async for event in stream:
            yield event


async def test_logprobs_choices_and_stops(replicas: ServeReplicas) -> None:
    events = await ask(replicas, logprobs=True, top_logprobs=2, max_tokens=2)
    first = next(e for e in events if isinstance(e, TokenEvent))
    assert first.logprobs
    assert len(first.logprobs["content"][0]["top_logprobs"]) == 2
    events = await ask(replicas, n=2, max_tokens=3, temperature=1, seed=1)
    assert [choice.index for choice in end(events).choices] == [0, 1]
    events = await ask(replicas, stop=[" is"])
    assert text(events) == "The capital of France"
    assert end(events).choices[0].stop_reason == " is"


async def test_structured_outputs_bind_the_model(replicas: ServeReplicas) -> None:
    assert text(await ask(replicas, structured_outputs={"choice": ["A", "B", "C"]})) in ("A", "B", "C")


async def test_tools_are_accepted_and_can_be_required(replicas: ServeReplicas) -> None:
    assert "Paris" in text(await ask(replicas, tools=[_TOOL]))
    events = await ask(replicas, tools=[_TOOL], tool_choice="required", max_tokens=64)
    names = [e.name for e in events if e.type == "tool_call" and e.name]
    assert names == ["search"]


async def test_what_vllm_cannot_stream_comes_whole(replicas: ServeReplicas) -> None:
    events = await ask(replicas, prompt_logprobs=1, max_tokens=4)
    assert text(events) == "The capital of France"
    extra = end(events).extra
    assert extra
    assert len(extra["prompt_logprobs"]) > 10
    assert end(await ask(replicas, use_beam_search=True, n=2, max_tokens=2)).choices[1].index == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"temperature": "warm"}, "temperature"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"max_tokens": 100_000}, "max_tokens"),
    ],
)
async def test_a_wrong_request_names_the_field(replicas: ServeReplicas, body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await ask(replicas, **body)
    assert caught.value.param == param


async def tokens(replicas: ServeReplicas, adapter: str | None, **body: Any) -> list[int]:
    asked = {"messages": _STORY, "max_tokens": _COMPARED, "logprobs": True, "return_tokens_as_token_ids": True, **body}
    said = [e.logprobs["content"] for e in await ask(replicas, adapter, **asked) if isinstance(e, TokenEvent) and e.logprobs]
    return [int(entry["token"].removeprefix("token_id:")) for content in said for entry in content]


async def test_an_adapter_answers_as_one_merged_into_the_weights(
    replicas: ServeReplicas, model_folder: Path, adapters: Path, tmp_path: Path
) -> None:
    base = await tokens(replicas, None)
    assert base == await asyncio.to_thread(greedy_tokens, model_folder, _STORY, _COMPARED)
    adapted = await tokens(replicas, "law")
    merged = merge(model_folder, adapters / "law", tmp_path / "merged")
    assert adapted == await asyncio.to_thread(greedy_tokens, merged, _STORY, _COMPARED)
    assert len(adapted) == _COMPARED
    assert adapted != base


async def test_who_asks_at_the_same_time_gets_the_model_he_asked_for(replicas: ServeReplicas) -> None:
    """More adapters than the engine holds, and the base model, in one batch: vLLM's own operations mix them up on a CPU."""
    asked = [None, "law", "medicine", "poetry", "law", None]
    alone = {adapter: await tokens(replicas, adapter) for adapter in set(asked)}
    assert len({tuple(said) for said in alone.values()}) == 4
    async with asyncio.TaskGroup() as group:
        together = [group.create_task(tokens(replicas, adapter)) for adapter in asked]
    assert [task.result() for task in together] == [alone[adapter] for adapter in asked]


async def test_the_engine_holds_only_so_many_adapters(replicas: ServeReplicas) -> None:
    handle = serve.get_deployment_handle(deployment_name("smollm2-135m"), app_name=APP_NAME)
    first = await tokens(replicas, "law")
    for adapter in ("medicine", "poetry"):
        await ask(replicas, adapter, max_tokens=1)
        assert await handle.held_adapters.remote() <= 2
    assert await tokens(replicas, "law") == first  # it had to go, and came back


async def test_adapters_are_checked_before_the_engine_sees_them(
    replicas: ServeReplicas, adapters: Path, model_folder: Path
) -> None:
    with pytest.raises(NotFound, match="smollm2-135m:too-large"):
        await ask(replicas, adapter="absent")
    for name, told in (
        ("too-large", "rank 64, the engine holds up to 16"),
        ("larger-than-told", "not of rank 8"),
        ("cut", "not in safetensors format"),
    ):
        with pytest.raises(BadRequest, match=told):
            await ask(replicas, adapter=name)
    assert "Paris" in text(await ask(replicas))
    make_adapter(model_folder, adapters / "new", seed=5)
    assert len(await tokens(replicas, "new")) == _COMPARED


@pytest.mark.parametrize("further", [{}, {"prompt_logprobs": 1}], ids=["stream", "whole"])
async def test_a_cancelled_caller_frees_the_engine(replicas: ServeReplicas, further: dict[str, Any]) -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ask(replicas, max_tokens=1500, ignore_eos=True, **further))
        await until_busy(replicas)
        task.cancel()
    assert await until_idle(replicas) < 5  # 1500 tokens take far longer


async def test_leaving_in_mid_stream_frees_the_engine(replicas: ServeReplicas) -> None:
    async with aclosing(_stream(replicas, max_tokens=1500, ignore_eos=True)) as stream:
        async for event in stream:
            if isinstance(event, TokenEvent):
                break
    assert await until_idle(replicas) < 5  # 1500 tokens take far longer


@pytest.mark.parametrize("stream", [True, False])
async def test_completions(replicas: ServeReplicas, stream: bool) -> None:
    body = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3, "stream": stream}
    chunks = [c async for c in replicas.completions("smollm2-135m", None, body, request_id="r")]
    assert "Paris" in "".join(c["choices"][0]["text"] for c in chunks)
    assert len(chunks) == (3 if stream else 1)
    with pytest.raises(BadRequest):
        await anext(aiter(replicas.completions("smollm2-135m", None, {"prompt": ""}, request_id="r")))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""
