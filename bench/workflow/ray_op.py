"""The least that a Ray job per run can be: a job of one op that does nothing, from a module that imports little."""

from dagster import job, op


@op
def first_op() -> None:
    """Its start is what is measured."""


@job
def one_op() -> None:
    first_op()
