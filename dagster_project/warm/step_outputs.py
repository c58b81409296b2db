"""Where the outputs of a debate's steps are kept until the run has ended: beside Dagster's tables, as JSON.

A worker that takes a run up, on whatever machine, finds there what the finished steps gave. While one worker has the
run, its steps read from memory, and the table is only written. Nothing is pickled: an output is one of the protocol's
frozen types, or the label of a debater, which is its mapping key and needs no keeping.
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson
import sqlalchemy
from dagster import InputContext, IOManager, OutputContext
from pydantic import BaseModel, ValidationError
from sqlalchemy.dialects import postgresql

from serve_app.telemetry import logger

_KEPT_S: Final = 86_400.0  # outputs of a run that nobody ended; longer than any deadline
_PURGE_S: Final = 600.0
_LOCK: Final = 7_301  # of the advisory lock under which the table is made


class OutputKey(NamedTuple):
    """One output of one step; `mapping_key` is empty except for dynamic outputs."""

    step: str
    output: str = "result"
    mapping_key: str = ""


_TABLE: Final = sqlalchemy.Table(
    "aifactory_step_outputs",
    sqlalchemy.MetaData(),
    sqlalchemy.Column("root_run_id", sqlalchemy.Text, primary_key=True),
    sqlalchemy.Column("step_key", sqlalchemy.Text, primary_key=True),
    sqlalchemy.Column("output_name", sqlalchemy.Text, primary_key=True),
    sqlalchemy.Column("mapping_key", sqlalchemy.Text, primary_key=True),
    sqlalchemy.Column("value", sqlalchemy.LargeBinary, nullable=False),
    sqlalchemy.Column("kept_at", sqlalchemy.Double, nullable=False, index=True),  # Unix seconds
)


_NEW: Final = postgresql.insert(_TABLE)
_PUT: Final = _NEW.on_conflict_do_update(index_elements=list(_TABLE.primary_key), set_={"value": _NEW.excluded.value})


class StepOutputs:
    """The table. Its calls block, and raise what SQLAlchemy raises."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine
        self._purged_at = 0.0
        self._made = False

    def create(self) -> None:
        """Make the table unless it is there; asks only once."""
        if self._made:
            return
        with self._engine.connect() as connection, connection.execution_options(isolation_level="READ COMMITTED").begin():
            # Two that make it at once would both find it missing, and one would fail.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            _TABLE.create(connection, checkfirst=True)
        self._made = True

    def save(self, root_run_id: str, key: OutputKey, value: bytes) -> None:
        """Keep one output; a second time replaces the first."""
        row = {"root_run_id": root_run_id, "step_key": key.step, "output_name": key.output, "mapping_key": key.mapping_key}
        with self._engine.begin() as connection:
            connection.execute(_PUT, {**row, "value": value, "kept_at": time.time()})

    def load(self, root_run_id: str) -> dict[OutputKey, bytes]:
        """All outputs that are kept of a run and its children."""
        rows = sqlalchemy.select(_TABLE).where(_TABLE.c.root_run_id == root_run_id)
        with self._engine.connect() as connection:
            return {OutputKey(r.step_key, r.output_name, r.mapping_key): bytes(r.value) for r in connection.execute(rows)}

    def discard(self, root_run_id: str) -> None:
        """Forget a run that has ended; now and then also those that were never ended."""
        now = time.time()
        ended = _TABLE.c.root_run_id == root_run_id
        if now - self._purged_at > _PURGE_S:
            self._purged_at = now
            ended = ended | (_TABLE.c.kept_at < now - _KEPT_S)
        with self._engine.begin() as connection:
            connection.execute(_TABLE.delete().where(ended))


class RunOutputs:
    """The outputs of one run's steps: in memory, and in the table behind it. Thread-safe."""

    def __init__(self, store: StepOutputs, root_run_id: str, kinds: tuple[type[BaseModel], ...]) -> None:
        self._store = store
        self._root = root_run_id
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._lock = threading.Lock()
        self._known: dict[OutputKey, BaseModel] = {}

    def recall(self) -> None:
        """Read what earlier takes of the run have kept. What this version cannot read is left out: its step runs again."""
        for key, raw in self._store.load(self._root).items():
            try:
                told = orjson.loads(raw)
                self._put(key, self._kinds[told["kind"]].model_validate(told["value"]))
            except (KeyError, TypeError, ValidationError, orjson.JSONDecodeError) as error:
                # The error itself may quote what a debater wrote.
                told_of = {"step": key.step, "dagster_run_id": self._root, "error": type(error).__name__}
                logger.warning("a kept step output cannot be read", **told_of)

    def keep(self, key: OutputKey, value: BaseModel) -> None:
        """Keep an output durably; the same one again costs nothing. Raises TypeError for a type that is not of the run."""
        name = type(value).__name__
        if name not in self._kinds:
            raise TypeError(f"output {key} is a {name}; a debate's steps give {sorted(self._kinds)} or a mapping key")
        if self.find(key) is value:
            return
        told = {"kind": name, "value": value.model_dump(mode="json", exclude_defaults=True)}
        self._store.save(self._root, key, orjson.dumps(told))
        self._put(key, value)

    def find(self, key: OutputKey) -> BaseModel | None:
        with self._lock:
            return self._known.get(key)

    def all(self) -> dict[OutputKey, BaseModel]:
        """What is known now."""
        with self._lock:
            return dict(self._known)

    def discard(self) -> None:
        """The run has ended: forget its outputs."""
        self._store.discard(self._root)

    def _put(self, key: OutputKey, value: BaseModel) -> None:
        with self._lock:
            self._known[key] = value


class DurableOutputs(IOManager):
    """Dagster's side of it: `find` gives the outputs of the run that a Dagster run executes."""

    def __init__(self, find: Callable[[str], RunOutputs]) -> None:
        self._find = find

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Raises TypeError for an output that is neither a type of the run nor its own mapping key."""
        if context.mapping_key is not None and obj == context.mapping_key:
            return
        self._find(context.run_id).keep(_key(context), obj)

    def load_input(self, context: InputContext) -> Any:
        """Raises LookupError when the output is not kept (any more)."""
        given = context.upstream_output
        assert given is not None
        if given.mapping_key is not None:
            return given.mapping_key
        found = self._find(context.step_context.run_id).find(_key(given))
        if found is None:
            raise LookupError(
                f"the output {given.name!r} of step {given.step_key!r} is not kept: run the debate again as a whole"
            )
        return found


class Constant(IOManager):
    """For outputs that are always the same value: they only lead the way."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def handle_output(self, context: OutputContext, obj: Any) -> None:
        """Nothing to keep."""

    def load_input(self, context: InputContext) -> Any:
        return self._value


def _key(context: OutputContext) -> OutputKey:
    return OutputKey(context.step_key, context.name, context.mapping_key or "")
