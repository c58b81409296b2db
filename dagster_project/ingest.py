"""The job `ingest`: a folder's texts become documents, documents become chunks with embeddings. One partition per project.

`documents` brings the table up to the folder: new and changed files are stored, removed files are forgotten. `chunks`
brings the chunks up to the documents: only what is stale is chunked and embedded. So running the job twice changes
nothing, and a job that ended half-way is finished by the next one.
"""

import asyncio
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetSelection,
    Config,
    DefaultSensorStatus,
    DynamicPartitionsDefinition,
    Failure,
    MaterializeResult,
    MetadataValue,
    RunRequest,
    RunsFilter,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    asset,
    define_asset_job,
    in_process_executor,
    sensor,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from pydantic import Field

from dagster_project.home import stored_settings
from dagster_project.parts import STACK, StackParts, StoreParts
from dagster_project.source_folder import Source, SourceError, read, scan
from serve_app.documents import Audit, Change, Documents
from serve_app.errors import AifactoryError
from serve_app.parsers import Bounds
from serve_app.rag import Chunking, Refreshed, chunking_for, refresh_chunks
from serve_app.settings import Settings
from serve_app.store.documents import PostgresDocuments
from serve_app.store.pool import PostgresPool

JOB: Final = "ingest"
GROUP: Final = "knowledge"
_SHOWN: Final = 50  # names in metadata
_LOOK_EVERY_S: Final = 10
_TRY_AGAIN_S: Final = 300  # for what still waits though a run has ended
_PROJECTS_AT_ONCE: Final = 4  # runs that one look may launch; each is a process

projects: Final = DynamicPartitionsDefinition(name="projects")


class IngestConfig(Config):
    """What to take in."""

    path: str = Field(description="a folder of texts, Markdown, HTML and PDF files, or one such file, where the job runs")
    allow_empty: bool = Field(False, description="an empty folder forgets all documents that came from it")


@dataclass
class Stored:
    """What `documents` did. `bad` files stay as they were stored before, if they were."""

    counts: dict[Change, int] = field(default_factory=lambda: dict.fromkeys(Change, 0))
    removed: int = 0
    missing: list[str] = field(default_factory=list)  # read well, and yet no document
    surplus: list[str] = field(default_factory=list)  # documents without a file


async def store_folder(
    documents: Documents, settings: Settings, project: str, source: Source, *, allow_empty: bool = False
) -> Stored:
    """Bring a project's documents up to what `scan` found; files that cannot be read are noted in `source.faults`.

    Raises ValueError for a folder without a text from which documents came before, unless that is wanted: a mistyped path
    or a disk that is not mounted would make the project forget.
    """
    stored, bounds = Stored(), Bounds.of(settings)
    before = await documents.known(project, source.name)
    if source.whole and before and not source.paths and not allow_empty:
        raise ValueError(
            f"{source.name} holds no text, and {len(before)} documents came from it: they would all be forgotten. "
            "If that is wanted, say so: --allow-empty"
        )
    for path in source.paths:
        try:
            text = read(source, path, bounds)
        except SourceError as error:
            source.faults[path] = str(error)
            continue
        stored.counts[await documents.put(project, source.name, path, text)] += 1
    if source.whole:
        stored.removed = await documents.remove(project, source.name, sorted(before.keys() - source.paths))
    now = await documents.known(project, source.name)
    stored.missing = [path for path in source.paths if path not in now and path not in source.faults]
    stored.surplus = sorted(now.keys() - source.paths) if source.whole else []
    return stored


@asset(
    partitions_def=projects,
    group_name=GROUP,
    required_resource_keys={STACK},
    check_specs=[
        AssetCheckSpec("every_file_was_read", asset="documents", description="no file was left out because of a fault"),
        AssetCheckSpec("as_many_documents_as_files", asset="documents", description="the table holds what the folder holds"),
    ],
)
def documents(context: AssetExecutionContext, config: IngestConfig) -> MaterializeResult:  # type: ignore[type-arg] # Dagster looks for the bare class
    """Texts of a project, from a folder. Their content is in Postgres (table documents)."""
    stack: StackParts = context.resources.stack
    project = context.partition_key
    try:
        source = scan(Path(config.path), most_files=stack.settings.documents_per_folder)
    except SourceError as error:
        raise Failure(str(error)) from error
    stored = stack.run(
        JOB, lambda parts: store_folder(parts.documents, stack.settings, project, source, allow_empty=config.allow_empty)
    )
    return MaterializeResult(
        metadata={
            "project": project,
            "source": source.name,
            "files": len(source.paths),
            "skipped": source.skipped,
            **{change.value: stored.counts[change] for change in Change},
            "removed": stored.removed,
            "bad": len(source.faults),
            "faults": MetadataValue.json(dict(sorted(source.faults.items())[:_SHOWN])),
        },
        check_results=[
            AssetCheckResult(
                check_name="every_file_was_read",
                passed=not source.faults,
                severity=AssetCheckSeverity.WARN,
                metadata={"faults": MetadataValue.json(dict(sorted(source.faults.items())[:_SHOWN]))},
            ),
            AssetCheckResult(
                check_name="as_many_documents_as_files",
                passed=not stored.missing and not stored.surplus,
                metadata={"missing": stored.missing[:_SHOWN], "surplus": stored.surplus[:_SHOWN]},
            ),
        ],
    )


