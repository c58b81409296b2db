"""What Dagster's webserver and daemon load: `dagster-webserver -m dagster_project.definitions`."""

from dagster import Definitions

from dagster_project.assets import debate_answer
from dagster_project.jobs import debate_job
from dagster_project.sweep_job import sweep_job, sweep_schedule

defs = Definitions(jobs=[debate_job(), sweep_job], schedules=[sweep_schedule], assets=[debate_answer])
