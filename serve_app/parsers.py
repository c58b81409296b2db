"""From a file's bytes to its text. Pages and PDFs are read by a process of their own, with bounds on time and memory.

A parser of untrusted files may loop, or take all memory, or hold the interpreter while a hundred streams wait. So HTML
and PDF are left to `serve_app.parse_child`, which can be killed; text and Markdown are only decoded.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

import orjson

from serve_app.settings import Settings

_CHILD: Final = "serve_app.parse_child"
_MOST_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n(?:[ \t]*\n)+")


class Kind(StrEnum):
    """What a file holds; the value is its media type."""

    TEXT = "text/plain"
    MARKDOWN = "text/markdown"
    HTML = "text/html"
    PDF = "application/pdf"


SUFFIXES: Final = {
    ".txt": Kind.TEXT,
    ".md": Kind.MARKDOWN,
    ".markdown": Kind.MARKDOWN,
    ".html": Kind.HTML,
    ".htm": Kind.HTML,
    ".xhtml": Kind.HTML,
    ".pdf": Kind.PDF,
}
_OTHER_NAMES: Final = {"text/x-markdown": Kind.MARKDOWN, "application/xhtml+xml": Kind.HTML, "application/x-pdf": Kind.PDF}


class ParseError(ValueError):
    """The file cannot be read; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one file may take: bytes of the file, characters of its text, pages, seconds."""

    most_bytes: int
    most_chars: int
    most_pages: int
    seconds: float

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        """As the settings say."""
        return cls(
            settings.document_max_bytes, settings.document_max_chars, settings.document_max_pages, settings.document_parse_s
        )


def kind_of(name: str, media_type: str | None = None) -> Kind | None:
    """What a file of this name and media type (such as `text/html; charset=utf-8`) holds; None when we cannot read it.

    The media type counts, where it says something; else the end of the name.
    """
    told = (media_type or "").partition(";")[0].strip().lower()
    if told in _OTHER_NAMES:
        return _OTHER_NAMES[told]
    suffix = SUFFIXES.get(PurePosixPath(name).suffix.lower())
    if told in ("", "application/octet-stream") or (told == Kind.TEXT and suffix is Kind.MARKDOWN):
        return suffix  # clients that do not know Markdown call it plain text
    return Kind(told) if told in set(Kind) else None


def to_text(kind: Kind, raw: bytes, bounds: Bounds) -> str:
    """The text of a file, line ends as `\\n`, without U+0000. Headings of HTML stand as in Markdown.

    Blocks, for HTML and PDF up to `bounds.seconds`. Raises ParseError.
    """
    if len(raw) > bounds.most_bytes:
        raise ParseError(f"larger than {bounds.most_bytes} bytes: split it, or raise document_max_bytes")
    text = _decoded(raw) if kind in (Kind.TEXT, Kind.MARKDOWN) else _MOST_BLANK_LINES.sub("\n\n", _extracted(kind, raw, bounds))
    if len(text) > bounds.most_chars:
        raise ParseError(f"holds more than {bounds.most_chars} characters: split it, or raise document_max_chars")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParseError(f"not UTF-8 (byte {error.start}): save it as UTF-8") from error
    if "\x00" in text:
        raise ParseError("holds the character U+0000: is it a binary file?")
    return text


def _extracted(kind: Kind, raw: bytes, bounds: Bounds) -> str:
    command = [sys.executable, "-m", _CHILD, kind.value, str(bounds.most_chars), str(bounds.most_pages), f"{bounds.seconds:g}"]
    try:
        done = subprocess.run(command, input=raw, capture_output=True, timeout=bounds.seconds, check=False)
    except subprocess.TimeoutExpired as error:
        raise ParseError(f"took longer than {bounds.seconds:g} s to read: split it, or raise document_parse_s") from error
    try:
        told = orjson.loads(done.stdout)
    except orjson.JSONDecodeError as error:
        raise ParseError("could not be read: its parser broke off; is the file damaged, or far too large?") from error
    if "error" in told:
        raise ParseError(str(told["error"]))
    return str(told["text"])
