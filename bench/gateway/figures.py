"""The measurements. Each takes turns over the candidates, so that all meet the same noise, and gives raw lines."""

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import psutil

from bench.gateway.candidate import Candidate
from bench.gateway.wire import Connection, Exchange, request_bytes
from bench.gateway.work import LATENCY_TOKENS, LOAD_TOKENS, STREAM_TOKENS, Work, body

Line = dict[str, Any]
_WARM_UP = 5
_STREAMS = 8
_REST_S = 1.5  # after a turn on vLLM, whose worker watches for more in a busy loop for a second: the next would pay for it


def _question(kind: str, number: int) -> str:
    return f"Question {kind} {number} at {time.time_ns()}: what follows?"


def _requests(candidate: Candidate, model: str, question: str, tokens: int, *, stream: bool) -> bytes:
    return request_bytes(candidate.origin, candidate.headers, body(model, question, tokens, stream=stream))


def _checked(candidate: Candidate, exchange: Exchange) -> Exchange:
    if exchange.status != 200:
        raise RuntimeError(f"{candidate.name} answered {exchange.status}: {exchange.body.decode(errors='replace')[:500]}")
    return exchange


def _turns(candidates: Sequence[Candidate], number: int) -> Iterator[Candidate]:
    """All candidates, another one first in each round; the faces of one server ask for different things."""
    start = number % len(candidates)
    return iter([*candidates[start:], *candidates[:start]])


async def latencies(candidates: Sequence[Candidate], work: Work, rounds: int) -> AsyncIterator[Line]:
    """One request at a time: whole answers, and streams. Raises RuntimeError when an answer is not what the engine says."""
    async with AsyncExitStack() as opened:
        lanes = {c.name: await opened.enter_async_context(Connection(c.origin)) for c in candidates}
        for number in range(-_WARM_UP, rounds):
            said: dict[str, str] = {}
            for candidate in _turns(candidates, number):
                asked = _question(candidate.name if "cache" in candidate.name else "plain", number)
                whole = await lanes[candidate.name].ask(_requests(candidate, work.paced, asked, LATENCY_TOKENS, stream=False))
                said[candidate.name] = _text(_checked(candidate, whole))
                asked = _question("stream", number)
                streamed = await lanes[candidate.name].ask(_requests(candidate, work.paced, asked, LATENCY_TOKENS, stream=True))
                stamps, text = _pieces(_checked(candidate, streamed))
                said[f"{candidate.name} (stream)"] = text
                if number >= 0:
                    yield {"kind": "whole", "candidate": candidate.name, "round": number, "seconds": whole.seconds}
                    yield {
                        "kind": "stream",
                        "candidate": candidate.name,
                        "round": number,
                        "ttft": stamps[0] - streamed.began,
                        "gaps": [later - earlier for earlier, later in itertools.pairwise(stamps)],
                        "seconds": streamed.seconds,
                    }
                await _rest(work)
            _same(said, work)


async def _rest(work: Work) -> None:
    await asyncio.sleep(_REST_S if work.engine == "vllm" else 0)


def _same(said: dict[str, str], work: Work) -> None:
    if work.engine == "simulated" and len(set(said.values())) > 1:
        raise RuntimeError(f"the candidates do not give the same answer: {said}")


def _text(exchange: Exchange) -> str:
    return str(json.loads(exchange.body)["choices"][0]["message"]["content"])


def _pieces(exchange: Exchange) -> tuple[list[float], str]:
    """When each piece of text came, and the text. Raises RuntimeError for a stream without its end."""
    stamps, text = [], []
    events = exchange.events()
    if not events or events[-1][1] != "[DONE]":
        raise RuntimeError(f"a stream ended without [DONE]: {exchange.body[-300:]!r}")
    for moment, event in events[:-1]:
        chunk = json.loads(event)
        piece = chunk["choices"][0]["delta"].get("content") if chunk.get("choices") else None
        if piece:
            stamps.append(moment)
            text.append(piece)
    if not stamps:
        raise RuntimeError(f"a stream without any text: {exchange.body[:300]!r}")
    return stamps, "".join(text)


