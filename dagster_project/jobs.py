"""The job `debate`."""

import logging
from typing import Any, Final

from dagster import Field, InitLoggerContext, IOManager, IOManagerDefinition, JobDefinition, LoggerDefinition, graph

from dagster_project.deciding import decide
from dagster_project.home import DEBATE_JOB
from dagster_project.ops import argue, argue_again, commit, plan, review
from dagster_project.resources import Desk
from dagster_project.rounds import Held
from dagster_project.warm.executor import StepCancelled, StepHost, threaded
from dagster_project.warm.step_outputs import Constant, DurableOutputs
from serve_app.telemetry import logger

JOB: Final = DEBATE_JOB
_TRACEBACK_CHARS: Final = 4000
_CANCELS: Final = frozenset({StepCancelled.__name__, "DagsterExecutionInterruptedError"})


class _ToLoguru(logging.Handler):
    """Sends to our JSON log why a step or a run broke. How a run ended is told by the worker, the rest is in the UI."""

    def emit(self, record: logging.LogRecord) -> None:
        told = getattr(record, "dagster_meta", {})
        event = told.get("dagster_event")
        error = getattr(event.event_specific_data, "error", None) if event is not None else None
        if error is None or error.cls_name in _CANCELS:
            return
        text = told.get("orig_message") or record.getMessage()
        named = {"trace_id": told.get("job_tags", {}).get("trace_id"), "dagster_run_id": told.get("run_id")}
        logger.log(record.levelname, "dagster: {}", text, traceback=error.to_string()[-_TRACEBACK_CHARS:], **named)


def _json_lines(context: InitLoggerContext) -> logging.Logger:
    sink = logging.Logger("dagster-run", level=context.logger_config["level"])
    sink.addHandler(_ToLoguru())
    return sink


json_lines: Final = LoggerDefinition(
    _json_lines,
    config_schema={"level": Field(str, default_value="WARNING", is_required=False)},
    description="faults of steps and runs as JSON lines on stderr",
)
# Without this Dagster adds its own console logger, which tells every event in colour.
RUN_CONFIG: Final[dict[str, Any]] = {"loggers": {"json": {}}}
QUIET_CONFIG: Final[dict[str, Any]] = {"loggers": {"json": {"config": {"level": "CRITICAL"}}}}


def _round(name: str, tasks: Any, heard: Any) -> Any:
    """The answers of a further round. With nobody to ask, it and its review are skipped."""
    again = argue_again.alias(name)
    return tasks.map(lambda label: again(label, heard)).collect()


@graph(name=JOB, description="Several debaters answer one question, in one to three rounds; a strategy finds the best answer")
def debate_graph() -> None:
    tasks, begun, more = plan()
    first = tasks.map(argue).collect()
    held_1, tasks_2 = review.alias("review_1")(first, more)
    held_2, tasks_3 = review.alias("review_2")(_round("argue_2", tasks_2, held_1), held_1)
    held_3, _ = review.alias("review_3")(_round("argue_3", tasks_3, held_2), held_2)
    # What was skipped is left out of a list; `begun` is always there, or a debate of one round would skip `decide`.
    commit(decide(first, [begun, held_1, held_2, held_3]))


def debate_job(desk: Desk | None = None, host: StepHost | None = None) -> JobDefinition:
    """The job, bound to a worker's desk and threads; without them it can be shown, not executed."""
    desk = desk or Desk()
    outputs = DurableOutputs(lambda run_id: desk.find(run_id).kept)
    return debate_graph.to_job(
        name=JOB,
        resource_defs={
            "desk": desk.as_resource(),
            "io_manager": _fixed(outputs, "outputs of finished steps, until the run has ended"),
            "nothing_held": _fixed(Constant(Held()), "the start of a debate, before anything was said"),
        },
        executor_def=threaded(host),
        logger_defs={"json": json_lines},
    )


def _fixed(made: IOManager, description: str) -> IOManagerDefinition:
    return IOManagerDefinition(lambda _context: made, description=description)
