"""The worker's storage: what it writes is what webserver and daemon read, in order, and a loss is told."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from dagster import AssetMaterialization, DagsterEventType, DagsterInstance, DagsterRunStatus, OpExecutionContext, job, op
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.events.log import EventLogEntry
from dagster._core.execution.api import execute_run_iterator
from pydantic import SecretStr

from dagster_project.home import dagster_dir, dagster_dsn, dagster_yaml
from dagster_project.jobs import debate_job
from dagster_project.resources import Desk
from dagster_project.warm.executor import StepHost
from dagster_project.warm.instance import open_instance
from dagster_project.warm.storage import GroupCommitEventLog, PooledRunStorage
from serve_app.errors import Unavailable
from serve_app.settings import Settings


@pytest.fixture(scope="module")
def settings(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder: Path = tmp_path_factory.mktemp("dagster")
    return Settings(config="simulated", state_dir=folder, postgres_dsn=postgres_server)


@pytest.fixture(scope="module")
def instance(settings: Settings) -> Iterator[DagsterInstance]:
    made = open_instance(settings)
    yield made
    made.dispose()


# Waits until they have ended, half a minute at most for each; counts those that did.
END_WORKERS = """SELECT count(*) FILTER (WHERE pg_terminate_backend(pid, 30000)) FROM pg_stat_activity
  WHERE application_name = 'aifactory-worker'"""


@op
def tell(context: OpExecutionContext) -> None:
    for number in range(20):
        context.log.info(f"line {number}")
    context.log_event(AssetMaterialization("storage_test_asset"))


@job
def telling() -> None:
    tell()


def events_of(instance: DagsterInstance, run_id: str) -> list[EventLogEntry]:
    return list(instance.all_logs(run_id))


def test_the_stock_storage_reads_the_same_events_in_the_same_order(settings: Settings, instance: DagsterInstance) -> None:
    assert isinstance(instance.event_log_storage, GroupCommitEventLog)
    assert isinstance(instance.run_storage, PooledRunStorage)
    done = telling.execute_in_process(instance=instance)
    home = dagster_dir(settings)
    (home / "dagster.yaml").write_text(dagster_yaml(settings))
    with DagsterInstance.from_config(str(home)) as stock:
        seen = events_of(stock, done.run_id)
        run = stock.get_run_by_id(done.run_id)
        assert stock.get_latest_materialization_event(AssetMaterialization("storage_test_asset").asset_key) is not None
    assert [e.user_message for e in seen if e.user_message.startswith("line ")] == [f"line {n}" for n in range(20)]
    kinds = [e.dagster_event_type for e in seen if e.is_dagster_event]
    assert kinds[0] is DagsterEventType.RUN_START
    assert kinds[-1] is DagsterEventType.RUN_SUCCESS
    assert run is not None
    assert run.is_success
    assert [e.message for e in seen] == [e.message for e in events_of(instance, done.run_id)]


def test_events_lost_on_the_way_are_told_when_the_run_ends(instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    log = instance.event_log_storage
    assert isinstance(log, GroupCommitEventLog)
    begin = log._engine.begin
    failures: list[int] = []

    def broken() -> Any:
        failures.append(1)
        raise sqlalchemy.exc.OperationalError("INSERT", {}, Exception("server closed the connection"))

    monkeypatch.setattr("dagster_project.warm.storage._TRIES", 1)
    monkeypatch.setattr(log._engine, "begin", broken)
    with pytest.raises(sqlalchemy.exc.OperationalError, match="closed the connection"):
        telling.execute_in_process(instance=instance)
    monkeypatch.setattr(log._engine, "begin", begin)
    assert failures
    assert telling.execute_in_process(instance=instance).success, "one bad run must not spoil the next"


def test_a_connection_that_broke_is_replaced(instance: DagsterInstance, terminate_connections: Callable[[], None]) -> None:
    assert telling.execute_in_process(instance=instance).success
    terminate_connections()
    assert telling.execute_in_process(instance=instance).success


@pytest.fixture
def terminate_connections(settings: Settings) -> Callable[[], None]:
    """Ends the worker's connections, as a restart of Postgres would."""

    def terminate() -> None:
        engine = sqlalchemy.create_engine(dagster_dsn(settings).replace("postgresql://", "postgresql+psycopg2://"))
        with engine.connect() as connection:
            ended = connection.execute(sqlalchemy.text(END_WORKERS)).scalar()
        engine.dispose()
        assert ended

    return terminate


def test_a_database_that_is_away_is_named(settings: Settings) -> None:
    away = settings.model_copy(update={"postgres_dsn": SecretStr("postgresql://nobody@127.0.0.1:1/app")})
    with pytest.raises(Unavailable, match="Dagster's database cannot be reached"):
        open_instance(away)


def test_dagsters_database_stands_beside_ours() -> None:
    mine = Settings(config="simulated", postgres_dsn=SecretStr("postgres://u:p%40w@db:6000/app?sslmode=require"))
    assert dagster_dsn(mine) == "postgresql://u:p%40w@db:6000/dagster?sslmode=require"
    with pytest.raises(ValueError, match="postgres_dsn is not set"):
        dagster_dsn(Settings(config="simulated"))


def test_the_worker_and_the_webserver_mean_the_same_job(instance: DagsterInstance) -> None:
    """Else the UI shows a run's job as an old version of itself."""
    shown = debate_job()
    loop = asyncio.new_event_loop()
    host = StepHost(loop, steps=1, steps_per_run=1)
    assert debate_job(Desk(), host).get_job_snapshot_id() == shown.get_job_snapshot_id()
    host.close()
    loop.close()


def test_a_launch_without_a_worker_says_what_to_do(instance: DagsterInstance) -> None:
    run = instance.create_run_for_job(job_def=debate_job())
    told = [str(event.event_specific_data) for event in execute_run_iterator(InMemoryJob(debate_job()), run, instance)]
    ended = instance.get_run_by_id(run.run_id)
    assert ended is not None
    assert ended.status is DagsterRunStatus.FAILURE
    assert "ask for a debate through the API" in "".join(told)


def test_definitions_load_without_ray_and_vllm() -> None:
    """The webserver and the daemon load them, on machines that may have neither, and shall start quickly."""
    code = (
        "import sys; from dagster_project.definitions import defs; defs.get_repository_def().load_all_definitions();"
        "print([m for m in ('ray', 'vllm', 'torch', 'nats', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[]", done.stderr
