"""Where the outputs of a debate's steps are kept: a table beside Dagster's, on a real Postgres."""

import asyncio
import uuid

import pytest
import sqlalchemy
from dagster import DagsterInstance

from dagster_project.debate import Draft
from dagster_project.rounds import Held, Speaking
from dagster_project.warm.step_outputs import OutputKey, RunOutputs, StepOutputs
from dagster_project.warm.storage import PooledRunStorage
from serve_app.events import Usage
from serve_app.telemetry import logger

A = OutputKey("argue[A]")
DRAFT = Draft(task="A", model="small", text="Zürich", usage=Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3), round=2)
HELD = OutputKey("review_1", "held")


@pytest.fixture
def engine(instance: DagsterInstance) -> sqlalchemy.Engine:
    storage = instance.run_storage
    assert isinstance(storage, PooledRunStorage)
    return storage.engine


@pytest.fixture
def store(engine: sqlalchemy.Engine) -> StepOutputs:
    made = StepOutputs(engine)
    made.create()
    return made


def outputs(store: StepOutputs, root: str) -> RunOutputs:
    return RunOutputs(store, root, (Draft, Held))


def new_root() -> str:
    return str(uuid.uuid4())


async def test_workers_that_start_together_make_one_table(engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE IF EXISTS aifactory_step_outputs"))
    await asyncio.gather(*(asyncio.to_thread(StepOutputs(engine).create) for _ in range(6)))
    assert StepOutputs(engine).load(new_root()) == {}


def test_another_worker_finds_what_was_kept(store: StepOutputs) -> None:
    root = new_root()
    first = outputs(store, root)
    first.keep(A, DRAFT)
    held = Held(rounds=((DRAFT,),))
    first.keep(HELD, held)
    other = outputs(store, root)
    assert other.all() == {}
    other.recall()
    assert other.all() == {A: DRAFT, HELD: held}
    other.discard()
    assert store.load(root) == {}


def test_a_later_output_replaces_the_earlier(store: StepOutputs) -> None:
    root = new_root()
    kept = outputs(store, root)
    kept.keep(A, DRAFT)
    later = DRAFT.model_copy(update={"text": "Bern"})
    kept.keep(A, later)
    again = outputs(store, root)
    again.recall()
    assert again.find(A) == later
    store.discard(root)


def test_only_types_of_the_run_are_kept(store: StepOutputs) -> None:
    with pytest.raises(TypeError, match=r"is a Speaking; a debate's steps give \['Draft', 'Held'\]"):
        outputs(store, new_root()).keep(A, Speaking(take=1))


@pytest.mark.parametrize("raw", [b"", b"[1]", b'{"kind": "Later", "value": {}}', b'{"kind": "Draft", "value": {"task": 1}}'])
def test_what_cannot_be_read_is_left_out_and_its_step_runs_again(store: StepOutputs, raw: bytes) -> None:
    root = new_root()
    outputs(store, root).keep(HELD, Held())
    store.save(root, A, raw)
    other = outputs(store, root)
    other.recall()
    assert set(other.all()) == {HELD}
    store.discard(root)


def test_what_cannot_be_read_is_not_told_to_the_log(store: StepOutputs) -> None:
    root, lines = new_root(), list[str]()
    store.save(root, A, b'{"kind": "Draft", "value": {"task": "A", "model": "m", "text": ["my secret"]}}')
    sink = logger.add(lines.append, format="{message} {extra}")
    try:
        outputs(store, root).recall()
    finally:
        logger.remove(sink)
        store.discard(root)
    assert "argue[A]" in "".join(lines)
    assert "secret" not in "".join(lines)


def test_outputs_that_nobody_discards_go_with_age(store: StepOutputs, engine: sqlalchemy.Engine) -> None:
    old, young = new_root(), new_root()
    for root in (old, young):
        outputs(store, root).keep(A, DRAFT)
    with engine.begin() as connection:
        aged = sqlalchemy.text("UPDATE aifactory_step_outputs SET kept_at = kept_at - 100000 WHERE root_run_id = :root")
        connection.execute(aged, {"root": old})
    store.discard(new_root())
    assert store.load(old) == {}
    assert store.load(young) != {}
    store.discard(young)


def test_errors_do_not_tell_what_was_written(store: StepOutputs, engine: sqlalchemy.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE aifactory_step_outputs"))
    with pytest.raises(sqlalchemy.exc.ProgrammingError) as caught:
        outputs(store, new_root()).keep(A, DRAFT)
    assert "aifactory_step_outputs" in str(caught.value)
    assert "rich" not in str(caught.value)
    StepOutputs(engine).create()
