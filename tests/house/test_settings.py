"""Settings are declared once, described, documented, used; the shipped configurations load."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from serve_app.settings import CONFIG_DIR, Settings
from tests.house.settings_page import NESTED, env_name, render
from tests.house.tree import ROOT, code_files

PAGE = ROOT / "docs" / "settings.md"
MODELS: list[type[BaseModel]] = [Settings, *(model for model, _ in NESTED)]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model.__name__))
def test_every_setting_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == render(), "run scripts/settings-doc"


def test_every_environment_name_is_on_the_page() -> None:
    page = PAGE.read_text()
    assert [name for name in Settings.model_fields if f"`{env_name(name)}`" not in page] == []


def test_every_setting_is_used() -> None:
    code = "\n".join(path.read_text() for path in code_files() if path.name != "settings.py")
    code += (ROOT / "serve_app" / "settings.py").read_text().partition("def settings_customise_sources")[2]
    assert [name for name in Settings.model_fields if not re.search(rf"\b{name}\b", code)] == []


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda path: str(path.stem))
def test_configuration_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(env_name(name), raising=False)
    by_name, by_path = Settings(config=path.stem), Settings(config=str(path))
    assert by_name.models == by_path.models
    assert by_name.models


def test_names_in_the_pages_are_settings() -> None:
    """A page that names a variable which nobody reads sends its reader astray."""
    known = {env_name(name) for name in Settings.model_fields} | {"AIFACTORY_STACK", "AIFACTORY_TEST_POSTGRES_DSN"}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("*.yaml"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.*")]
    named = {name for page in pages for name in re.findall(r"\bAIFACTORY_[A-Z_]+\b", page.read_text())}
    assert {name for name in named - known if "__" not in name} - {"AIFACTORY_"} == set()


def test_one_member_of_an_object_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says so of the judge; the debaters stay those of the preset."""
    monkeypatch.setenv("AIFACTORY_DEBATE__JUDGE_MODEL", "a-judge")
    debate = Settings(config="local").debate
    assert debate == Settings.model_fields["debate"].get_default(call_default_factory=True).model_copy(
        update={"judge_model": "a-judge"}
    )
