"""`aifactory ingest` against a real Dagster: its webserver launches the job as a process, as on a running stack."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from typer.testing import CliRunner

from dagster_project.warm.instance import open_instance
from serve_app import cli
from serve_app.local.ingest import IngestError, ingest
from serve_app.local.state import StackState
from serve_app.settings import Settings
from tests.integration.on_dagster_page.page import serving

START_S = 120.0


@pytest.fixture
def dagster(postgres_dsn: str, tmp_path: Path) -> Iterator[str]:
    """The address of a webserver, started as the stack starts it."""
    settings = Settings(config="simulated", state_dir=tmp_path / "state", postgres_dsn=postgres_dsn)
    open_instance(settings).dispose()  # makes Dagster's tables
    with serving(settings, tmp_path) as ui:
        yield ui.url


@pytest.mark.timeout(400)
def test_a_folder_is_ingested_and_the_counts_come_back(
    dagster: str, postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("Paris is the capital of France.")
    (folder / "bad.txt").write_bytes(b"\xff\xfe")
    done = ingest(dagster, folder, "blue", START_S)
    assert done.summary() == (
        "1 added, 0 changed, 0 unchanged, 0 removed, 1 bad; 1 chunks embedded; the project has 1 documents, 1 chunks"
    )
    assert list(done.faults) == ["bad.txt"]
    assert asyncio.run(_chunks(postgres_dsn)) == [("blue", "Paris is the capital of France.", 384)]

    here = StackState(
        config="simulated", state_dir=tmp_path, run_dir=tmp_path, host="127.0.0.1", api_port=1, dagster_port=_port(dagster)
    )
    monkeypatch.setattr(cli, "_running_state", lambda: here)
    command = CliRunner().invoke(cli.app, ["ingest", str(folder), "--project", "blue"])
    assert command.exit_code == 1, "a file was bad"
    assert command.stdout.startswith("0 added, 0 changed, 1 unchanged, 0 removed, 1 bad; 0 chunks embedded")
    assert "bad.txt: not UTF-8 (byte 0)" in command.stderr

    with pytest.raises(IngestError, match=r"ended as FAILURE: 'not a name' cannot name a project"):
        ingest(dagster, folder, "not a name", START_S)
    with pytest.raises(IngestError, match="goes on, watch it in Dagster's UI"):
        ingest(dagster, folder, "blue", 0)


def test_without_a_webserver_the_cure_is_named(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="aifactory status"):
        ingest("http://127.0.0.1:1", tmp_path, "blue", 1)


def test_a_path_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="does not exist: name a folder"):
        ingest("http://127.0.0.1:1", tmp_path / "none", "blue", 1)


def test_the_command_needs_a_running_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFACTORY_STATE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("AIFACTORY_CONFIG", "simulated")
    command = CliRunner().invoke(cli.app, ["ingest", str(tmp_path), "--project", "blue"])
    assert "start it with scripts/up" in str(command.exception)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


async def _chunks(dsn: str) -> list[tuple[str, str, int]]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch("SELECT project, content, vector_dims(embedding) FROM chunks")
        return [tuple(row) for row in rows]
    finally:
        await connection.close()
