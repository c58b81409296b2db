"""The doubles hold what they say they hold, no more."""

import time

import pytest

from serve_app.errors import Overloaded
from serve_app.events import ChoiceEnd, Usage
from serve_app.runs import Answer, Outcome, Question, Run, RunStatus, new_trace_id
from serve_app.store.memory import InMemoryAnswerCache, InMemoryRunStore

ANSWER = Answer(model="m", messages=({"content": "x"},), ends=(ChoiceEnd(finish_reason="stop"),), usage=Usage())
DONE = Outcome(status=RunStatus.SUCCEEDED, reason="stop", usage=Usage(), answer=ANSWER)


def a_run(text: str) -> Run:
    question = Question(project="p", route="direct", model="m", adapter=None, messages=[{"role": "user", "content": text}])
    deadline = time.time() + 9
    return Run(trace_id=new_trace_id(), req_id=question.req_id, key=text, keyed=False, question=question, deadline=deadline)


async def test_the_oldest_ended_run_makes_room() -> None:
    store = InMemoryRunStore(max_runs=2)
    running, ended, latest = a_run("1"), a_run("2"), a_run("3")
    await store.claim(running, lease_s=9)
    await store.claim(ended, lease_s=9)
    await store.settle(ended, DONE)
    assert (await store.claim(latest, lease_s=9)).claimed
    assert await store.find(ended.trace_id) is None
    assert await store.find(running.trace_id) is not None


async def test_running_runs_are_not_forgotten() -> None:
    store = InMemoryRunStore(max_runs=1)
    await store.claim(a_run("1"), lease_s=9)
    with pytest.raises(Overloaded, match="all 1 runs"):
        await store.claim(a_run("2"), lease_s=9)


async def test_the_answer_written_longest_ago_goes_first() -> None:
    cache = InMemoryAnswerCache(max_entries=2)
    store = InMemoryRunStore(cache)
    runs = [a_run("1"), a_run("2"), a_run("3")]
    for run in runs:
        await store.claim(run, lease_s=9)
        await store.settle(run, DONE)
    assert [await cache.exact(run.req_id) is not None for run in runs] == [False, True, True]