@dataclass(frozen=True, slots=True)
class Indexed:
    """What `chunks` did, and how the project's chunks stand now."""

    refreshed: Refreshed
    audit: Audit
    chunking: Chunking
    model: str
    dimensions: int


async def index_project(parts: StoreParts, settings: Settings, project: str) -> Indexed:
    """Chunk and embed what is stale, then look at all of it."""
    embedder = parts.embedder
    chunking = chunking_for(embedder, max_tokens=settings.chunk_tokens, overlap=settings.chunk_overlap_tokens)
    refreshed = await refresh_chunks(parts.documents, embedder, project, chunking)
    audit = await parts.documents.audit(project, made_with=chunking.made_with(embedder), dimensions=embedder.dimensions)
    return Indexed(refreshed, audit, chunking, embedder.model_id, embedder.dimensions)


@asset(
    deps=[documents],
    partitions_def=projects,
    group_name=GROUP,
    required_resource_keys={STACK},
    check_specs=[
        AssetCheckSpec("every_chunk_has_an_embedding", asset="chunks", description="of the length that the model makes"),
        AssetCheckSpec("no_orphan_chunks", asset="chunks", description="every chunk belongs to a document of its project"),
        AssetCheckSpec("no_stale_documents", asset="chunks", description="every document is chunked as it stands now"),
    ],
)
def chunks(context: AssetExecutionContext) -> MaterializeResult:  # type: ignore[type-arg] # Dagster looks for the bare class
    """Passages of a project's documents, with embeddings, in Postgres (table chunks)."""
    stack: StackParts = context.resources.stack
    project = context.partition_key
    indexed = stack.run(JOB, lambda parts: index_project(parts, stack.settings, project))
    audit = indexed.audit
    return MaterializeResult(
        metadata={
            "project": project,
            "documents": audit.documents,
            "chunks": audit.chunks,
            "documents_chunked": indexed.refreshed.documents,
            "chunks_embedded": indexed.refreshed.chunks,
            "embedding_model": indexed.model,
            "dimensions": indexed.dimensions,
            "chunk_tokens": indexed.chunking.max_tokens,
            "chunk_overlap_tokens": indexed.chunking.overlap,
        },
        check_results=[
            _none("every_chunk_has_an_embedding", audit.misfits),
            _none("no_orphan_chunks", audit.orphans),
            _none("no_stale_documents", audit.stale),
        ],
    )


def _none(check: str, found: int) -> AssetCheckResult:
    return AssetCheckResult(check_name=check, passed=found == 0, metadata={"found": found})


# One process for both steps: starting another one costs more than the steps do.
ingest_job = define_asset_job(
    JOB,
    selection=AssetSelection.assets(documents, chunks),
    executor_def=in_process_executor,
    description="Take in a folder's texts as the knowledge of a project",
)


@cache
def _wanted(source: str, model: str, max_tokens: int, overlap: int) -> str:
    """How chunks are to be made. Loads the model, once in the life of the process that looks."""
    from serve_app.embeddings import load_embedder

    embedder = load_embedder(Settings(embedding_source=source, embedding_model=model, embedding_cache_size=0))
    try:
        return chunking_for(embedder, max_tokens=max_tokens, overlap=overlap).made_with(embedder)
    finally:
        embedder.close()


async def waiting_projects(settings: Settings, made_with: str) -> dict[str, str]:
    """See Documents.stale_projects. Raises errors.Unavailable when Postgres is away."""
    if settings.postgres_dsn is None:
        return {}
    pool = PostgresPool(settings.postgres_dsn.get_secret_value(), size=1, application_name=f"aifactory-{JOB}-sensor")
    try:
        return await PostgresDocuments(pool).stale_projects(made_with=made_with, limit=_PROJECTS_AT_ONCE)
    finally:
        await pool.close()


@sensor(
    name="waiting_documents",
    job=ingest_job,
    minimum_interval_seconds=_LOOK_EVERY_S,
    default_status=DefaultSensorStatus.RUNNING,
    description="Documents sent over the API wait to be chunked: launches `ingest` for their project, without its folder part",
)
def waiting_documents(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    """Never two runs of a project side by side, and the same contents are tried again after some minutes only."""
    settings = stored_settings(context.instance.root_directory)
    made_with = _wanted(settings.embedding_source, settings.embedding_model, settings.chunk_tokens, settings.chunk_overlap_tokens)
    try:
        waiting = asyncio.run(waiting_projects(settings, made_with))
    except AifactoryError as error:
        return SkipReason(error.message)
    busy = {
        run.tags.get("dagster/partition")
        for run in context.instance.get_runs(RunsFilter(job_name=JOB, statuses=NOT_FINISHED_STATUSES))
    }
    free = {project: contents for project, contents in waiting.items() if project not in busy}
    if not free:
        return SkipReason(f"{len(waiting)} projects wait, all of them being ingested" if waiting else "no document waits")
    return SensorResult(
        run_requests=[
            RunRequest(
                run_key=f"{project}/{contents}/{made_with}/{int(time.time() // _TRY_AGAIN_S)}",
                partition_key=project,
                asset_selection=[AssetKey("chunks")],
                tags={"project": project},
            )
            for project, contents in free.items()
        ],
        dynamic_partitions_requests=[projects.build_add_request(list(free))],
    )
