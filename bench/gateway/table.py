"""The table, as Markdown."""

import statistics
from collections.abc import Sequence

from bench.gateway.summary import BARE, Goal, Row, quantile

_HEAD = (
    "| candidate | whole answer, added ms p50 / p99 | first token, added ms p50 / p99 | between tokens, ms p50 / p99 "
    "| answers/s (at c) | 8 streams, tokens/s over bare | RSS MiB: gateway / all | start to first answer, s |"
)
_NONE = "-"


def table(rows: dict[str, Row]) -> str:
    """One line per candidate; added is over the bare engine's median."""
    lines = [_HEAD, "|---" * _HEAD.count(" | ") + "|---|"]
    return "\n".join([*lines, *map(_line, rows.values())])


def legend(rows: dict[str, Row]) -> str:
    """What each name stands for."""
    return "\n".join(f"- `{row.name}`: {row.told}" for row in rows.values() if row.told)


def verdicts(goals: Sequence[Goal]) -> str:
    marks = {True: "held", False: "**missed**", None: "not measured"}
    lines = ["| goal | measured | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {goal.what} | {goal.told} | {marks[goal.held]} |" for goal in goals)])


def _line(row: Row) -> str:
    if row.missing:
        return f"| {row.name} | not installed: {' '.join(row.missing.split())[:200]} |" + " |" * 6
    whole = " in all" if row.name == BARE else ""
    cells = [row.name, _pair(row.whole) + whole, _pair(row.ttft) + whole, _pair(row.gaps), _rate(row), _tokens(row)]
    cells += [_memory(row), f"{statistics.median(row.cold):.1f}" if row.cold else _NONE]
    return f"| {' | '.join(cells)} |"


def _pair(values: Sequence[float]) -> str:
    return f"{quantile(values, 0.5) * 1000:.1f} / {quantile(values, 0.99) * 1000:.1f}" if values else _NONE


def _rate(row: Row) -> str:
    best = row.best_rate()
    if best is None:
        return _NONE
    return f"{best[0]:.0f} ({best[1]})" + (f", {row.failed} failed" if row.failed else "")


def _tokens(row: Row) -> str:
    if not row.tokens:
        return _NONE
    middle = statistics.median(row.tokens)
    return f"{middle:.0f}/s" if row.name == BARE else f"{middle:.2f}"


def _memory(row: Row) -> str:
    if not row.rss:
        return _NONE
    return f"{row.rss.get('gateway', 0) / 2**20:.0f} / {sum(row.rss.values()) / 2**20:.0f}"
