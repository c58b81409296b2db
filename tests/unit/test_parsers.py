"""From files to text, and what is said of files that cannot be read."""

import io
from dataclasses import replace

import pytest
from pypdf import PdfReader, PdfWriter

from serve_app.parsers import Bounds, Kind, ParseError, kind_of, to_text
from tests.pdf_files import a_pdf

BOUNDS = Bounds(most_bytes=3_000_000, most_chars=1_000_000, most_pages=20, seconds=60)

PAGE = b"""<!doctype html><html><head><title>Pumps</title><style>p {color: red}</style></head><body>
<nav><a href="/">Home</a></nav><h2>The seal</h2><p>Part <b>VS_8841</b> &amp; its <a href="x">ring</a>.<br>Caf\xc3\xa9</p>
<script>alert('no')</script><ul><li>one</li><li>two</li></ul>
<table><tr><th>Bolt</th><th>Torque</th></tr><tr><td>M8</td><td>48 Nm</td></tr></table><!-- hidden --></body></html>"""


@pytest.mark.parametrize(
    ("name", "media_type", "kind"),
    [
        ("a.txt", None, Kind.TEXT),
        ("A.MD", None, Kind.MARKDOWN),
        ("a.htm", "", Kind.HTML),
        ("a.pdf", "application/octet-stream", Kind.PDF),
        ("a.md", "text/plain", Kind.MARKDOWN),
        ("a", "text/html; charset=utf-8", Kind.HTML),
        ("a.bin", "application/x-pdf", Kind.PDF),
        ("a.png", None, None),
        ("a", None, None),
        ("a.txt", "image/png", None),
    ],
)
def test_the_kind_of_a_file(name: str, media_type: str | None, kind: Kind | None) -> None:
    assert kind_of(name, media_type) is kind


def test_text_keeps_its_words_and_gets_one_kind_of_line_ends() -> None:
    assert to_text(Kind.TEXT, b"\xef\xbb\xbfone\r\ntwo\rthree\n\n\n\nfour", BOUNDS) == "one\ntwo\nthree\n\n\n\nfour"


def test_a_page_becomes_markdown_without_what_nobody_reads() -> None:
    text = to_text(Kind.HTML, PAGE, BOUNDS)
    assert text.startswith("# Pumps\n\n## The seal\n")
    assert "Part **VS_8841** & its ring." in text
    assert "Café" in text
    assert "| M8 | 48 Nm |" in text
    for unseen in ("alert", "color", "Home", "hidden", "href"):
        assert unseen not in text


def test_a_page_with_a_heading_of_its_own_needs_no_title() -> None:
    assert to_text(Kind.HTML, b"<title>T</title><h1>Own</h1><p>x</p>", BOUNDS) == "# Own\n\nx"


def test_a_pdf_gives_the_text_of_all_pages_and_joins_split_words() -> None:
    text = to_text(Kind.PDF, a_pdf(["The main-", "tenance plan", "of the pump"], ["Second page"]), BOUNDS)
    assert "The maintenance plan\nof the pump" in text
    assert text.endswith("Second page")


def encrypted() -> bytes:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(a_pdf(["secret"]))))
    writer.encrypt("password", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("kind", "raw", "why"),
    [
        (Kind.TEXT, b"\xff\xfe", r"not UTF-8 \(byte 0\)"),
        (Kind.MARKDOWN, b"a\x00b", r"U\+0000"),
        (Kind.PDF, b"", "is not a PDF"),
        (Kind.PDF, b"%PDF-1.4\ngarbage", "not a PDF|damaged"),
        (Kind.PDF, a_pdf(["x"])[:200], "not a PDF|damaged"),
        (Kind.PDF, a_pdf([]), "scan"),
        (Kind.PDF, a_pdf(*(["x"] for _ in range(21))), "has 21 pages, at most 20"),
        (Kind.PDF, encrypted(), "encrypted"),
        (Kind.HTML, b"", "holds no text"),
        (Kind.HTML, b"<script>only()</script>", "holds no text"),
        (Kind.HTML, b"<div>" * 30_000 + b"deep", "nested too deeply|parser broke off"),
        (Kind.TEXT, b"x" * 3_000_001, "larger than 3000000 bytes"),
        (Kind.TEXT, b"x" * 1_000_001, "more than 1000000 characters"),
        (Kind.HTML, b"<p>" + b"x" * 1_000_001, "more than 1000000 characters"),
    ],
)
def test_what_cannot_be_read_says_why(kind: Kind, raw: bytes, why: str) -> None:
    with pytest.raises(ParseError, match=why):
        to_text(kind, raw, BOUNDS)


def test_a_file_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(ParseError, match=r"longer than 0\.01 s"):
        to_text(Kind.PDF, a_pdf(["x"]), replace(BOUNDS, seconds=0.01))


def test_letters_that_cannot_be_stored_are_replaced() -> None:
    assert to_text(Kind.HTML, b"<p>a&#0;b&#xd800;c</p>", BOUNDS).encode().decode().startswith("a")
