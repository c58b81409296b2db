"""Where uploaded files wait to be read. Each is a process of its own, and streams need the cores too: so few at a time."""

import asyncio
from dataclasses import dataclass
from typing import Final

from serve_app.errors import BadRequest, Overloaded
from serve_app.parsers import Bounds, Kind, ParseError, to_text

_AT_ONCE: Final = 2
_MOST_WAITING: Final = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was sent, for a project that the caller names or not."""

    name: str
    kind: Kind
    raw: bytes
    project: str | None = None


class Intake:
    """Reads uploads, off the event loop."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def text_of(self, upload: Upload, bounds: Bounds) -> str:
        """The text of a file. Raises BadRequest that says what is wrong with it, or Overloaded when too many wait."""
        if self._waiting >= _MOST_WAITING:
            raise Overloaded(f"{_MOST_WAITING} documents wait to be read already; retry shortly", retry_after_s=5)
        self._waiting += 1
        try:
            async with self._places:
                text = await asyncio.to_thread(to_text, upload.kind, upload.raw, bounds)
        except ParseError as error:
            raise BadRequest(f"{upload.name!r}: {error}", param="file", code="unreadable_document") from error
        finally:
            self._waiting -= 1
        if not text.strip():
            raise BadRequest(f"{upload.name!r} holds no text", param="file", code="unreadable_document")
        return text
