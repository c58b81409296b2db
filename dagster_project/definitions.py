"""What Dagster's webserver and daemon load: `dagster-webserver -m dagster_project.definitions`."""

from dagster import Definitions

from dagster_project.assets import debate_answer
from dagster_project.jobs import debate_job

defs = Definitions(jobs=[debate_job()], assets=[debate_answer])
