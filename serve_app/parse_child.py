"""One file from HTML or PDF to text, as a process: `python -m serve_app.parse_child KIND CHARS PAGES SECONDS`.

Reads the file from standard input, writes `{"text": …}` or `{"error": …}` to standard output. It imports nothing of the
product: it starts for every file, and what a hostile file makes of it must not have much within reach.
"""

import contextlib
import io
import json
import logging
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any, Final

_MEMORY_BYTES: Final = 2 * 2**30
# Neither text nor anything that a reader of the page would see.
_UNSEEN: Final = ("script", "style", "noscript", "template", "svg", "iframe", "object", "nav")
_SPLIT_WORD: Final = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


class Refused(Exception):
    """The file cannot be read; the message says why."""


def html_text(raw: bytes) -> str:
    """A page as Markdown: headings, lists and tables keep their shape; links and images leave their words."""
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(raw, "html.parser")
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for unseen in page(["head", "title", *_UNSEEN]):
        unseen.decompose()
    converter = MarkdownConverter(
        heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False, escape_misc=False
    )
    text = str(converter.convert_soup(page)).strip()
    if title and page.find("h1") is None:
        text = f"# {title}\n\n{text}"
    if not text.strip("# \n"):
        raise Refused("holds no text: is it HTML?")
    return text


def pdf_text(raw: bytes, most_chars: int, most_pages: int) -> str:
    """The text of a PDF, page after page."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(raw))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Refused("is encrypted: save it without a password")
        pages = len(reader.pages)
        if pages > most_pages:
            raise Refused(f"has {pages} pages, at most {most_pages} are read: split it, or raise document_max_pages")
        text = "\n\n".join(_pages(reader, most_chars))
    except Refused:
        raise
    except PyPdfError as error:
        raise Refused(f"is not a PDF that can be read ({error}): print it to a new PDF") from error
    if not text.strip():
        raise Refused("holds no text: a scan? Recognise its text (OCR) first")
    return _SPLIT_WORD.sub("", text)


def _pages(reader: Any, most_chars: int) -> Iterator[str]:
    read = 0
    for page in reader.pages:
        text = page.extract_text()
        read += len(text)
        if read > most_chars:
            raise Refused(f"holds more than {most_chars} characters: split it, or raise document_max_chars")
        yield text


def parse(kind: str, raw: bytes, most_chars: int, most_pages: int) -> str:
    """The text. Raises Refused."""
    try:
        text = html_text(raw) if kind == "text/html" else pdf_text(raw, most_chars, most_pages)
    except Refused:
        raise
    except RecursionError as error:
        raise Refused("is nested too deeply to be read: save it as plain text") from error
    except MemoryError as error:
        raise Refused("takes too much memory to be read: split it") from error
    except Exception as error:
        raise Refused(f"is damaged and cannot be read ({type(error).__name__})") from error
    # Neither can be stored: half a pair of surrogates, and U+0000.
    return text.strip().encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def main(kind: str, most_chars: str, most_pages: str, seconds: str) -> None:
    """See the module."""
    logging.disable(logging.CRITICAL)  # pypdf tells of every odd object
    whole_seconds = int(float(seconds)) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole_seconds, whole_seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ValueError, OSError):  # the system may allow less than this already
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        told = {"text": parse(kind, sys.stdin.buffer.read(), int(most_chars), int(most_pages))}
    except Refused as error:
        told = {"error": str(error)}
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
