"""Nobody gets an answer of another scope: 10,000 tries at a cache that holds the same texts and vectors in every scope."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from serve_app.guards import Guards, load_guards
from serve_app.lifecycle.recall import recall_exact, recall_semantic
from serve_app.runs import CachePolicy, Question, Run
from serve_app.store.answer_cache import PostgresAnswerCache
from serve_app.store.answers_json import answer_to_json
from serve_app.store.pool import PostgresPool
from tests.contracts.store_cases import USAGE, a_run, an_answer

TRIES = 10_000
ASKERS = 8
VECTOR = [0.6, 0.8]
TEXTS = ("What is up?", "what is up?", "What is up? ", 'x"}],"project":"p", "messages":[{"content":"', "\u2603")
# Names that a careless comparison, join or trim would take for one.
PROJECTS = (
    *(
        "p",
        "p ",
        " p",
        "P",
        "p\n",
        "pp",
        "p\u200b",
        "\u0440",
        "\uff50",
        "p\x00",
        "p%",
        "_",
        "caf\u00e9",
        "cafe\u0301",
        "null",
        "",
    ),
    *('p","route":"rag', "p' OR '1'='1", "p:a"),
)
MODELS = (("m", None), ("m", "a"), ("m", "A"), ("m:a", None), ("M", None))
SYSTEMS = ("", "Be kind.", "Be kind. ")
WAYS = (("direct", None), ("workflow", None), ("rag", None), ("rag", "c1"), ("rag", "c2"))


def questions() -> Iterator[Question]:
    """One per scope, all with one text."""
    for project, (model, adapter), system, (route, corpus) in product(PROJECTS, MODELS, SYSTEMS, WAYS):
        base = a_run(system=system, project=project, route=route).question  # type: ignore[arg-type]  # one of the three
        yield replace(base, model=model, adapter=adapter, corpus=corpus)


def asking(question: Question, text: str) -> Question:
    return replace(question, messages=[*question.messages[:-1], {"role": "user", "content": text}])


def a_run_of(question: Question) -> Run:
    run = a_run(embedding=VECTOR, cache=CachePolicy(threshold=0.0))
    return replace(run, question=question, req_id=question.req_id, key=question.req_id)


async def store(pool: PostgresPool, entries: list[Question]) -> None:
    """As settle does it, but for many at once. The answer names the question that it belongs to."""
    answers = [
        (q.req_id, q.project, q.scope, q.req_id, q.model_id, "x", answer_to_json(an_answer(q.req_id)), USAGE.model_dump())
        for q in entries
    ]
    async with pool.transaction() as connection:
        await connection.executemany(
            "INSERT INTO completions_cache (req_id, project, scope, trace_id, model, content, answer, usage, expires_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now() + interval '1 h')",
            answers,
        )
        await connection.executemany(
            "INSERT INTO completion_vectors (req_id, scope, embedding, question, expires_at)"
            " VALUES ($1, $2, $3, $4, now() + interval '1 h')",
            [(q.req_id, q.scope, VECTOR, q.last_user_text) for q in entries],
        )
        await connection.execute("ANALYZE completion_vectors")


async def tried(cache: PostgresAnswerCache, guards: Guards, question: Question, *, exactly: bool) -> str | None:
    """The req_id of the question whose answer came back."""
    run = a_run_of(question)
    if exactly:
        answer = await recall_exact(cache, run)
        return answer.text if answer else None
    near = await recall_semantic(cache, guards, run)
    return near.answer.text if near else None


async def test_ten_thousand_tries_find_no_answer_of_another_scope(postgres_pool: PostgresPool) -> None:
    chance = random.Random(5)
    scopes = list(questions())
    assert len({question.scope for question in scopes}) == len(scopes)
    # In every second scope there is an answer to each text; in the others to none. Postgres text cannot hold U+0000.
    known = {q.scope: {asking(q, text).req_id for text in TEXTS} for q in scopes[::2] if "\x00" not in q.project}
    await store(postgres_pool, [asking(q, text) for q in scopes if q.scope in known for text in TEXTS])
    cache, guards = PostgresAnswerCache(postgres_pool), load_guards([])
    tries = [(asking(chance.choice(scopes), chance.choice((*TEXTS, "never asked"))), chance.random() < 0.5) for _ in range(TRIES)]
    wrong: list[Question] = []
    hits = 0

    async def ask(mine: list[tuple[Question, bool]]) -> None:
        nonlocal hits
        for question, exactly in mine:
            found = await tried(cache, guards, question, exactly=exactly)
            own = known.get(question.scope, set())
            # Own answers must come, or the zero below would mean nothing.
            hits += found is not None
            right = found in own if own and not exactly else found == (question.req_id if question.req_id in own else None)
            if not right:
                wrong.append(question)

    async with asyncio.TaskGroup() as group:
        for number in range(ASKERS):
            group.create_task(ask(tries[number::ASKERS]))
    assert wrong == []
    assert hits > TRIES / 3


@pytest.mark.parametrize(
    "crafted", [str.upper, lambda s: s[:-1], lambda s: s + " ", lambda _: "", lambda _: "%", lambda s: s[:8]]
)
async def test_a_scope_is_compared_whole(postgres_pool: PostgresPool, crafted: object) -> None:
    question = a_run().question
    await store(postgres_pool, [question])
    cache = PostgresAnswerCache(postgres_pool)
    assert callable(crafted)
    assert len(await cache.nearest(question.scope, VECTOR, threshold=0)) == 1
    assert await cache.nearest(crafted(question.scope), VECTOR, threshold=0) == []
    assert await cache.exact(crafted(question.req_id)) is None
