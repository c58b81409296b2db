"""Documents on Postgres."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from serve_app.documents import NO_CORPUS, Audit, Change, Chunk, Document, DocumentEntry, Hit, content_hash
from serve_app.store.api_keys import check_project
from serve_app.store.pool import Connection, PostgresPool
from serve_app.store.queries import load_queries

_BATCH: Final = 500  # chunks sent in one go: each has the pool's time for a statement


class PostgresDocuments:
    """The tables documents and chunks."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool
        self._queries = load_queries()

    async def known(self, project: str, source: str) -> dict[str, str]:
        """See documents.Documents."""
        async with self._pool.connection() as connection:
            rows = self._queries.documents_of_source(connection, project=project, source=source)
            return {row["source_path"]: row["content_hash"] async for row in rows}

    async def put(self, project: str, source: str, source_path: str, content: str) -> Change:
        """See documents.Documents."""
        check_document(project, content)
        async with self._pool.transaction() as connection:
            await self._queries.add_projects(connection, projects=[project])
            row = await self._queries.put_document(
                connection,
                project=project,
                source=source,
                source_path=source_path,
                content=content,
                content_hash=content_hash(content),
            )
        if row is None:
            return Change.UNCHANGED
        return Change.ADDED if row["added"] else Change.CHANGED

    async def remove(self, project: str, source: str, source_paths: Sequence[str]) -> int:
        """See documents.Documents."""
        async with self._pool.transaction() as connection:
            rows = self._queries.remove_documents(connection, project=project, source=source, source_paths=list(source_paths))
            removed = len([row async for row in rows])
            if removed:
                await self._change_corpus(connection, project)
        return removed

    async def find(self, project: str, document_id: str) -> Document | None:
        """See documents.Documents."""
        identifier = _identifier(document_id)
        if identifier is None:
            return None
        async with self._pool.connection() as connection:
            row = await self._queries.find_document(connection, project=project, document_id=identifier)
        return None if row is None else Document(**{**row, "document_id": str(row["document_id"])})

    async def stale(self, project: str, *, made_with: str, limit: int) -> list[str]:
        """See documents.Documents."""
        async with self._pool.connection() as connection:
            rows = self._queries.stale_documents(connection, project=project, made_with=made_with, most=limit)
            return [str(row["document_id"]) async for row in rows]

    async def replace_chunks(self, document: Document, chunks: Sequence[Chunk], *, made_with: str) -> bool:
        """See documents.Documents."""
        key = {"project": document.project, "document_id": UUID(document.document_id)}
        rows = [
            {
                **key,
                "ordinal": ordinal,
                "content": chunk.content,
                "start_char": chunk.start,
                "end_char": chunk.end,
                "tokens": chunk.tokens,
                "embedding": list(chunk.embedding),
            }
            for ordinal, chunk in enumerate(chunks)
        ]
        async with self._pool.transaction() as connection:
            if await self._queries.lock_document(connection, **key, content_hash=document.content_hash) is None:
                return False
            await self._queries.delete_chunks(connection, **key)
            for first in range(0, len(rows), _BATCH):
                await self._queries.insert_chunks(connection, rows[first : first + _BATCH])
            await self._queries.mark_chunked(connection, **key, made_with=made_with)
            await self._change_corpus(connection, document.project)
        return True

    async def audit(self, project: str, *, made_with: str, dimensions: int) -> Audit:
        """See documents.Documents."""
        async with self._pool.connection() as connection:
            row = await self._queries.audit_documents(connection, project=project, made_with=made_with, dimensions=dimensions)
        return Audit(**row)

    async def entry(self, project: str, document_id: str, *, made_with: str) -> DocumentEntry | None:
        """See documents.Documents."""
        identifier = _identifier(document_id)
        return None if identifier is None else await self._show(project, made_with, document_id=identifier)

    async def entry_at(self, project: str, source: str, source_path: str, *, made_with: str) -> DocumentEntry | None:
        """See documents.Documents."""
        return await self._show(project, made_with, source=source, source_path=source_path)

    async def entries(self, project: str, *, after: str | None, limit: int, made_with: str) -> list[DocumentEntry]:
        """See documents.Documents."""
        last = None if after is None else _identifier(after)
        if after is not None and last is None:
            return []
        async with self._pool.connection() as connection:
            rows = self._queries.list_documents(connection, project=project, after=last, most=limit, made_with=made_with)
            return [_entry(row) async for row in rows]

    async def delete(self, project: str, document_id: str) -> bool:
        """See documents.Documents."""
        identifier = _identifier(document_id)
        if identifier is None:
            return False
        async with self._pool.transaction() as connection:
            gone = await self._queries.remove_document(connection, project=project, document_id=identifier)
            if gone is not None:
                await self._change_corpus(connection, project)
        return gone is not None

    async def stale_projects(self, *, made_with: str, limit: int) -> dict[str, str]:
        """See documents.Documents."""
        async with self._pool.connection() as connection:
            rows = self._queries.stale_projects(connection, made_with=made_with, most=limit)
            return {row["project"]: row["waiting"] async for row in rows}

    async def corpus(self, project: str) -> str:
        """See documents.Documents."""
        async with self._pool.connection() as connection:
            version = await self._queries.corpus_version(connection, project=project)
        return NO_CORPUS if version is None else str(version)

    async def search(self, project: str, question: str, embedding: Sequence[float], *, limit: int) -> list[Hit]:
        """See documents.Documents."""
        asked = question.replace("\x00", " ")  # Postgres text cannot hold U+0000
        async with self._pool.connection() as connection:
            rows = self._queries.search_chunks(connection, project=project, question=asked, embedding=list(embedding), most=limit)
            return [Hit(**{**row, "document_id": str(row["document_id"])}) async for row in rows]

    async def _show(self, project: str, made_with: str, **which: Any) -> DocumentEntry | None:
        sought = {"document_id": None, "source": None, "source_path": None, **which}
        async with self._pool.connection() as connection:
            row = await self._queries.show_document(connection, project=project, made_with=made_with, **sought)
        return None if row is None else _entry(row)

    async def _change_corpus(self, connection: Connection, project: str) -> None:
        """The last words of a transaction: it holds up the project's other writers until its end."""
        await self._queries.change_corpus(connection, project=project)
        await self._queries.drop_corpus_answers(connection, project=project)


def check_document(project: str, content: str) -> None:
    """Raise ValueError for what cannot be a document."""
    check_project(project)
    if "\x00" in content:
        raise ValueError("a document cannot hold the character U+0000: is it a binary file?")


def _identifier(document_id: str) -> UUID | None:
    try:
        return UUID(document_id)
    except ValueError:
        return None


def _entry(row: Any) -> DocumentEntry:
    return DocumentEntry(
        document_id=str(row["document_id"]),
        source=row["source"],
        source_path=row["source_path"],
        size=row["bytes"],
        created_at=row["created_at"].timestamp(),
        updated_at=row["updated_at"].timestamp(),
        ready=row["ready"],
    )
