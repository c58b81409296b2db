"""The job `ingest`: a folder's texts become documents, documents become chunks with embeddings. One partition per project.

`documents` brings the table up to the folder: new and changed files are stored, removed files are forgotten. `chunks`
brings the chunks up to the documents: only what is stale is chunked and embedded. So running the job twice changes
nothing, and a job that ended half-way is finished by the next one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetSelection,
    Config,
    DynamicPartitionsDefinition,
    Failure,
    MaterializeResult,
    MetadataValue,
    asset,
    define_asset_job,
    in_process_executor,
)
from pydantic import Field

from dagster_project.parts import STACK, StackParts, StoreParts
from dagster_project.source_folder import Source, SourceError, read, scan
from serve_app.documents import Audit, Change, Documents
from serve_app.rag import Chunking, Refreshed, chunking_for, refresh_chunks
from serve_app.settings import Settings

JOB: Final = "ingest"
GROUP: Final = "knowledge"
_SHOWN: Final = 50  # names in metadata

projects: Final = DynamicPartitionsDefinition(name="projects")


class IngestConfig(Config):
    """What to take in."""

    path: str = Field(description="a folder of .txt and .md files, or one such file, on the machine that runs the job")


@dataclass
class Stored:
    """What `documents` did. `bad` files stay as they were stored before, if they were."""

    counts: dict[Change, int] = field(default_factory=lambda: dict.fromkeys(Change, 0))
    removed: int = 0
    missing: list[str] = field(default_factory=list)  # read well, and yet no document
    surplus: list[str] = field(default_factory=list)  # documents without a file


async def store_folder(documents: Documents, settings: Settings, project: str, source: Source) -> Stored:
    """Bring a project's documents up to what `scan` found; files that cannot be read are noted in `source.faults`."""
    stored = Stored()
    before = await documents.known(project, source.name)
    for path in source.paths:
        try:
            text = read(source, path, most_bytes=settings.document_max_bytes)
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
    stored = stack.run(JOB, lambda parts: store_folder(parts.documents, stack.settings, project, source))
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
