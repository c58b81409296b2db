"""A debate that was filled in on Dagster's web page: from the run's config to a run in the queue.

The web page has no loop and no connections: what is needed is opened for one launch or one cancel, and closed again.
"""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from dagster import DagsterRun
from pydantic import ValidationError

from serve_app.answers import failed
from serve_app.bus.connection import NatsConnection
from serve_app.bus.event_bus import NatsEventBus
from serve_app.bus.run_queue import run_queue
from serve_app.configured import DEBATE_MODEL_ID
from serve_app.debates import DebateField, resolve_debate
from serve_app.errors import AifactoryError, BadRequest, Unavailable
from serve_app.events import Usage
from serve_app.lifecycle.local_runs import LocalRuns
from serve_app.lifecycle.settle import settle
from serve_app.lifecycle.stopping import stop_run
from serve_app.lifecycle.sweep import waiting_lease_s
from serve_app.ports import RunQueue
from serve_app.replicas.catalog import Catalog
from serve_app.runs import CachePolicy, Question, Run, new_trace_id
from serve_app.settings import Settings
from serve_app.store.api_keys import check_project
from serve_app.store.pool import PostgresPool
from serve_app.store.run_log import PostgresRunStore

DEFAULT_PROJECT: Final = "default"
_LONGEST_S: Final = 86_400.0  # as in the API
_CLIENT: Final = "aifactory-dagster-ui"
_NOT_OF_THE_FIELD: Final = ("question", "project", "timeout_s")


def asked_in(run: DagsterRun, settings: Settings) -> Run:
    """The run that a Dagster run's config asks for. Raises errors.BadRequest or NotFound that say what to fill in."""
    config: dict[str, Any] = dict(run.run_config)
    form: dict[str, Any] = config.get("ops", {}).get("plan", {}).get("config") or {}
    text = form.get("question")
    if not isinstance(text, str) or not text.strip():
        raise BadRequest(
            "a debate needs a question: fill in ops.plan.config.question in the Launchpad. A debate that came through the "
            "API keeps its question out of Dagster, so it cannot be executed again from here: ask the API "
            '(POST /v1/chat/completions with "x_route": "workflow")',
            param="question",
        )
    timeout_s = form.get("timeout_s", settings.request_timeout_s)
    if not 0 < timeout_s <= _LONGEST_S:
        raise BadRequest(f"timeout_s must be above 0 and at most {_LONGEST_S:g}", param="timeout_s")
    project = form.get("project") or DEFAULT_PROJECT
    try:
        check_project(project)
    except ValueError as error:
        raise BadRequest(str(error), param="project") from error
    wanted = {name: value for name, value in form.items() if name not in _NOT_OF_THE_FIELD}
    try:
        field = DebateField.model_validate(wanted)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise BadRequest(f"ops.plan.config is not a debate: {told}") from error
    question = Question(
        project=project,
        route="workflow",
        model=DEBATE_MODEL_ID,
        adapter=None,
        messages=[{"role": "user", "content": text}],
        debate=resolve_debate(field, settings, Catalog(settings.models).known_ids()),
    )
    now = time.time()
    return Run(
        trace_id=new_trace_id(),
        req_id=question.req_id,
        key=f"dagster:{run.run_id}",
        keyed=True,  # nobody needs to read along, and it is not the answer to anybody else's question
        question=question,
        deadline=now + timeout_s,
        cache=CachePolicy(mode="bypass"),
        started=now,
        dagster_run_id=run.run_id,
    )


@dataclass(frozen=True, slots=True)
class _Reach:
    store: PostgresRunStore
    bus: NatsEventBus
    queue: RunQueue


@asynccontextmanager
async def _reach(settings: Settings) -> AsyncIterator[_Reach]:
    if settings.postgres_dsn is None or settings.nats_url is None:
        raise Unavailable("postgres_dsn or nats_url is not set, so the workers cannot be reached")
    async with AsyncExitStack() as stack:
        pool = PostgresPool(
            settings.postgres_dsn.get_secret_value(), size=1, timeout_s=settings.postgres_timeout_s, application_name=_CLIENT
        )
        stack.push_async_callback(pool.close)
        connection = NatsConnection(settings.nats_url.get_secret_value(), _CLIENT)
        stack.push_async_callback(connection.close)
        bus, queue = NatsEventBus.for_settings(connection, settings), run_queue(connection, settings)
        yield _Reach(PostgresRunStore(pool), bus, queue)


async def submit(run: Run, settings: Settings) -> None:
    """Claim the run and put it into the queue, as a gateway does. Raises errors.Unavailable or Overloaded."""
    async with _reach(settings) as reach:
        await reach.store.claim(run, lease_s=waiting_lease_s(run, settings.lease_s))
        await reach.store.note_dagster_run(run.trace_id, run.dagster_run_id or "")
        try:
            await reach.queue.submit(run)
        except AifactoryError as error:
            # Claimed and not queued: it must not stay `running`.
            await settle(reach.store, await reach.bus.open_run(run.trace_id), run, failed(error, Usage()))
            raise


async def cancel(trace_id: str, reason: str, settings: Settings) -> None:
    """Ask the run's owner to stop it, through the log and NATS. Raises errors.Unavailable when neither took it."""
    async with _reach(settings) as reach:
        await stop_run(trace_id, reason, store=reach.store, bus=reach.bus, local_runs=LocalRuns(1))
