"""The sensor `waiting_documents`: documents that came over the API are chunked by the job `ingest`, without a folder."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus, SensorResult, SkipReason, build_sensor_context

from dagster_project import ingest
from dagster_project.definitions import defs
from dagster_project.home import SETTINGS_FILE, settings_json
from serve_app.documents import API_SOURCE
from serve_app.settings import Settings
from serve_app.store.documents import PostgresDocuments
from serve_app.store.pool import PostgresPool


class Stand:
    """One database and the sensor that looks into it."""

    def __init__(self, instance: DagsterInstance, settings: Settings, documents: PostgresDocuments) -> None:
        self.instance, self.settings, self.documents = instance, settings, documents

    async def look(self) -> SensorResult | SkipReason:
        """What the sensor says now."""
        return await asyncio.to_thread(self._look)

    def _look(self) -> SensorResult | SkipReason:
        Path(self.instance.root_directory, SETTINGS_FILE).write_text(settings_json(self.settings))
        told = ingest.waiting_documents(build_sensor_context(instance=self.instance))
        assert isinstance(told, SensorResult | SkipReason)
        return told

    async def launch(self, told: SensorResult) -> bool:
        """Do what the sensor asked for, as the daemon would."""
        return await asyncio.to_thread(self._launch, told)

    def _launch(self, told: SensorResult) -> bool:
        for added in told.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions(added.partitions_def_name, list(added.partition_keys))
        [request] = told.run_requests or []
        done = defs.resolve_job_def("ingest").execute_in_process(
            instance=self.instance,
            partition_key=request.partition_key,
            asset_selection=request.asset_selection,
            tags=request.tags,
        )
        return done.success


@pytest.fixture
async def stand(instance: DagsterInstance, postgres_dsn: str) -> AsyncIterator[Stand]:
    pool = PostgresPool(postgres_dsn)
    yield Stand(instance, Settings(config="simulated", postgres_dsn=postgres_dsn), PostgresDocuments(pool))
    await pool.close()


async def test_a_document_from_the_api_is_chunked_and_others_are_left_alone(stand: Stand) -> None:
    nothing = await stand.look()
    assert isinstance(nothing, SkipReason)
    assert nothing.skip_message == "no document waits"
    await stand.documents.put("blue", API_SOURCE, "notes", "The valve QX-7731 is replaced every nine months.")
    told = await stand.look()
    assert isinstance(told, SensorResult)
    [request] = told.run_requests or []
    assert (request.partition_key, request.tags["project"]) == ("blue", "blue")
    again = await stand.look()
    assert isinstance(again, SensorResult)
    assert (again.run_requests or [])[0].run_key == request.run_key, "the daemon launches one run of these contents"
    assert await stand.launch(told)
    [hit] = await stand.documents.search("blue", "QX-7731", [0.0] * 384, limit=3)
    assert hit.source_path == "notes"
    assert isinstance(await stand.look(), SkipReason)


async def test_a_project_that_is_being_ingested_is_not_launched_again(stand: Stand) -> None:
    await stand.documents.put("green", API_SOURCE, "notes", "One.")
    job = defs.resolve_job_def("ingest")
    config = {"ops": {"documents": {"config": {"path": "/nowhere"}}}}
    tags = {"dagster/partition": "green"}
    run = stand.instance.create_run_for_job(job, run_config=config, status=DagsterRunStatus.STARTED, tags=tags)
    busy = await stand.look()
    assert isinstance(busy, SkipReason)
    assert busy.skip_message == "1 projects wait, all of them being ingested"
    stand.instance.report_run_failed(run, "it is over")
    assert isinstance(await stand.look(), SensorResult)


async def test_postgres_away_is_said_and_looked_for_again(stand: Stand) -> None:
    away = Stand(stand.instance, Settings(config="simulated", postgres_dsn="postgresql://x@127.0.0.1:1/x"), stand.documents)
    told = await away.look()
    assert isinstance(told, SkipReason)
    assert "Postgres" in str(told.skip_message)
