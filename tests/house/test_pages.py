"""README and docs/api.md say what the code does: examples parse, every field, path and error code is there."""

import ast
import json
import re
import shlex

from serve_app.errors import BY_CODE, AifactoryError
from serve_app.gateway.routes import router
from serve_app.gateway.schema import EXTENSIONS
from serve_app.settings import CONFIG_DIR
from serve_app.telemetry import METRICS
from tests.house.tree import ROOT

README = (ROOT / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_python_examples_compile_and_call_the_api() -> None:
    examples = blocks(README, "python")
    assert examples
    for example in examples:
        compile(ast.parse(example), "README.md", "exec")
    assert "reasoning_content" in README
    assert "Idempotency-Key" in README


def test_shell_examples_parse_and_curl_sends_json_to_a_known_path() -> None:
    commands = [command for block in blocks(README, "bash") for command in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(command, comments=True) for command in commands]
    curls = [line for line in words if line[:1] == ["curl"]]
    assert curls
    for line in curls:
        path = next(re.sub(r"^.*?/v1", "/v1", word) for word in line if "/v1/" in word)
        assert path in {getattr(route, "path", None) for route in router.routes}
        if "-d" in line:
            assert json.loads(line[line.index("-d") + 1])["model"]


def test_scripts_and_configurations_in_the_readme_exist() -> None:
    for script in set(re.findall(r"\bscripts/[\w-]+", README)):
        assert (ROOT / script).is_file(), script
    for path in CONFIG_DIR.glob("*.yaml"):
        assert f"`{path.stem}`" in README


def test_api_page_names_every_path_field_and_error_code() -> None:
    paths = {str(getattr(route, "path", "")).replace(":path", "") for route in router.routes}
    assert [path for path in sorted(paths) if path not in API] == []
    assert [field for field in EXTENSIONS if f"`{field}`" not in API] == []
    for code, kind in BY_CODE.items():
        row = re.search(rf"^\| {kind.status} \|[^\n]*`{code}`[^\n]*\|$", API, re.MULTILINE)
        assert row, f"no row for {kind.status} {code}"
        assert f"`{kind.kind}`" in row.group(0)
        assert ("| yes |" in row.group(0)) is kind.retryable, f"{code}: retryable?"
    assert f"`{AifactoryError.default_code}`" in API


def test_operations_page_names_every_metric() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for name, (kind, _, tags) in METRICS.items():
        assert re.search(rf"^\| `{name}` \| {kind} \| {', '.join(tags) or '–'} \|", page, re.MULTILINE), name  # noqa: RUF001
