"""aifactory keys …: API keys and what they may use."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from serve_app.limits import Limits, LimitsEntry, key_subject, project_subject

if TYPE_CHECKING:
    from serve_app.store.api_keys import ApiKeys, KeyEntry
    from serve_app.store.limits import PostgresLimits

T = TypeVar("T")
_DAY_S = 86_400.0

ProjectOption = Annotated[str, typer.Option("--project", help="the project (tenant) the key belongs to")]
AlsoOption = Annotated[list[str] | None, typer.Option("--also", help="another project that the key may act for; repeatable")]
RateOption = Annotated[int | None, typer.Option("--requests-per-minute", min=1, help="requests a minute, spread evenly")]
RunsOption = Annotated[int | None, typer.Option("--concurrent", min=1, help="runs at once")]
TokensOption = Annotated[int | None, typer.Option("--tokens", min=1, help="tokens of a period, those of the prompts included")]
PeriodOption = Annotated[Literal["day", "month"] | None, typer.Option("--per", help="the period of --tokens, in UTC")]


@dataclass(frozen=True)
class _Office:
    keys: "ApiKeys"
    limits: "PostgresLimits"


def keys_app(dsn: Callable[[], str]) -> typer.Typer:
    """The commands, on the database that `dsn` names when one of them runs."""
    app = typer.Typer(no_args_is_help=True, help="API keys")

    @app.command("create")
    def create(
        project: ProjectOption,
        also: AlsoOption = None,
        requests_per_minute: RateOption = None,
        concurrent: RunsOption = None,
        tokens: TokensOption = None,
        per: PeriodOption = None,
    ) -> None:
        """Make an API key and print it; it cannot be shown again."""
        limits = _limits(requests_per_minute, concurrent, tokens, per)
        _out(_done(dsn, lambda office: office.keys.create(project, projects=also or (), limits=limits)))

    @app.command("list")
    def list_keys(
        project: Annotated[str | None, typer.Option("--project", help="of this project only")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
    ) -> None:
        """Keys and limits, with the tokens used in the present period."""
        entries, limited = _done(dsn, lambda office: _listing(office, project))
        if as_json:
            _out(json.dumps({"keys": [_json(entry, limited) for entry in entries], "projects": _projects(limited)}))
        else:
            _show(entries, limited)

    @app.command("revoke")
    def revoke(key_id: Annotated[str, typer.Argument(help="as `keys list` shows it")]) -> None:
        """Put a key out of force for good, at the latest AIFACTORY_API_KEY_CACHE_S from now."""
        if not _done(dsn, lambda office: office.keys.revoke(key_id)):
            _no_such(key_id)

    @app.command("rotate")
    def rotate(
        key_id: Annotated[str, typer.Argument(help="as `keys list` shows it")],
        grace_s: Annotated[float, typer.Option("--grace-s", min=0, help="seconds that the key in force stays good")] = _DAY_S,
    ) -> None:
        """Replace a key by a new one and print that. Id, projects, limits and use stay; the old one works for the grace."""
        key = _done(dsn, lambda office: office.keys.rotate(key_id, grace_s=grace_s))
        _out(key or _no_such(key_id))

    @app.command("limit")
    def limit(
        key_id: Annotated[str | None, typer.Argument(help="a key, as `keys list` shows it")] = None,
        project: Annotated[str | None, typer.Option("--project", help="a project instead of a key")] = None,
        requests_per_minute: RateOption = None,
        concurrent: RunsOption = None,
        tokens: TokensOption = None,
        per: PeriodOption = None,
        none: Annotated[bool, typer.Option("--none", help="remove all limits")] = False,
    ) -> None:
        """Set the limits of a key or a project anew: what is not named has none. In force after AIFACTORY_API_KEY_CACHE_S."""
        limits = _limits(requests_per_minute, concurrent, tokens, per)
        if (key_id is None) == (project is None):
            raise RuntimeError("name either a key or --project")
        if limits.empty is not none:
            raise RuntimeError("name the limits to set, or --none to remove all")
        if project is not None:
            _done(dsn, lambda office: office.limits.set_of_project(project, limits))
        elif key_id is not None and not _done(dsn, lambda office: office.limits.set_of_key(key_id, limits)):
            _no_such(key_id)

    return app


def _limits(rate: int | None, runs: int | None, tokens: int | None, per: Any) -> Limits:
    try:
        return Limits(rate, runs, tokens, per)
    except ValueError as error:
        raise RuntimeError(f"{error} (--tokens N --per day)" if (tokens is None) != (per is None) else str(error)) from error


def _done(dsn: Callable[[], str], work: Callable[[_Office], Awaitable[T]]) -> T:
    """The result of `work`. Raises RuntimeError that says what is wrong."""
    from serve_app.errors import AifactoryError
    from serve_app.store.api_keys import ApiKeys
    from serve_app.store.limits import PostgresLimits
    from serve_app.store.pool import PostgresPool

    async def run() -> T:
        pool = PostgresPool(dsn(), size=1, application_name="aifactory keys")
        try:
            return await work(_Office(ApiKeys(pool), PostgresLimits(pool)))
        finally:
            await pool.close()

    try:
        return asyncio.run(run())
    except (AifactoryError, ValueError) as error:
        raise RuntimeError(str(error)) from error


async def _listing(office: _Office, project: str | None) -> tuple[list["KeyEntry"], dict[str, LimitsEntry]]:
    entries, limited = await office.keys.list(project), await office.limits.list()
    wanted = {project_subject(project), *(key_subject(entry.key_id) for entry in entries)} if project is not None else None
    return entries, {entry.subject: entry for entry in limited if wanted is None or entry.subject in wanted}


def _json(entry: "KeyEntry", limited: dict[str, LimitsEntry]) -> dict[str, Any]:
    return {**asdict(entry), **_limits_json(limited.get(key_subject(entry.key_id)))}


def _limits_json(entry: LimitsEntry | None) -> dict[str, Any]:
    return {"limits": asdict(entry.limits) if entry else None, "used_tokens": entry.used if entry else None}


def _projects(limited: dict[str, LimitsEntry]) -> dict[str, Any]:
    kept = {subject.removeprefix("project:"): entry for subject, entry in limited.items() if subject.startswith("project:")}
    return {name: _limits_json(entry) for name, entry in kept.items()}


def _show(entries: list["KeyEntry"], limited: dict[str, LimitsEntry]) -> None:
    table = Table(box=None, header_style="bold")
    for name in ("key id", "begins", "project", "state", "limits"):
        table.add_column(name, overflow="fold")
    for entry in entries:
        limits = _told(limited.get(key_subject(entry.key_id)))
        table.add_row(entry.key_id, entry.prefix, ", ".join(entry.projects), _state(entry), limits)
    for subject, limits_entry in limited.items():
        if subject.startswith("project:"):
            table.add_row("", "", subject.removeprefix("project:"), "whole project", _told(limits_entry))
    Console().print(table)


def _state(entry: "KeyEntry") -> str:
    if entry.revoked_at is not None:
        return f"revoked {_day(entry.revoked_at)}"
    since = f"since {_day(entry.rotated_at or entry.created_at)}"
    return since if entry.old_until is None else f"{since}, the one before until {_day(entry.old_until)}"


def _told(entry: LimitsEntry | None) -> str:
    if entry is None:
        return "–"  # noqa: RUF001 - a dash, as in the pages
    limits, told = entry.limits, []
    if limits.requests_per_minute is not None:
        told.append(f"{limits.requests_per_minute} requests/minute")
    if limits.concurrent_runs is not None:
        told.append(f"{limits.concurrent_runs} at once")
    if limits.tokens is not None:
        told.append(f"{entry.used} of {limits.tokens} tokens/{limits.period}")
    return ", ".join(told)


def _day(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M")


def _no_such(key_id: str) -> NoReturn:
    raise RuntimeError(f"no key {key_id!r} is in force: `aifactory keys list` shows them")


def _out(line: str) -> None:
    sys.stdout.write(line + "\n")
