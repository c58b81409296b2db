"""Reads tests/house/rayservice_fields.yaml, and says where a RayService strays from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_SHAPES: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
_SCALARS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "int-or-string": (int, str),
}


def strays(spec: dict[str, Any]) -> list[str]:
    """What KubeRay would refuse, or drop, of the `spec` of a RayService: one line each, with the path."""
    return list(_look(spec, "RayServiceSpec", "spec"))


def _look(value: Any, shape: Any, path: str) -> Iterator[str]:
    if isinstance(shape, str) and shape in _SHAPES:
        shape = _SHAPES[shape]
    if isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path} is no list"
            return
        for number, one in enumerate(value):
            yield from _look(one, shape[0], f"{path}[{number}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            yield f"{path} is no mapping"
            return
        yield from _look_into(value, shape, path)
    elif not _fits(value, shape):
        yield f"{path} is {value!r}, not {shape}"


def _look_into(value: dict[str, Any], shape: dict[str, Any], path: str) -> Iterator[str]:
    fields = {name.removesuffix("!"): inner for name, inner in shape.items()}
    for name in shape:
        if name.endswith("!") and name[:-1] not in value:
            yield f"{path}.{name[:-1]} is missing"
    for name, inner in value.items():
        if known := fields.get(name, fields.get("*")):
            yield from _look(inner, known, f"{path}.{name}")
        else:
            yield f"{path}.{name} is unknown"


def _fits(value: Any, shape: str) -> bool:
    if shape.startswith("one of "):
        return value in shape.removeprefix("one of ").split(", ")
    if isinstance(value, bool) and shape != "boolean":
        return False
    return isinstance(value, _SCALARS[shape])
