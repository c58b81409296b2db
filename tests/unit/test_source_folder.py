"""Reading a folder of texts, and bringing documents up to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dagster_project.ingest import store_folder
from dagster_project.source_folder import SourceError, read, scan
from serve_app.parsers import Bounds
from serve_app.settings import Settings
from serve_app.store.memory_documents import InMemoryDocuments


def test_texts_are_found_in_order_and_others_counted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a/.git/x.txt", ".env.txt", "c.png", "README.MD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    source = scan(tmp_path, most_files=10)
    assert (source.paths, source.skipped, source.faults, source.whole) == (["README.MD", "a/z.md", "b.txt"], 1, {}, True)


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("x")
    assert len(scan(tmp_path, most_files=3).paths) == 3
    with pytest.raises(SourceError, match="more than 2 files: ingest its subfolders, or raise documents_per_folder"):
        scan(tmp_path, most_files=2)


def test_a_name_that_cannot_be_stored_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("x")
    (tmp_path / "bad\udcff.txt").write_text("x")
    (tmp_path / "line\n.txt").write_text("x")
    source = scan(tmp_path, most_files=10)
    assert source.paths == ["good.txt"]
    assert list(source.faults) == ["'bad\\udcff.txt'", "'line\\n.txt'"]


def test_a_link_to_itself_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    source = scan(tmp_path, most_files=10)
    with pytest.raises(SourceError, match=r"link that leads to itself|symbolic links"):
        read(source, "loop.txt", Bounds(10, 10, 1, 9))


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    (tmp_path / "in" / "loop").symlink_to(tmp_path)
    assert scan(tmp_path / "in", most_files=10).paths == ["a.txt"]


@pytest.mark.parametrize(("name", "why"), [("missing", "does not exist"), ("picture.png", r"must end in \.txt, \.md")])
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(SourceError, match=why):
        scan(tmp_path / name, most_files=10)


def test_line_ends_and_the_byte_order_mark_are_made_alike(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read(scan(tmp_path, most_files=1), "a.txt", Bounds(100, 100, 1, 9)) == "one\ntwo\nthree\n"


async def test_what_could_not_be_looked_into_is_not_taken_for_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(config="simulated")
    documents = InMemoryDocuments()
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.txt").write_text("inside")
    (tmp_path / "b.txt").write_text("outside")
    await store_folder(documents, settings, "p", scan(tmp_path, most_files=10))

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return whole(folder)

    whole = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", iterdir)
    source = scan(tmp_path, most_files=10)
    stored = await store_folder(documents, settings, "p", source)
    assert source.faults == {"locked": "cannot be read: Permission denied"}
    assert stored.removed == 0
    assert sorted(await documents.known("p", str(tmp_path))) == ["b.txt", "locked/a.txt"]


async def test_an_empty_folder_forgets_only_when_that_is_wanted(tmp_path: Path) -> None:
    settings, documents = Settings(config="simulated"), InMemoryDocuments()
    await store_folder(documents, settings, "p", scan(tmp_path, most_files=10))  # nothing came from it, nothing can go
    (tmp_path / "a.txt").write_text("Alpha.")
    await store_folder(documents, settings, "p", scan(tmp_path, most_files=10))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"1 documents came from it: they would all be forgotten.*--allow-empty"):
        await store_folder(documents, settings, "p", scan(tmp_path, most_files=10))
    assert list(await documents.known("p", str(tmp_path))) == ["a.txt"]
    stored = await store_folder(documents, settings, "p", scan(tmp_path, most_files=10), allow_empty=True)
    assert stored.removed == 1
