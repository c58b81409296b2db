"""Dagster's Postgres storage for a warm worker: pooled connections, events written in groups.

The stock storage opens a connection for each event (about 1 run a second). This one keeps a pool, lets a thread
write the events that have gathered meanwhile in one statement, and asks once for what cannot change. The rows are
the same, so webserver and daemon read them with the stock storage.

This stands on private API of dagster 1.13: tests/contracts/test_dagster_private_api.py guards each name used.
"""

import math
import select
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

import psycopg2
import sqlalchemy
from dagster import DagsterEventType
from dagster._core.events import ASSET_CHECK_EVENTS, ASSET_EVENTS, EVENT_TYPE_TO_PIPELINE_RUN_STATUS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorageTable
from dagster._core.storage.event_log.base import PoolLimit
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.run_storage import PostgresRunStorage
from sqlalchemy.pool import ConnectionPoolEntry

from serve_app.telemetry import logger

T = TypeVar("T")
# A run's status must not be seen before the events that led to it.
_ENDS: Final = frozenset(
    {DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_CANCELED, DagsterEventType.RUN_CANCELING}
)
_BUFFER_EVENTS: Final = 10_000
_GATHER_S: Final = 0.02  # how long events may wait for others to be written with, unless somebody waits for them
_WAIT_S: Final = 30.0
_TRIES: Final = 3
_REMEMBERED: Final = 64
_INSERT_EVENTS: Final = SqlEventLogStorageTable.insert()  # made once: SQLAlchemy then finds what it compiled of it faster
_POOLS_S: Final = 1.0
_IDLE_S: Final = 5.0  # a connection that was used more recently is trusted, unless its server closed it


def pooled_engine(postgres_url: str) -> sqlalchemy.Engine:
    """An engine that keeps connections, and checks one that lay idle before it is used again (Postgres may have restarted)."""
    engine = sqlalchemy.create_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        pool_size=8,
        max_overflow=32,
        pool_timeout=_WAIT_S,
        pool_recycle=1800,
        pool_use_lifo=True,
        hide_parameters=True,  # errors go to the log, and the values hold what debaters wrote
        connect_args={"connect_timeout": 5, "application_name": "aifactory-worker"},
    )
    sqlalchemy.event.listen(engine, "checkin", _note_use)
    sqlalchemy.event.listen(engine, "checkout", _check_idle)
    return engine


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info["used_at"] = time.monotonic()


def _check_idle(connection: Any, record: ConnectionPoolEntry, _fairy: Any) -> None:
    """What pool_pre_ping does, without a round trip for each statement of a busy worker: a server that goes says so."""
    try:
        if time.monotonic() - record.info.get("used_at", math.inf) < _IDLE_S and not _has_word(connection):
            return
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error as error:
        raise sqlalchemy.exc.DisconnectionError("the connection died while it lay idle") from error  # the pool takes another


def _has_word(connection: Any) -> bool:
    """Whether something came over a connection on which nothing was asked: its end, mostly."""
    socket = select.poll()
    socket.register(connection.fileno(), select.POLLIN)
    return bool(socket.poll(0))


