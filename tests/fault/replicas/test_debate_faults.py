"""What a replica does wrong under a debate: a whole true answer or an exception, never an end that is faked.

Real Ray Serve with the simulated engine, real Postgres, NATS and Dagster worker, the real gateway on a socket, the real
openai client. Each fault hits four debates at once, each on a faulty model of its own:

- `whole` and `streamed`: all debaters are faulty;
- `one`: debater A is, B is sound;
- `judge`: the judge is, both debaters are sound.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio

from serve_app.bus.audience import NatsAudience
from serve_app.events import FinishedEvent
from serve_app.ports import RunRecord
from serve_app.replicas.client import ServeReplicas
from serve_app.runs import RunStatus
from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.migrate import ensure_database, migrate
from tests.conftest import in_database
from tests.contracts.conftest import NatsServer
from tests.fault.replica_cluster import error_of, inject, replica_cluster, simulated_model, until_idle
from tests.fault.replicas.cases import CASES, Case
from tests.fault.worker_process import Surroundings, open_worker
from tests.integration.gateway_server import KEY, GatewayUnderTest, serve_gateway

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's and grpc's own
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its log files open
]

FAULTY = ("whole", "streamed", "one", "judge")
MODELS = [
    simulated_model("sound", seed=5, ttft_ms=0, itl_ms=0),
    *(simulated_model(name, ttft_ms=0, itl_ms=0) for name in FAULTY),
]
PATIENCE_S, SHORT_S = 60.0, 5.0  # of a replica that is silent; short only where its silence is the fault
QUESTION: list[Any] = [{"role": "user", "content": "hello"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settings(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    folder = tmp_path_factory.mktemp("debates")
    dsn = in_database(postgres_server, f"aif_debates_{secrets.token_hex(4)}")
    await ensure_database(dsn)
    await migrate(dsn)
    nats = NatsServer(folder)
    nats.start()
    yield patient(
        PATIENCE_S,
        Settings(
            config="simulated",
            state_dir=folder,
            postgres_dsn=dsn,
            nats_url=nats.url,
            models=MODELS,
            tasks_per_run=4,
            task_retries=2,
        ),
    )
    nats.kill()


def patient(seconds: float, settings: Settings) -> Settings:
    return settings.model_copy(update={"first_token_timeout_s": seconds, "stall_timeout_s": seconds})


@pytest.fixture(scope="module")
def debaters(settings: Settings) -> ServeReplicas:
    """The replicas as the worker asks them."""
    return ServeReplicas(settings)


@pytest.fixture
def patience(case: Case, settings: Settings, debaters: ServeReplicas) -> Iterator[None]:
    debaters.take(patient(SHORT_S if case.silent else PATIENCE_S, settings))
    yield
    debaters.take(settings)


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[None]:
    with replica_cluster(MODELS):
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(cluster: None, settings: Settings, debaters: ServeReplicas) -> AsyncIterator[GatewayUnderTest]:
    async with AsyncExitStack() as stack:
        at_work, around = Surroundings(settings, "worker"), Surroundings(settings, "gateway")
        for each in (at_work, around):
            await each.open(stack)
        await open_worker(at_work, debaters, stack)
        parts = {
            "store": around.store,
            "cache": PostgresAnswerCache(around.pool),
            "bus": around.bus,
            "queue": around.queue,
            "audience": NatsAudience(around.nats),
            "replicas": ServeReplicas(settings),
        }
        yield await stack.enter_async_context(serve_gateway(parts, models=MODELS))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(gateway: GatewayUnderTest) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=120) as sdk:
        yield sdk


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def true_texts(client: openai.AsyncOpenAI) -> dict[str, str]:
    """What each debater's model says when nothing is wrong."""
    texts = {}
    for model in ("sound", FAULTY[0]):
        answer = await client.chat.completions.create(model=model, messages=QUESTION)
        texts[model] = answer.choices[0].message.content or ""
    return {**dict.fromkeys(FAULTY, texts[FAULTY[0]]), "sound": texts["sound"]}


