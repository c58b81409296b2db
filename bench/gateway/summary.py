"""From raw lines to one row per candidate, and to the goals."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Line = dict[str, Any]
OURS: Final = "aifactory"
BARE: Final = "engine"


@dataclass
class Row:
    """The figures of one candidate. Times are seconds, over the bare engine's median beside it (its own are as they are)."""

    name: str
    told: str = ""
    missing: str = ""  # why it could not be had
    whole: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # between tokens, as they are
    rates: dict[int, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))  # answers, seconds by lanes
    failed: int = 0
    tokens: list[float] = field(default_factory=list)  # of eight streams, over the bare engine's
    rss: dict[str, int] = field(default_factory=dict)
    cold: list[float] = field(default_factory=list)

    def best_rate(self) -> tuple[float, int] | None:
        """Answers a second at saturation, and the concurrency where that is."""
        found = [(sum(a for a, _ in turns) / sum(s for _, s in turns), lanes) for lanes, turns in self.rates.items()]
        return max(found, default=None)


@dataclass(frozen=True)
class Goal:
    """A goal, and what was measured. `held` None: it cannot be said, because a candidate is missing."""

    what: str
    told: str
    held: bool | None


def rows_of(lines: Sequence[Line]) -> dict[str, Row]:
    """One row per candidate, in the order in which they were begun."""
    bare = _Bare(lines)
    rows: dict[str, Row] = {}
    for line in lines:
        if "candidate" not in line:
            continue
        row = rows.setdefault(line["candidate"], Row(line["candidate"]))
        match line["kind"]:
            case "candidate_up":
                row.told, row.missing = line["told"], ""
                row.cold += [line["cold_s"]] if line["cold_s"] is not None else []
            case "not_had":
                row.missing = row.missing or ("" if row.told else line["why"])
            case "whole":
                row.whole.append(line["seconds"] - bare.of(line, "seconds"))
            case "stream":
                row.ttft.append(line["ttft"] - bare.of(line, "ttft"))
                row.gaps += line["gaps"]
            case "load":
                row.rates[line["concurrency"]].append((line["answers"], line["seconds"]))
                row.failed += line["failed"]
            case "streams":
                row.tokens.append(line["per_s"] / (bare.of(line, "per_s") or 1))
            case "memory":
                row.rss = line["rss"]
    return rows


class _Bare:
    """Medians of the bare engine, by the group of candidates that it stood beside: noise changes from group to group."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for line in lines:
            if line.get("candidate") == BARE and "group" in line:
                for name in ("seconds", "ttft", "per_s"):
                    if name in line:
                        self._found[line["group"], line["kind"], name].append(line[name])

    def of(self, line: Line, name: str) -> float:
        """What to compare a candidate's figure with; nothing for the engine itself."""
        if line["candidate"] == BARE:
            return 0.0
        return statistics.median(self._found[line["group"], line["kind"], name])


def quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if share != 0.5 else statistics.median(ordered)


def goals_of(rows: dict[str, Row]) -> list[Goal]:
    """The goals, for what was measured."""
    none = Row("")
    ours, litellm, ray = (rows.get(name, none) for name in (OURS, "litellm", "ray"))

    def against(mine: list[float], theirs: list[float]) -> float | None:
        return statistics.median(mine) / statistics.median(theirs) if mine and theirs else None

    def rate(other: Row) -> float | None:
        mine, theirs = ours.best_rate(), other.best_rate()
        return mine[0] / theirs[0] if mine and theirs and theirs[0] else None

    tokens = statistics.median(ours.tokens) if ours.tokens else None
    return [
        _at_most("added latency of whole answers, p50, over LiteLLM's", against(ours.whole, litellm.whole), 0.5),
        _at_most("added time to first token, p50, over LiteLLM's", against(ours.ttft, litellm.ttft), 0.33),
        _at_least("answers a second at saturation, over LiteLLM's", rate(litellm), 3),
        _at_least("answers a second at saturation, over Ray Serve LLM's", rate(ray), 1),
        _at_least("tokens a second of eight streams, over the bare engine's", tokens, 0.97),
        _at_most("start to first answer, over Ray Serve LLM's", against(ours.cold, ray.cold), 1.3),
    ]


def _at_most(what: str, value: float | None, goal: float) -> Goal:
    return Goal(
        f"{what} <= {goal:g}", "not measured" if value is None else f"{value:.2f}", None if value is None else value <= goal
    )


def _at_least(what: str, value: float | None, goal: float) -> Goal:
    return Goal(
        f"{what} >= {goal:g}", "not measured" if value is None else f"{value:.2f}", None if value is None else value >= goal
    )