class _Memory:
    """The last few true answers to questions whose answer does not change; a miss is never kept."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def ask(self, question: Hashable, find: Callable[[], T]) -> T:
        with self._lock:
            if question in self._known:
                self._known.move_to_end(question)
                known: T = self._known[question]
                return known
        found = find()
        if found:
            with self._lock:
                self._known[question] = found
                while len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return found


class GroupCommitEventLog(PostgresEventLogStorage):
    """Writes events behind, in order, many in one statement. Ends of runs and asset events wait until all is written.

    An event that could not be written is reported when its run ends, so a run never ends well with a torn log.
    """

    def __init__(self, postgres_url: str, engine: sqlalchemy.Engine, runs: PostgresRunStorage) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False)
        self._engine = engine
        self._runs = runs
        self._memory = _Memory()
        lock = threading.Lock()
        self._work = threading.Condition(lock)  # tells the writer
        self._changed = threading.Condition(lock)  # tells everybody else
        self._waiting: list[EventLogEntry] = []
        self._taken = self._wanted = self._written = 0  # events so far; up to `_wanted` somebody waits for them
        self._closed = False
        self._torn: OrderedDict[str, Exception] = OrderedDict()  # what a run's events were lost to
        self._pools: tuple[float, Sequence[PoolLimit]] = (-math.inf, ())  # when asked, what it was
        self._writer = threading.Thread(target=self._write_behind, daemon=True, name="dagster-events")
        self._writer.start()

    @property
    def handles_run_events_in_store_event(self) -> bool:
        """Dagster leaves the status of runs to `store_event`: it would read the run anew after each change."""
        return True

    def store_event(self, event: EventLogEntry) -> None:
        kind = event.dagster_event_type if event.is_dagster_event else None
        if self._closed or kind in _ENDS or kind in ASSET_EVENTS or kind in ASSET_CHECK_EVENTS:
            self._store_now(event, kind)
        else:
            self._store_behind(event, hurry=kind is DagsterEventType.STEP_SUCCESS)
        if kind in EVENT_TYPE_TO_PIPELINE_RUN_STATUS:
            self._runs.handle_run_event(event.run_id, event.get_dagster_event(), datetime.fromtimestamp(event.timestamp, UTC))

    def _store_now(self, event: EventLogEntry, kind: DagsterEventType | None) -> None:
        self.flush()
        with self._changed:
            lost = self._torn.pop(event.run_id, None)
        if lost is not None:
            raise lost
        if kind in _ENDS:
            self._insert([event])
        else:
            super().store_event(event)  # which tells the catalogue of assets

    def _store_behind(self, event: EventLogEntry, *, hurry: bool) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._waiting) < _BUFFER_EVENTS, _WAIT_S):
                raise TimeoutError(f"Dagster's event log took no event for {_WAIT_S:.0f} s: is Postgres away?")
            self._waiting.append(event)
            self._taken += 1
            if hurry:  # should this process be killed, the step is not executed again
                self._wanted = self._taken
            if hurry or len(self._waiting) == 1:
                self._work.notify()

    def flush(self) -> None:
        """Wait until the events taken so far are in Postgres, or were given up. Raises TimeoutError."""
        with self._changed:
            upto = self._wanted = self._taken
            self._work.notify()
            if not self._changed.wait_for(lambda: self._written >= upto, _WAIT_S):
                raise TimeoutError(f"Dagster's event log was not written within {_WAIT_S:.0f} s: is Postgres away?")

    def get_records_for_run(self, *args: Any, **kwargs: Any) -> Any:
        self.flush()
        return super().get_records_for_run(*args, **kwargs)

    def has_asset_key_index_cols(self) -> bool:
        return self._memory.ask("asset_key_index", super().has_asset_key_index_cols)

    @property
    def supports_global_concurrency_limits(self) -> bool:
        stock: Any = super()
        return self._memory.ask("pools", lambda: bool(stock.supports_global_concurrency_limits))

    def get_pool_limits(self) -> Sequence[PoolLimit]:
        """The limits that an operator has set. Each run of a job with pools asks, so an answer serves for a second."""
        asked_at, limits = self._pools
        if time.monotonic() - asked_at > _POOLS_S:
            limits = super().get_pool_limits()
            self._pools = (time.monotonic(), limits)
        return limits

    def set_concurrency_slots(self, concurrency_key: str, num: int) -> None:
        super().set_concurrency_slots(concurrency_key, num)
        self._pools = (-math.inf, ())

    def delete_concurrency_limit(self, concurrency_key: str) -> None:
        super().delete_concurrency_limit(concurrency_key)
        self._pools = (-math.inf, ())

    def dispose(self) -> None:
        """Write what is left and end the writer."""
        try:
            self.flush()
        finally:
            with self._changed:
                self._closed = True
                self._work.notify()
            self._writer.join(_WAIT_S)
            super().dispose()

    def _write_behind(self) -> None:
        while True:
            with self._changed:
                self._work.wait_for(lambda: bool(self._waiting) or self._closed)
                if not self._waiting:
                    return
                self._work.wait_for(lambda: self._wanted > self._written or self._closed, _GATHER_S)
                batch, self._waiting = self._waiting, []
                self._changed.notify_all()
            error = self._write(batch)
            with self._changed:
                self._written += len(batch)
                if error is not None:
                    self._torn.update((event.run_id, error) for event in batch)
                    while len(self._torn) > _REMEMBERED:
                        self._torn.popitem(last=False)
                self._changed.notify_all()

    def _insert(self, events: Sequence[EventLogEntry]) -> None:
        rows = [self._event_to_row(event) for event in events]
        with self._engine.begin() as connection:
            connection.execute(_INSERT_EVENTS, rows)

    def _write(self, batch: list[EventLogEntry]) -> Exception | None:
        error: Exception | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(0.2 * 2**attempt)
            try:
                self._insert(batch)
            except Exception as failure:  # noqa: BLE001 - kept, logged below and raised at the end of each run concerned
                error = failure
            else:
                return None
        logger.error("Dagster events lost", events=len(batch), runs=sorted({e.run_id for e in batch}), error=str(error))
        return error


class PooledRunStorage(PostgresRunStorage):
    """Run records over pooled connections; snapshots of jobs and plans are looked up once."""

    def __init__(self, postgres_url: str, engine: sqlalchemy.Engine) -> None:
        super().__init__(postgres_url, should_autocreate_tables=False)
        self._engine = self.engine = engine
        self._memory = _Memory()

    def has_run_stats_index_cols(self) -> bool:
        return self._memory.ask("run_stats", super().has_run_stats_index_cols)

    def has_backfill_id_column(self) -> bool:
        return self._memory.ask("backfill_id", super().has_backfill_id_column)

    def has_job_snapshot(self, job_snapshot_id: str) -> bool:
        ask = super().has_job_snapshot
        return self._memory.ask(("has_job", job_snapshot_id), lambda: ask(job_snapshot_id))

    def has_execution_plan_snapshot(self, execution_plan_snapshot_id: str) -> bool:
        return bool(self.get_execution_plan_snapshot(execution_plan_snapshot_id))

    def get_job_snapshot(self, job_snapshot_id: str) -> Any:
        ask = super().get_job_snapshot
        return self._memory.ask(("job", job_snapshot_id), lambda: ask(job_snapshot_id))

    def get_execution_plan_snapshot(self, execution_plan_snapshot_id: str) -> Any:
        ask = super().get_execution_plan_snapshot
        return self._memory.ask(("plan", execution_plan_snapshot_id), lambda: ask(execution_plan_snapshot_id))


class WarmPostgresStorage(DagsterPostgresStorage):
    """All of Dagster's storage over one pool. Named in the worker's instance configuration."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, should_autocreate_tables=True, inst_data=inst_data)
        self.engine = pooled_engine(postgres_url)
        self._run_storage = PooledRunStorage(postgres_url, self.engine)
        self._event_log_storage = GroupCommitEventLog(postgres_url, self.engine, self._run_storage)
        self._schedule_storage._engine = self.engine

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        return cls(config_value["postgres_url"], inst_data)
