"""What an API key and its project may use: requests a minute, runs at once, tokens of a period.

A key and the project of a request each may have limits; both hold. Whatever has none costs nothing here.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from serve_app.errors import AifactoryError

Period = Literal["day", "month"]
MOST_REQUESTS_PER_MINUTE = 1_000_000


def key_subject(key_id: str) -> str:
    """How limits name a key."""
    return f"key:{key_id}"


def project_subject(project: str) -> str:
    """How limits name a project."""
    return f"project:{project}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one key or project; None is no limit. `tokens` are those of a calendar day or month in UTC.

    Raises ValueError for what cannot be a limit.
    """

    requests_per_minute: int | None = None
    concurrent_runs: int | None = None
    tokens: int | None = None
    period: Period | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "concurrent_runs", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; leave it out for no limit")
        if (self.requests_per_minute or 0) > MOST_REQUESTS_PER_MINUTE:
            raise ValueError(f"requests_per_minute may be {MOST_REQUESTS_PER_MINUTE} at most; leave it out for no limit")
        if (self.tokens is None) != (self.period is None):
            raise ValueError("a token budget needs a number of tokens and its period, day or month")

    @property
    def empty(self) -> bool:
        return self == Limits()


@dataclass(frozen=True, slots=True)
class LimitsEntry:
    """Limits in a listing, of `key:KEY_ID` or `project:NAME`, and the tokens used in the present period."""

    subject: str
    limits: Limits
    used: int


@dataclass(frozen=True, slots=True)
class Account:
    """Who is charged for a request: the key, and the project that it acts for."""

    key_id: str
    project: str

    @property
    def subjects(self) -> tuple[str, str]:
        """As limits name them: the key, the project."""
        return key_subject(self.key_id), project_subject(self.project)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of `limit`, and the seconds until all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """Where an account stands once a request has been spent, or why it was refused. Of key and project the scarcer one."""

    requests: Allowance | None = None
    tokens: Allowance | None = None
    refusal: AifactoryError | None = None

    def headers(self) -> dict[str, str]:
        """As OpenAI sends them; of what has no limit there are none."""
        told = {}
        for name, allowance in (("requests", self.requests), ("tokens", self.tokens)):
            if allowance is not None:
                told[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
                told[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
                told[f"x-ratelimit-reset-{name}"] = duration(allowance.reset_s)
        return told


class Meter(Protocol):
    """Holds accounts to their limits. Every method raises errors.Unavailable when the database is away."""

    async def enter(self, account: Account) -> Standing:
        """Spend one request: one statement. A request over the rate, or over the budget, is refused and spends nothing."""
        ...

    async def charge(self, account: Account, tokens: int) -> None:
        """Take tokens from the budgets, for work that leaves no run."""
        ...

    def place(self, account: Account, trace_id: str, *, for_s: float) -> AbstractAsyncContextManager[None]:
        """One of the places of those at once, for work that leaves no run; free again after `for_s` in any case.

        Raises errors.RateLimited when all are taken.
        """
        ...


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: `20ms`, `1.5s`, `6m0s`, `3h2m1s`."""
    if seconds < 1:
        return f"{round(max(0.0, seconds) * 1000)}ms"
    if seconds < 60:
        return f"{round(seconds, 3):g}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
