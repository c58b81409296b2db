"""bench/gateway: what the client reads off the wire, and what the raw lines add up to."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gateway.candidate import Ground, NotHad, served
from bench.gateway.summary import Line, goals_of, rows_of
from bench.gateway.table import table
from bench.gateway.wire import Connection, Exchange, request_bytes
from bench.gateway.work import work_of
from serve_app.local.processes import is_alive, record


def test_events_get_the_moment_of_their_last_byte() -> None:
    parts = [(1.0, b"id: 1\nda"), (2.0, b"ta: a\n\ndata: b\r\n"), (3.0, b"\r\n: keep-alive\n\ndata: [DONE]\n\n")]
    assert Exchange(0.0, 200, parts).events() == [(2.0, "a"), (3.0, "b"), (3.0, "[DONE]")]


async def test_a_connection_is_kept_and_opened_again_when_the_server_closes_it() -> None:
    served: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(0)
        for closing in (b"", b"connection: close\r\n"):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            served[-1] += 1
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n" + closing + b"\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Connection(origin, timeout_s=10) as connection:
            for _ in range(4):
                exchange = await connection.ask(request_bytes(origin, {"authorization": "Bearer k"}, {"model": "m"}))
                assert (exchange.status, exchange.body) == (200, b"hello")
                assert exchange.ended >= exchange.parts[-1][0] >= exchange.began
    assert served == [2, 2]


async def test_a_cut_connection_is_an_error() -> None:
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server:
        origin = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Connection(origin, timeout_s=10) as connection:
            with pytest.raises(ConnectionError, match="cut the connection"):
                await connection.ask(request_bytes(origin, {}, {}))


def _lines(group: str, name: str, whole: float, per_s: float) -> list[Line]:
    common: dict[str, Any] = {"group": group, "candidate": name}
    return [
        {**common, "kind": "candidate_up", "told": name, "cold_s": 2.0},
        {**common, "kind": "whole", "seconds": whole},
        {**common, "kind": "stream", "ttft": whole / 2, "gaps": [0.005]},
        {**common, "kind": "streams", "per_s": per_s},
        {**common, "kind": "load", "concurrency": 1, "answers": 10, "seconds": 1.0, "failed": 0},
        {**common, "kind": "load", "concurrency": 8, "answers": int(per_s), "seconds": 1.0, "failed": 1},
    ]


def test_what_a_candidate_adds_is_taken_over_the_engine_beside_it() -> None:
    slow = [*_lines("slow", "engine", 0.200, 500), *_lines("slow", "aifactory", 0.210, 490)]
    fast = [*_lines("fast", "engine", 0.100, 1000), *_lines("fast", "litellm", 0.140, 100)]
    rows = rows_of([*slow, *fast, {"group": "x", "kind": "not_had", "candidate": "ray", "why": "pip said no"}])
    assert rows["aifactory"].whole == [pytest.approx(0.010)]
    assert rows["litellm"].whole == [pytest.approx(0.040)]
    assert rows["aifactory"].best_rate() == (490, 8)
    held = {goal.what.split(",")[0]: goal.held for goal in goals_of(rows)}
    assert held["added latency of whole answers"]
    assert held["tokens a second of eight streams"]  # 490 of 500
    assert held["start to first answer"] is None  # Ray Serve LLM is missing
    assert [goal.held for goal in goals_of(rows) if "LiteLLM" in goal.what] == [True, True, True]
    assert "| ray | not installed: pip said no |" in table(rows)


def test_what_a_dead_server_has_started_is_ended_as_well(tmp_path: Path) -> None:
    """A worker in a session of its own, whose leader ends before it answers."""
    pid_file = tmp_path / "pid"
    worker = "subprocess.Popen(['sleep', '300'], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
    program = f"import pathlib, subprocess; pathlib.Path({str(pid_file)!r}).write_text(str({worker}.pid))"
    ground = Ground(work_of("simulated"), tmp_path, tmp_path)
    with pytest.raises(NotHad, match="ended at its start"), served(ground, "x", "", [sys.executable, "-c", program], 1):
        pass
    assert not is_alive(record(int(pid_file.read_text())))
