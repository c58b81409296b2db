"""docs/settings.md, made from serve_app.settings: `scripts/settings-doc` writes it, a test compares it."""

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from serve_app.configured import (
    AdapterConfig,
    AutoscalingConfig,
    DebateConfig,
    DebateTaskConfig,
    FaultConfig,
    ModelConfig,
    PlacementConfig,
    SimulatedConfig,
)
from serve_app.settings import Settings

NESTED: tuple[tuple[type[BaseModel], str], ...] = (
    (ModelConfig, "`models[]`: one model"),
    (PlacementConfig, "`models[].placement`"),
    (AutoscalingConfig, "`models[].autoscaling`"),
    (AdapterConfig, "`models[].adapters`"),
    (SimulatedConfig, "`models[].simulated`"),
    (FaultConfig, "`models[].simulated.faults[]`: one fault, for tests"),
    (DebateConfig, "`debate`"),
    (DebateTaskConfig, "`debate.tasks[]`: one debater"),
)
_NAMES = {Path: "path", SecretStr: "text, secret", str: "text", int: "whole number", float: "number", bool: "true or false"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

HEAD = """# Settings

<!-- Made from serve_app/settings.py by scripts/settings-doc. Do not edit by hand. -->

A value comes from, first match wins: the command line (`--config`), the environment (`AIFACTORY_<NAME>`), the configuration
file, the default. The configuration file is `AIFACTORY_CONFIG`: a name under `serve_app/config` (`local`, `simulated`,
`gpu-cluster`) or the path of a YAML file; its keys are the names below without the prefix, in lower case.
Lists and objects can be given in the environment as JSON, single members of an object with two underscores
(`AIFACTORY_DEBATE__JUDGE_MODEL`), of a list not. An unknown name is refused in the file, and overlooked in the environment.
A stack keeps the settings that it was started with: `aifactory down`, then `up`, for a change; `up` beside a running stack takes
none over. Times are seconds unless the name says otherwise.

*live*: may change without a restart, through the `user_config` of the Serve deployments `gateway` and `debate-worker`
(`serve.yaml`, see [operations.md](operations.md)). Debates in processes of their own have the values that the stack started with.

| environment | value | default | live | meaning |
|---|---|---|---|---|
"""

NESTED_HEAD = """
## {title}

| key | value | default | meaning |
|---|---|---|---|
"""


def render() -> str:
    """The whole page."""
    text = HEAD
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        live = "yes" if isinstance(extra, dict) and extra.get("live") else ""
        text += f"| `{env_name(name)}` | {_kind(field)} | {_default(field)} | {live} | {_meaning(field)} |\n"
    for model, title in NESTED:
        text += NESTED_HEAD.format(title=title)
        for name, field in model.model_fields.items():
            text += f"| `{name}` | {_kind(field)} | {_default(field)} | {_meaning(field)} |\n"
    return text


def env_name(name: str) -> str:
    """The environment variable of a setting."""
    return f"{Settings.model_config['env_prefix']}{name.upper()}"


def _kind(field: FieldInfo) -> str:
    bounds = [
        f"{_BOUNDS[key]} {value}" for part in field.metadata for key in _BOUNDS if (value := getattr(part, key, None)) is not None
    ]
    return ", ".join([_type_name(field.annotation), *bounds])


def _type_name(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(_type_name(part) for part in get_args(kind) if part is not type(None))
    if origin is list:
        return f"list of {_type_name(get_args(kind)[0])}"
    if origin is dict:
        return "object"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "object, see below"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return (
            "the preset"
            if field.annotation in (DebateConfig, list[DebateTaskConfig])
            else "see below"
            if _is_model(field.annotation)
            else "empty"
        )
    return "none" if field.default is None else f"`{field.default}`"


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _meaning(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(render())
