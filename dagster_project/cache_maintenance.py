"""The job `cache_maintenance`: what the answer cache needs now and then, and reads all of it.

Who does what: the sweeper (serve_app.lifecycle.sweep) lives in every gateway and worker and removes expired answers
every few minutes, a bounded batch at a time, because that is one indexed statement and must also happen where Dagster
does not run. This job does what reads whole tables, and would be done several times over by several sweepers: caps,
quarantine, the check. It removes expired answers too, through the same query, so that its caps count live answers only,
and what an outage of all sweepers left goes in one run.

The schedule is on: one process of some seconds an hour is about a thousandth of one core, and without it a scope that
gets many questions a day makes each search in it slower.
"""

from dataclasses import dataclass
from typing import Final

from dagster import (
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetSelection,
    DefaultScheduleStatus,
    MaterializeResult,
    ScheduleDefinition,
    asset,
    define_asset_job,
    in_process_executor,
)

from dagster_project.parts import STACK, StackParts, StoreParts
from serve_app.settings import Settings

JOB: Final = "cache_maintenance"
_JUST_NOW_S: Final = 60.0  # what expires while a round is at work is the next one's


@dataclass(frozen=True, slots=True)
class Maintained:
    """What one round did; `expired_left` should have gone and did not."""

    expired: int
    quarantined: int
    vectors_over_scope_cap: int
    answers_over_cap: int
    expired_left: int
    hnsw_indexes: int


async def maintain(parts: StoreParts, settings: Settings) -> Maintained:
    """Expiry first, so that what follows looks at live answers; quarantine before the caps, so that bad ones do not count."""
    upkeep = parts.upkeep
    expired = await upkeep.purge()
    quarantined = await upkeep.quarantine_bad(parts.embedder.dimensions)
    over_scope = await upkeep.trim_scopes(settings.cache_entries_per_scope)
    over_all = await upkeep.trim(settings.cache_entries)
    expired_left = await upkeep.expired(since_s=_JUST_NOW_S)
    fitted = await upkeep.fit_indexes(settings.cache_hnsw_from, parts.embedder.dimensions)  # last: it may take minutes
    return Maintained(expired, quarantined, over_scope, over_all, expired_left, fitted.held)


@asset(
    group_name="cache",
    required_resource_keys={STACK},
    check_specs=[AssetCheckSpec("no_expired_answers", asset="completions_cache", description="none is left after a round")],
)
def completions_cache(context: AssetExecutionContext) -> MaterializeResult:  # type: ignore[type-arg] # Dagster looks for the bare class
    """Answers that may be given again, in Postgres (table completions_cache); materialized when it has been cleaned."""
    stack: StackParts = context.resources.stack
    done = stack.run(JOB, lambda parts: maintain(parts, stack.settings))
    return MaterializeResult(
        metadata={
            "expired": done.expired,
            "quarantined": done.quarantined,
            "vectors_over_scope_cap": done.vectors_over_scope_cap,
            "answers_over_cap": done.answers_over_cap,
            "hnsw_indexes": done.hnsw_indexes,
        },
        check_results=[
            AssetCheckResult(
                check_name="no_expired_answers", passed=done.expired_left == 0, metadata={"found": done.expired_left}
            )
        ],
    )


cache_maintenance_job = define_asset_job(
    JOB,
    selection=AssetSelection.assets(completions_cache),
    executor_def=in_process_executor,
    description="Remove expired answers, keep the caps, put bad answers into quarantine",
)

cache_maintenance_schedule = ScheduleDefinition(
    name="cache_maintenance_every_hour",
    job=cache_maintenance_job,
    cron_schedule="17 * * * *",
    default_status=DefaultScheduleStatus.RUNNING,
    description="On: some seconds of one process an hour.",
)
