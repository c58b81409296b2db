"""Documents on Postgres."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from serve_app.documents import Audit, Change, Chunk, Document, content_hash
from serve_app.store.api_keys import check_project
from serve_app.store.pool import PostgresPool
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
        async with self._pool.connection() as connection:
            rows = self._queries.remove_documents(connection, project=project, source=source, source_paths=list(source_paths))
            return len([row async for row in rows])

    async def find(self, project: str, document_id: str) -> Document | None:
        """See documents.Documents."""
        try:
            identifier = UUID(document_id)
        except ValueError:
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
        return True

    async def audit(self, project: str, *, made_with: str, dimensions: int) -> Audit:
        """See documents.Documents."""
        async with self._pool.connection() as connection:
            row = await self._queries.audit_documents(connection, project=project, made_with=made_with, dimensions=dimensions)
        return Audit(**row)


def check_document(project: str, content: str) -> None:
    """Raise ValueError for what cannot be a document."""
    check_project(project)
    if "\x00" in content:
        raise ValueError("a document cannot hold the character U+0000: is it a binary file?")
