"""The job `debate`."""

import logging
from typing import Any, Final

from dagster import Field, InitLoggerContext, JobDefinition, LoggerDefinition, graph

from dagster_project.executor import StepCancelled, StepHost, threaded
from dagster_project.home import DEBATE_JOB
from dagster_project.ops import argue, commit, judge, plan
from dagster_project.resources import Desk
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


@graph(name=JOB, description="Several debaters answer one question, a judge picks the best answer")
def debate_graph() -> None:
    drafts, verdict = judge(plan().map(argue).collect())
    commit(drafts, verdict)


def debate_job(desk: Desk | None = None, host: StepHost | None = None) -> JobDefinition:
    """The job, bound to a worker's desk and threads; without them it can be shown, not executed."""
    return debate_graph.to_job(
        name=JOB,
        resource_defs={"desk": (desk or Desk()).as_resource()},
        executor_def=threaded(host),
        logger_defs={"json": json_lines},
    )
