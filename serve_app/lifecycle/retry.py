"""When a question may be put to the replicas again, and after which pause. Pure but for the dice."""

import random
from dataclasses import dataclass
from typing import Self

from serve_app.errors import AifactoryError
from serve_app.settings import Settings


@dataclass(frozen=True, slots=True)
class Backoff:
    """At most `retries` retries; pauses in seconds double from `first_s` up to `most_s`."""

    retries: int
    first_s: float
    most_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the live settings say now."""
        return cls(settings.replica_retries, settings.retry_backoff_s, settings.retry_backoff_max_s)

    def pause(self, error: AifactoryError, retry: int, *, seconds_left: float) -> float | None:
        """The pause before retry number `retry` (from 0), or None when there is to be none.

        Jitter takes off up to half, so that callers that failed together do not come back together.
        """
        if not error.retryable or retry >= self.retries:
            return None
        longest = min(max(error.retry_after_s or 0.0, self.first_s * 2**retry), self.most_s)
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        return pause if pause < seconds_left else None
