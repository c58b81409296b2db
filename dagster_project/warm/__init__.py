"""Dagster made warm: its storage over pooled connections, its steps in threads. Knows Dagster, and no debate."""