@dataclass
class Seen:
    """What a client got of one debate."""

    trace_id: str = ""
    error: openai.APIError | None = None
    text: str = ""
    ends: list[str | None] = field(default_factory=list)
    drafts: dict[str, str] = field(default_factory=dict)
    debate: dict[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> dict[str, str]:
        return {task["task"]: task["finish_reason"] for task in self.debate["tasks"]}


def debate_of(a: str, b: str, judge: str) -> dict[str, Any]:
    """The body of a debate between these models; without a system prompt each says its true text."""
    tasks = [{"task": label, "model": model} for label, model in (("A", a), ("B", b))]
    extra = {"x_debate": {"tasks": tasks, "judge_model": judge}, "x_cache": {"mode": "bypass"}}
    return {"model": "debate", "messages": QUESTION, "extra_body": extra}


async def whole(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Seen:
    """The debate as one answer."""
    seen, got = Seen(), list[Any]()
    seen.error = await error_of(client.chat.completions.with_raw_response.create(**body), got)
    if seen.error is not None:
        assert isinstance(seen.error, openai.APIStatusError)
        seen.trace_id = seen.error.response.headers["x-trace-id"]
        return seen
    seen.trace_id = got[0].headers["x-trace-id"]
    answer = got[0].parse()
    [choice] = answer.choices
    seen.text, seen.ends = choice.message.content or "", [choice.finish_reason]
    seen.debate = answer.model_extra["x_factory"]["debate"]
    return seen


async def streamed(client: openai.AsyncOpenAI, body: dict[str, Any]) -> Seen:
    """The debate as a stream, as far as it comes."""
    seen = Seen()
    seen.error = await error_of(_read(client, body, seen))
    return seen


async def _read(client: openai.AsyncOpenAI, body: dict[str, Any], seen: Seen) -> None:
    response = await client.chat.completions.with_raw_response.create(**body, stream=True)
    seen.trace_id = response.headers["x-trace-id"]
    async for chunk in response.parse():
        extra = chunk.model_extra or {}
        if "x_factory" in extra:
            seen.debate = extra["x_factory"]["debate"]
        for choice in chunk.choices:
            if (task := extra.get("x_task")) is not None:
                draft = (choice.delta.model_extra or {})["reasoning_content"]
                seen.drafts[task] = seen.drafts.get(task, "") + draft
            seen.text += choice.delta.content or ""
            seen.ends += [choice.finish_reason] if choice.finish_reason else []


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.name))
@pytest.mark.usefixtures("patience")
async def test_debate(case: Case, gateway: GatewayUnderTest, client: openai.AsyncOpenAI, true_texts: dict[str, str]) -> None:
    for model in FAULTY:
        # A judge says one token: what is to go wrong after some goes wrong at once.
        await inject(model, {**case.fault, "after": 0} if model == "judge" else case.fault)
    async with asyncio.TaskGroup() as group:
        at_once = group.create_task(whole(client, debate_of("whole", "whole", "sound")))
        flowing = group.create_task(streamed(client, debate_of("streamed", "streamed", "sound")))
        beside = group.create_task(streamed(client, debate_of("one", "sound", "sound")))
        judged = group.create_task(whole(client, debate_of("sound", "sound", "judge")))
    await until_idle(MODELS)

    for seen, drafted in ((at_once.result(), False), (flowing.result(), True)):
        check_all_faulty(seen, case, true_texts["whole"], drafted=drafted)
    check_one_faulty(beside.result(), case, true_texts)
    check_judge_faulty(judged.result(), case, true_texts["sound"])
    for seen in (at_once.result(), flowing.result(), beside.result(), judged.result()):
        await check_record(gateway, seen)
        await check_wire(gateway, seen)


def check_all_faulty(seen: Seen, case: Case, true_text: str, *, drafted: bool) -> None:
    """With an error that does not end nobody answers; else somebody does, wholly."""
    if case.error is None or "times" in case.fault:
        check_whole(seen, {"A": true_text, "B": true_text}, case.finish)
        return
    assert isinstance(seen.error, openai.APIError)
    if not drafted:  # a stream has begun by then: its error has no status of its own
        assert isinstance(seen.error, case.error)
    assert case.code in (None, seen.error.code)
    assert (seen.text, seen.ends, seen.debate) == ("", [], {})
    assert all(true_text.startswith(draft) for draft in seen.drafts.values())


def check_one_faulty(seen: Seen, case: Case, true_texts: dict[str, str]) -> None:
    """The faulty debater is named and never wins; the sound one answers."""
    check_whole(seen, {"A": true_texts["one"], "B": true_texts["sound"]}, case.finish)
    assert seen.tasks == {"A": "error" if case.error else case.finish, "B": "stop"}
    if case.error is not None:
        assert (seen.debate["winner"], seen.debate["stop_reason"]) == ("B", "sole_candidate")


def check_judge_faulty(seen: Seen, case: Case, true_text: str) -> None:
    """The answers are there, whatever the judge does; that it did not judge is said."""
    check_whole(seen, {"A": true_text, "B": true_text}, "stop")
    failed = case.error is not None and "times" not in case.fault
    assert seen.debate["stop_reason"].startswith("judge_failed") == failed, seen.debate
    assert seen.tasks == {"A": "stop", "B": "stop"}


def check_whole(seen: Seen, true_texts: dict[str, str], finish: str) -> None:
    """A whole answer: the true text of the winner, ended as the winner ended."""
    assert seen.error is None
    winner = seen.debate["winner"]
    assert seen.text == true_texts[winner]
    assert seen.ends == [seen.tasks[winner]]
    assert seen.ends[0] in ("stop", finish)


async def check_record(gateway: GatewayUnderTest, seen: Seen) -> None:
    """The log has the end that the client saw, and the events have it once."""
    row = await gateway.store.find(seen.trace_id) if seen.trace_id else None
    assert row is not None
    assert (row.status, row.attempt) == (RunStatus.FAILED if seen.error else RunStatus.SUCCEEDED, 1)
    assert _text(row) == (None if seen.error else seen.text)
    async with asyncio.timeout(60), gateway.bus.subscribe(seen.trace_id) as events:
        ends = [event.body async for event in events if isinstance(event.body, FinishedEvent)]
    assert [end.reason for end in ends] == (["error"] if seen.error else seen.ends)


def _text(row: RunRecord) -> str | None:
    return row.answer.text if row.answer is not None else None


async def check_wire(gateway: GatewayUnderTest, seen: Seen) -> None:
    """The same stream again, as bytes: `[DONE]` after a whole answer only, ids that rise, one end."""
    async with httpx.AsyncClient(timeout=120, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as http:
        lines = (await http.get(f"{gateway.url}/v1/runs/{seen.trace_id}/events")).text.splitlines()
    frames = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    ids = [int(line.removeprefix("id: ")) for line in lines if line.startswith("id: ")]
    assert all(earlier < later for earlier, later in pairwise(ids))
    assert ("[DONE]" in frames) == (seen.error is None)
    chunks = [json.loads(frame) for frame in frames if frame != "[DONE]"]
    assert sum("error" in chunk for chunk in chunks) == (seen.error is not None)
    ends = [c["finish_reason"] for chunk in chunks for c in chunk.get("choices", ()) if c["finish_reason"]]
    assert ends == seen.ends
