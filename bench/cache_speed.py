"""What a look-up in the answer cache costs, by size of the cache and of the scope, and what a miss adds to the first token.

    python bench/cache_speed.py [--rows 10000,200000,1000000]   # on an embedded Postgres of its own
    python bench/cache_speed.py --api [--rounds 40]             # against the running stack: first token with and without

The first goes through the product's own code: the embedder, the guards and PostgresAnswerCache, one question at a time, with
questions of 16 tokens that nobody asked before. Rows are random unit vectors; three scopes hold 100, 1,000 and 5,000 (the
default cap), the rest is spread over scopes of 500. The second asks questions that are in no cache,
alternately with the cache and bypassing it.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import numpy as np

from bench.ending import end_on_sigterm
from bench.first_token import AIFACTORY, first_token
from bench.gateway.summary import quantile
from bench.own_postgres import own_pool
from serve_app.embeddings import OnnxEmbedder, load_embedder
from serve_app.events import ChoiceEnd, Usage
from serve_app.guards import Guards, load_guards
from serve_app.lifecycle.recall import embed_question, recall_exact, recall_semantic
from serve_app.runs import Answer, Question, Run, new_trace_id
from serve_app.settings import Settings
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.answers_json import answer_to_json
from serve_app.store.pool import PostgresPool

_SCOPES: Final = (100, 1_000, 5_000)
_OTHERS: Final = 500  # rows of every other scope
_STORED: Final = "What is the average distance between the earth and the moon in kilometers today?"
_ROUNDS: Final = 60
_BATCH: Final = 5_000  # rows written in one transaction
_ANSWER_COLUMNS: Final = ("req_id", "project", "scope", "trace_id", "model", "content", "answer", "usage", "expires_at")
_VECTOR_COLUMNS: Final = ("req_id", "scope", "embedding", "question", "expires_at")


def main() -> None:
    """Prints one table."""
    end_on_sigterm()
    parser = argparse.ArgumentParser(description="speed of the answer cache; see bench/cache_speed.py")
    parser.add_argument("--rows", default="10000,200000,1000000")
    parser.add_argument("--api", action="store_true", help="measure the running stack instead")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    if options.api:
        asyncio.run(_first_tokens(options.rounds))
    else:
        asyncio.run(_look_ups([int(part) for part in options.rows.split(",")]))


async def _look_ups(sizes: list[int]) -> None:
    settings = Settings(embedding_cache_size=0)  # every question is new
    embedder = load_embedder(settings)
    try:
        async with own_pool(timeout_s=600) as pool:
            await _table(sizes, pool, embedder, load_guards(settings.cache_guards))
    finally:
        embedder.close()


async def _table(sizes: list[int], pool: PostgresPool, embedder: OnnxEmbedder, guards: Guards) -> None:
    print("| rows | scope | exact hit, ms | embedding | search | semantic hit, all of it | miss, all of it |")
    print("|---|---|---|---|---|---|---|")
    filled = 0
    cache = PostgresAnswerCache(pool)
    for rows in sizes:
        await _fill(pool, filled, rows)
        filled = rows
        for scope_rows in _SCOPES:
            print(f"| {rows:,} | {scope_rows:,} | {await _measured(pool, cache, embedder, guards, scope_rows)} |", flush=True)


def _run(text: str, scope_rows: int) -> Run:
    question = Question(
        project="bench",
        route="direct",
        model="m",
        adapter=None,
        messages=[{"role": "user", "content": text}],
        params={"top_k": scope_rows},
    )
    return Run(new_trace_id(), question.req_id, question.req_id, keyed=False, question=question, deadline=time.time() + 600)


async def _fill(pool: PostgresPool, start: int, end: int) -> None:
    """Rows start..end: first the measured scopes, then the others."""
    numbers = np.random.default_rng(start)
    scopes = [_run("", rows).question.scope for rows in _SCOPES for _ in range(rows)]
    answer = answer_to_json(Answer("m", ({"role": "assistant", "content": "a"},), (ChoiceEnd(finish_reason="stop"),), Usage()))
    expires_at = datetime.now(UTC) + timedelta(days=1)
    for first in range(start, end, _BATCH):
        ids = range(first, min(end, first + _BATCH))
        named = [scopes[n] if n < len(scopes) else f"other {n // _OTHERS}" for n in ids]
        vectors = numbers.standard_normal((len(ids), 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        answers = [
            (f"row {n}", "bench", scope, f"row {n}", "m", "a", answer, {}, expires_at)
            for n, scope in zip(ids, named, strict=True)
        ]
        rows = [
            (f"row {n}", scope, vector, "a question", expires_at) for n, scope, vector in zip(ids, named, vectors, strict=True)
        ]
        async with pool.transaction() as connection:
            await connection.copy_records_to_table("completions_cache", records=answers, columns=_ANSWER_COLUMNS)
            await connection.copy_records_to_table("completion_vectors", records=rows, columns=_VECTOR_COLUMNS)
    async with pool.connection() as connection:
        await connection.execute("ANALYZE completions_cache")
        await connection.execute("ANALYZE completion_vectors")


async def _measured(
    pool: PostgresPool, cache: PostgresAnswerCache, embedder: OnnxEmbedder, guards: Guards, scope_rows: int
) -> str:
    stored = await embed_question(embedder, guards, _run(_STORED, scope_rows))
    assert stored.embedding is not None
    async with pool.transaction() as connection:  # in the place of one of the scope's rows
        await connection.execute(
            "UPDATE completion_vectors SET embedding = $2::text::halfvec, question = $3 "
            "WHERE req_id = (SELECT min(req_id) FROM completion_vectors WHERE scope = $1)",
            stored.question.scope, str(stored.embedding), _STORED,
        )  # fmt: skip
    hit_id = await _id_in(pool, stored.question.scope)

    async def exact(number: int) -> None:
        assert await recall_exact(cache, replace(stored, req_id=hit_id)) is not None, number

    async def embedding(number: int) -> None:
        assert (await embed_question(embedder, guards, _run(_asked(number), scope_rows))).embedding

    async def search(_: int) -> None:
        await cache.nearest(stored.question.scope, stored.embedding or [], threshold=0.92)

    async def semantic(number: int) -> None:
        run = _run(_STORED + " " * (number + 1), scope_rows)
        assert await recall_exact(cache, run) is None
        assert await recall_semantic(cache, guards, await embed_question(embedder, guards, run)) is not None, number

    async def miss(number: int) -> None:
        run = _run(_asked(number + 1000), scope_rows)
        assert await recall_exact(cache, run) is None
        assert await recall_semantic(cache, guards, await embed_question(embedder, guards, run)) is None, number

    kinds: list[Callable[[int], Awaitable[None]]] = [exact, embedding, search, semantic, miss]
    taken: dict[int, list[float]] = {place: [] for place in range(len(kinds))}
    for number in range(-5, _ROUNDS):
        for place, kind in enumerate(kinds):
            started = time.perf_counter()
            await kind(number + 5)
            if number >= 0:  # the first rounds warm up
                taken[place].append((time.perf_counter() - started) * 1000)
    return " | ".join(_told(values) for values in taken.values())


async def _id_in(pool: PostgresPool, scope: str) -> str:
    async with pool.connection() as connection:
        return str(await connection.fetchval("SELECT min(req_id) FROM completion_vectors WHERE scope = $1", scope))


def _asked(number: int) -> str:
    """A question of 16 tokens that was not asked before."""
    return f"Which of the {number + 20} old bridges over the river is the longest one?"


def _told(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} (p90 {quantile(values, 0.9):.1f})"


def _running_stack() -> tuple[str, dict[str, str], str]:
    """API address, login and model."""
    status = json.loads(subprocess.run([AIFACTORY, "status", "--json"], capture_output=True, text=True, check=False).stdout)
    if not status["ready"]:
        sys.exit("the stack is not ready: run scripts/up first")
    login = {"Authorization": f"Bearer {Path(status['api_key_file']).read_text().strip()}"}
    return status["api"], login, status["replicas"][0]["model"]


async def _first_tokens(rounds: int) -> None:
    api, login, model = _running_stack()
    taken: dict[str, list[float]] = {"use": [], "bypass": []}
    async with httpx.AsyncClient(base_url=api, headers=login, timeout=120, trust_env=False) as http:
        for number in range(-3, rounds):
            for mode in ("use", "bypass") if number % 2 else ("bypass", "use"):
                asked = f"Which of the {time.time_ns() % 10**6} old bridges over the river is the longest one?"
                body = {"model": model, "max_tokens": 2, "messages": [{"role": "user", "content": asked}]}
                seconds, _ = await first_token(http, body, cache=mode)
                if number >= 0:
                    taken[mode].append(seconds * 1000)
    for mode, values in taken.items():
        print(f"  first token, cache {mode:7} ms: {_told(values)}")
    cost, low, high = _cost(np.array(taken["use"]), np.array(taken["bypass"]))
    share = 100 / statistics.median(taken["bypass"])
    print(
        f"  a miss costs {cost:.1f} ms (95 % interval {low:.1f} to {high:.1f}), {cost * share:.1f} % ({low * share:.1f} to "
        f"{high * share:.1f}) of the first token of {model}, {rounds} rounds"
    )


def _cost(use: np.ndarray, bypass: np.ndarray) -> tuple[float, float, float]:
    """Median of the differences within a round, and its 95 % interval by a bootstrap over the rounds.

    The two of a round meet the same noise; single ones scatter by far more than what is looked for.
    """
    differences = use - bypass
    drawn = np.random.default_rng(0).integers(0, len(differences), (2000, len(differences)))
    low, high = np.quantile(np.median(differences[drawn], axis=1), [0.025, 0.975])
    return float(np.median(differences)), float(low), float(high)


if __name__ == "__main__":
    main()
