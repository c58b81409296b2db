"""The texts of a folder, as `ingest` takes them. One bad file is told of and does not stop the others."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.parsers import SUFFIXES, Bounds, ParseError, kind_of, to_text


class SourceError(ValueError):
    """The source as a whole cannot be read; the message says what to do."""


@dataclass
class Source:
    """What was found. `name` stands for the folder; `paths` are inside it, with `/`, sorted.

    `faults` maps a path to why it could not be read. `whole` says that `paths` is all there is: what is stored and not
    found here has been removed.
    """

    name: str
    folder: Path
    paths: list[str] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    whole: bool = True


def scan(path: Path, *, most_files: int) -> Source:
    """Look for texts (parsers.SUFFIXES) under a folder, or take the one file. Names that begin with a dot are left out.

    Raises SourceError when there is nothing at `path`, or more than `most_files`.
    """
    path = path.resolve()
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise SourceError(f"{path} is not a text that can be ingested: it must end in {', '.join(SUFFIXES)}")
        return Source(str(path.parent), path.parent, [path.name], whole=False)
    if not path.is_dir():
        raise SourceError(f"{path} does not exist on the machine that runs the job: name a folder there, or a file")
    source = Source(str(path), path)
    for found in _walk(path, source):
        if found.suffix.lower() not in SUFFIXES:
            source.skipped += 1
        elif len(source.paths) == most_files:
            raise SourceError(f"{path} has more than {most_files} files: ingest its subfolders, or raise documents_per_folder")
        else:
            name = found.relative_to(path).as_posix()
            if name.isprintable():
                source.paths.append(name)
            else:
                source.faults[ascii(name)] = "its name holds control characters or is not UTF-8: rename it"
    source.paths.sort()
    return source


def read(source: Source, path: str, bounds: Bounds) -> str:
    """The text of one file, line ends as `\\n`. Blocks while a parser reads it. Raises SourceError."""
    file = source.folder / path
    try:
        if not file.resolve().is_relative_to(source.folder):
            raise SourceError("a link that leads out of the folder: copy the file into it")
        told = file.stat()
        if not stat.S_ISREG(told.st_mode):
            raise SourceError("not a regular file")
        with file.open("rb") as opened:
            content = opened.read(bounds.most_bytes + 1)
    except RuntimeError as error:  # so pathlib tells of it before Python 3.13
        raise SourceError("a link that leads to itself: remove it") from error
    except OSError as error:
        raise SourceError(f"cannot be read: {error.strerror or error}") from error
    kind = kind_of(path)
    if kind is None:
        raise SourceError(f"not a text that can be ingested: it must end in {', '.join(SUFFIXES)}")
    try:
        return to_text(kind, content, bounds)
    except ParseError as error:
        raise SourceError(str(error)) from error


def _walk(folder: Path, source: Source) -> Iterator[Path]:
    """Everything in the folder and its subfolders that is no folder. Links to folders are not followed."""
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(place.iterdir())
            folders = [entry for entry in entries if entry.is_dir() and not entry.is_symlink() and not _is_hidden(entry)]
        except OSError as error:
            # What is in there is unknown, and so nothing may be taken for removed.
            source.whole = False
            source.faults[place.relative_to(source.folder).as_posix()] = f"cannot be read: {error.strerror or error}"
            continue
        waiting += folders
        yield from (entry for entry in entries if not entry.is_dir() and not _is_hidden(entry))


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")
