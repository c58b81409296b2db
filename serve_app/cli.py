"""aifactory up | down | status | keys | migrate | doctor | chat | debate | ingest | capacity: the operator's handle."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from serve_app.local import client, deployment
from serve_app.local.capacity import capacity
from serve_app.local.debate_view import show_debate
from serve_app.local.demo import dagster_url, ray_dashboard, run_demo, summary
from serve_app.local.doctor import examine
from serve_app.local.ingest import ingest as ingest_path
from serve_app.local.keys import keys_app
from serve_app.local.progress import Progress
from serve_app.local.purge import purge
from serve_app.local.stack import Stack, clear_remains, recovers, running
from serve_app.local.state import LockedError, StackState, load_state, stack_lock
from serve_app.local.teardown import tear_down
from serve_app.settings import Settings

EXIT_NOT_READY = 1
EXIT_NOT_RUNNING = 3
# `down` while an `up` runs: that one ends what it started first.
_HANDOVER_S = 90.0

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(keys_app(lambda: _dsn()), name="keys")
app.command()(capacity)
console = Console()

ConfigOption = Annotated[str | None, typer.Option("--config", help="local, simulated, or the path of a YAML file")]


@app.command()
def up(
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="ask one question on both routes at the end")] = True,
    config: ConfigOption = None,
) -> None:
    """Start the stack, wait until it is ready, and leave it running in the background."""
    settings = _settings(config)
    progress = Progress(console)
    state_dir = settings.state_dir.resolve()
    started_here = False
    with _interruptible(), stack_lock(state_dir):
        try:
            state = load_state(state_dir)
            if state is not None and recovers(state, progress):
                if state.config != settings.config:
                    _fail(f"the stack runs with configuration {state.config!r}; end it first: aifactory down")
                progress.note(f"aifactory is already running (state in {state_dir})")
            else:
                if ended := clear_remains(settings):
                    progress.note(f"  ended {ended} processes that an earlier start had left")
                progress.note(f"aifactory starts with configuration {settings.config!r} (state in {state_dir})")
                started_here = True
                state = Stack(settings, progress).up()
            new_key = client.ensure_key(state)
            if demo:
                run_demo(state, progress)
            progress.note(summary(state, new_key))
        except KeyboardInterrupt:
            # Stack.up has ended what it started; after it, that is ours to do.
            if started_here and (left := load_state(state_dir)) is not None:
                with suppress(OSError):  # the terminal may be gone
                    progress.note("  interrupted, ending what was started …")
                tear_down(state_dir, left)
            raise


@app.command()
def down(remove: Annotated[bool, typer.Option("--purge", help="remove the stack's data as well")] = False) -> None:
    """End everything that `up` started, and nothing else."""
    state_dir = _settings(None).state_dir.resolve()
    if not state_dir.exists():
        console.print(f"nothing runs ({state_dir} does not exist)", highlight=False)
        return
    with _after_running_up(state_dir):
        state = load_state(state_dir)
        started = time.monotonic()
        with console.status("stopping …"):
            count = tear_down(state_dir, state)
        told = f"stopped, {count} processes ended ({time.monotonic() - started:.1f} s)" if count else "nothing runs"
        console.print(told, highlight=False)
        if remove:
            purge(state_dir)
            console.print(f"removed the data in {state_dir}", highlight=False)


@app.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """What runs and where. Exit code 0: ready; 1: not ready; 3: not running."""
    state_dir = _settings(None).state_dir.resolve()
    state = load_state(state_dir)
    alive = running(state)
    missing = "not running"
    values: dict[str, object] = dict.fromkeys(("api", "api_key_file", "ray_dashboard", "dagster", "nats", "postgres"))
    values |= {"state_dir": str(state_dir), "replicas": []}
    if state is not None and alive:
        missing = _missing(state)
        values |= _addresses(state)
        if not missing:
            values["replicas"] = deployment.replica_stats(state)
    values = {"ready": not missing, **values}
    if as_json:
        sys.stdout.write(json.dumps(values) + "\n")
    else:
        console.print("ready" if not missing else f"not ready: {missing}", highlight=False, markup=False)
        for name in ("api", "ray_dashboard", "dagster", "state_dir"):
            console.print(f"  {name:14} {values[name]}", highlight=False, markup=False)
        for replica in values["replicas"] if isinstance(values["replicas"], list) else []:
            console.print(f"  {replica['model']:14} {replica['running']} running, {replica['waiting']} waiting", highlight=False)
    if missing:
        raise typer.Exit(EXIT_NOT_READY if alive else EXIT_NOT_RUNNING)


@app.command()
def migrate() -> None:
    """Bring the database schema up to date."""
    applied = deployment.migrate(_dsn())
    console.print(f"applied: {', '.join(applied)}" if applied else "nothing to apply", highlight=False, markup=False)


@app.command()
def doctor(config: ConfigOption = None) -> None:
    """Look at versions, ports, disk, model files and connections; name a cure for each fault."""
    settings = _settings(config)
    state = load_state(settings.state_dir.resolve())
    alive = running(state)
    if state is not None and alive and config is None:
        settings = client.stack_settings(state)
    faults = 0
    for finding in examine(settings, state, alive):
        sign = "[green]ok  [/]" if finding.cure is None else ("[red]FAIL[/]" if finding.fatal else "[yellow]note[/]")
        console.print(sign, end=" ")
        console.print(f"{finding.what}: {finding.found}", highlight=False, markup=False, soft_wrap=True)
        if finding.cure is not None:
            console.print(f"       {finding.cure}", highlight=False, markup=False, soft_wrap=True)
            faults += finding.fatal
    if faults:
        raise typer.Exit(1)


@app.command()
def chat(
    text: str, model: Annotated[str | None, typer.Option(help="model id; the first configured one if left out")] = None
) -> None:
    """Ask the running stack and stream the answer."""
    state = _running_state()
    for piece in client.ask(state, model or client.stack_settings(state).models[0].model_id, text):
        if piece.facts is None:
            sys.stdout.write(piece.text)
            sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def debate(question: str) -> None:
    """Let the debaters argue side by side, then show the answer."""
    show_debate(console, client.debate(_running_state(), question))


@app.command()
def ingest(
    path: Path,
    project: Annotated[str, typer.Option("--project", help="the project (tenant) that is to know it")],
    timeout_s: Annotated[float, typer.Option(help="how long to wait for the job")] = 3600,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="an empty folder forgets what came from it")] = False,
) -> None:
    """Take in a folder of text, Markdown, HTML and PDF files (or one file) for a project. Exit code 1 if a file was bad."""
    address = dagster_url(_running_state())
    with _interruptible(), console.status("ingesting …"):
        done = ingest_path(address, path, project, timeout_s, allow_empty=allow_empty)
    console.print(done.summary(), highlight=False, markup=False, soft_wrap=True)
    for name, fault in done.faults.items():
        Console(stderr=True).print(f"  {name}: {fault}", highlight=False, markup=False, soft_wrap=True)
    if done.documents["bad"]:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: expected failures become one clear message and exit code 1."""
    try:
        app()
    except KeyboardInterrupt:
        console.print("interrupted", style="yellow")
        sys.exit(130)
    except (RuntimeError, OSError) as error:
        _fail_quietly(str(error))