async def load(candidates: Sequence[Candidate], work: Work, steps: Sequence[int], turn_s: float) -> AsyncIterator[Line]:
    """Whole answers of few tokens from an engine that costs nothing, at rising concurrency, each turn of `turn_s`."""
    roles = {candidate.name: candidate.pids() for candidate in candidates}
    for lanes in steps:
        for candidate in candidates:
            await _turn(candidate, work, lanes, min(0.5, turn_s / 4))  # connections open, code warm
            before = _cpu(roles[candidate.name])
            began = time.perf_counter()
            taken, failed = await _turn(candidate, work, lanes, turn_s)
            seconds = time.perf_counter() - began
            used = {role: spent - before.get(role, 0.0) for role, spent in _cpu(roles[candidate.name]).items()}
            await _rest(work)
            yield {
                "kind": "load",
                "candidate": candidate.name,
                "concurrency": lanes,
                "answers": len(taken),
                "failed": failed,
                "seconds": seconds,
                "p50": statistics.median(taken) if taken else None,
                "cpu": used,
            }


async def _turn(candidate: Candidate, work: Work, lanes: int, seconds: float) -> tuple[list[float], int]:
    taken: list[float] = []
    failed = 0
    until = time.perf_counter() + seconds
    numbers = itertools.count()

    async def lane() -> None:
        nonlocal failed
        async with Connection(candidate.origin) as connection:
            while time.perf_counter() < until:
                asked = _question(candidate.name, next(numbers))
                try:
                    exchange = await connection.ask(_requests(candidate, work.instant, asked, LOAD_TOKENS, stream=False))
                except (ConnectionError, TimeoutError):
                    failed += 1
                    continue
                if exchange.status == 200:
                    taken.append(exchange.seconds)
                else:
                    failed += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return taken, failed


async def streams(candidates: Sequence[Candidate], work: Work, rounds: int) -> AsyncIterator[Line]:
    """Eight streams at once at the engine's pace: tokens a second, in turns."""
    for number in range(-1, rounds):
        for candidate in _turns(candidates, number):
            began = time.perf_counter()
            async with AsyncExitStack() as opened:
                lanes = [await opened.enter_async_context(Connection(candidate.origin)) for _ in range(_STREAMS)]
                asked = [_question(f"{candidate.name} {lane}", number) for lane in range(_STREAMS)]
                requests = [_requests(candidate, work.paced, one, STREAM_TOKENS, stream=True) for one in asked]
                done = await asyncio.gather(*(lane.ask(request) for lane, request in zip(lanes, requests, strict=True)))
            tokens = sum(len(_pieces(_checked(candidate, exchange))[0]) for exchange in done)
            if number >= 0:
                seconds = max(exchange.ended for exchange in done) - began
                line = {"kind": "streams", "candidate": candidate.name, "round": number}
                yield {**line, "tokens": tokens, "seconds": seconds, "per_s": tokens / seconds}
            await _rest(work)


def memory(candidates: Sequence[Candidate]) -> Iterator[Line]:
    """Resident bytes of each candidate's processes by role, and the proportional set, which counts shared pages once."""
    for candidate in candidates:
        resident: dict[str, int] = {}
        shared_once: dict[str, int] = {}
        for pid, role in candidate.pids().items():
            try:
                found = psutil.Process(pid).memory_full_info()
            except psutil.NoSuchProcess:
                continue
            resident[role] = resident.get(role, 0) + found.rss
            shared_once[role] = shared_once.get(role, 0) + found.pss
        yield {"kind": "memory", "candidate": candidate.name, "rss": resident, "pss": shared_once}


def _cpu(roles: dict[int, str]) -> dict[str, float]:
    used: dict[str, float] = {}
    for pid, role in roles.items():
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        used[role] = used.get(role, 0.0) + times.user + times.system
    return used
