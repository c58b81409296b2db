"""What Dagster's code server loads; web server and daemon ask it."""

from dagster import Definitions

from dagster_project.assets import debate_answer
from dagster_project.cache_maintenance import cache_maintenance_job, cache_maintenance_schedule, completions_cache
from dagster_project.ingest import chunks, documents, ingest_job, waiting_documents
from dagster_project.jobs import debate_job
from dagster_project.parts import STACK, stack_parts
from dagster_project.sweep_job import sweep_job, sweep_schedule

defs = Definitions(
    jobs=[debate_job(), sweep_job, ingest_job, cache_maintenance_job],
    schedules=[sweep_schedule, cache_maintenance_schedule],
    sensors=[waiting_documents],
    assets=[debate_answer, documents, chunks, completions_cache],
    resources={STACK: stack_parts},
)