def _fail(message: str) -> NoReturn:
    raise RuntimeError(message)


def _fail_quietly(message: str) -> NoReturn:
    Console(stderr=True).print(message, style="red", highlight=False, markup=False, soft_wrap=True)
    sys.exit(1)


def _settings(config: str | None) -> Settings:
    try:
        return Settings(config=config) if config else Settings()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}" for fault in error.errors())
        _fail(f"the settings are not right: {faults}")


def _running_state() -> StackState:
    state_dir = _settings(None).state_dir.resolve()
    state = load_state(state_dir)
    if state is None or not running(state):
        _fail(f"no stack runs in {state_dir}: start it with scripts/up, or set AIFACTORY_STATE_DIR")
    return state


def _dsn() -> str:
    settings = _settings(None)
    state = load_state(settings.state_dir.resolve())
    if state is not None and state.postgres_dsn is not None:
        return state.postgres_dsn
    if settings.postgres_dsn is None:
        _fail("no Postgres: start the stack with scripts/up, or set AIFACTORY_POSTGRES_DSN")
    return settings.postgres_dsn.get_secret_value()


def _missing(state: StackState) -> str:
    if state.phase != "ready":
        return "still starting"
    if dead := state.dead():
        return f"{', '.join(dead)} ended; run `aifactory up` again"
    return deployment.not_ready(state) or ""


def _addresses(state: StackState) -> dict[str, object]:
    return {
        "api": f"{state.origin}/v1",
        "api_key_file": str(state.api_key_file),
        "ray_dashboard": ray_dashboard(state),
        "dagster": dagster_url(state),
        "nats": state.nats_url,
        "postgres": state.postgres_dsn,
    }


@contextmanager
def _interruptible() -> Iterator[None]:
    """Treat SIGTERM and a closing terminal like Ctrl-C."""

    def interrupt(*_: object) -> NoReturn:
        # Once is enough: the clean-up that follows must not be interrupted again.
        for number in watched:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, interrupt) for number in watched]
    try:
        yield
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _after_running_up(state_dir: Path) -> Iterator[None]:
    """The stack's lock; an `up` that holds it is asked to give up first."""
    asked = False
    deadline = time.monotonic() + _HANDOVER_S
    while True:
        try:
            with stack_lock(state_dir):
                yield
            return
        except LockedError as error:
            if time.monotonic() > deadline:
                raise
            if error.pid is not None and not asked:
                console.print(f"interrupting the command that runs (process {error.pid}) …", highlight=False)
                os.kill(error.pid, signal.SIGTERM)
                asked = True
            time.sleep(0.2)


if __name__ == "__main__":
    main()
