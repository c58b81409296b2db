"""Debates against a single answer and self-consistency at equal tokens. bench/debate_quality.py is the command."""
