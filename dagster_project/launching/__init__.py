"""Debates that do not start in a warm worker: processes of their own, Ray jobs, and those launched in Dagster's UI."""
