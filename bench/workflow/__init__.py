"""Measurements of the workflow route: see bench/workflow.py."""
