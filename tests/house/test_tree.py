"""Rules for the whole tree: sizes, names, metrics, decision records, nothing of one machine."""

import re
from pathlib import Path

from serve_app.telemetry import METRICS
from tests.house.tree import CODE, ROOT, code_files, repository_files

MOST_LINES = 310  # a file is read in one sitting
UNWELCOME = {"utils", "util", "helpers", "helper", "common", "base", "manager", "service", "misc"}
# Home folders and work folders of people and machines, and addresses of private package registries.
MACHINE = re.compile(
    r"(?<![\w.~$/-])/(?:home|Users)/[a-z][\w.-]*/|(?<![\w.~$/-])/(?:root|work|tmp/lab)/[\w.]|find-links|index-url=|extra-index-url="
)
# The default of a Debian image's root account is spoken about in a comment, not used.
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sql", ".json", ".sh", ".cfg", ".service", ""}


def test_no_file_names_a_place_on_one_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in repository_files()
        if path.suffix in TEXT and path != Path(__file__)
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert found == []


def test_declared_metrics_are_used_and_used_metrics_are_declared() -> None:
    used = {
        name
        for path in code_files()
        if path.name != "telemetry.py"
        for name in re.findall(r'\b(?:count|observe|gauge)\(\s*"(aifactory_\w+)"', path.read_text())
    }
    assert used - METRICS.keys() == set(), "declare it in serve_app.telemetry.METRICS"
    assert METRICS.keys() - used == set(), "declared, but nobody reports it"


def test_metrics_are_called_as_their_kind_and_with_their_tags() -> None:
    kinds = {"count": "counter", "observe": "histogram", "gauge": "gauge"}
    wrong = []
    for path in code_files():
        for call, name, rest in re.findall(r'\b(count|observe|gauge)\(\s*"(aifactory_\w+)"([^\n]*)', path.read_text()):
            kind, _, tags = METRICS[name]
            given = set(re.findall(r"(\w+)=", rest))
            if kinds[call] != kind or given != set(tags):
                wrong.append(
                    f"{path.relative_to(ROOT)}: {call}({name!r}) with {sorted(given)}, declared {kind} with {sorted(tags)}"
                )
    assert wrong == []


def test_files_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in code_files()}
    assert {name: lines for name, lines in sizes.items() if lines > MOST_LINES} == {}


def test_modules_are_named_for_what_they_are() -> None:
    assert [str(path.relative_to(ROOT)) for path in code_files() if path.stem in UNWELCOME] == []


def test_top_level_is_as_described() -> None:
    for name in (
        *CODE,
        "pyproject.toml",
        "cluster.yaml",
        "sql",
        "tests",
        "scripts",
        "docs",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
    ):
        assert (ROOT / name).exists(), name


def test_decision_records_have_one_shape() -> None:
    records = sorted((ROOT / "docs" / "adr").glob("*.md"))
    assert len(records) >= 10
    for number, path in enumerate(records, 1):
        text = path.read_text()
        assert re.fullmatch(rf"{number:04}-[a-z0-9-]+\.md", path.name), f"{path.name}: records are numbered without holes"
        assert text.startswith(f"# {number:04} "), path.name
        for part in ("Context:", "Choice:", "Cost:"):
            assert part in text, f"{path.name} has no {part!r}"


def test_decision_records_that_are_referred_to_exist() -> None:
    numbers = {path.name[:4] for path in (ROOT / "docs" / "adr").glob("*.md")}
    named = {
        number
        for path in repository_files()
        if path.suffix in TEXT
        for number in re.findall(r"docs/adr/(\d{4})", path.read_text(errors="replace"))
    }
    assert named <= numbers


def test_relative_links_in_pages_lead_somewhere() -> None:
    broken = []
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert broken == []


def test_files_named_in_pages_exist() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in repository_files()]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"`([\w./-]*/[\w-]+\.(?:py|yaml|sql|md))`", page.read_text())}
    assert {name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)} == set()
