"""The faults of a replica, and what a client should see of each."""

from dataclasses import dataclass
from typing import Any

import openai


@dataclass(frozen=True)
class Case:
    """A fault, and what a client should see: the whole answer where `error` is None."""

    name: str
    fault: dict[str, Any]
    error: type[openai.APIError] | None = None
    code: str | None = None
    early: bool = True  # the error comes before the first token
    finish: str = "stop"

    @property
    def silent(self) -> bool:
        """Whether the replica's silence is the fault. Only then may a caller be impatient: a slow machine is silent too."""
        return self.fault["kind"] == "no_reply" or (self.fault["kind"] == "stall" and self.error is not None)


CASES = [
    Case("429 without end", {"kind": "overloaded"}, openai.RateLimitError),
    Case("429 with end", {"kind": "overloaded", "times": 2}),
    Case("500 once", {"kind": "server_error", "times": 1}),
    Case("500 without end", {"kind": "server_error"}, openai.InternalServerError),
    Case("503", {"kind": "unavailable"}, openai.RateLimitError),
    Case("503 once", {"kind": "unavailable", "times": 1}),
    Case("reset before headers", {"kind": "reset"}, openai.InternalServerError),
    Case("reset once", {"kind": "reset", "times": 1}),
    Case("no reply", {"kind": "no_reply"}, openai.InternalServerError),
    Case("no reply once", {"kind": "no_reply", "times": 1}),
    Case("slow first token", {"kind": "slow_start", "seconds": 0.3}),
    Case("cut at 0 once", {"kind": "cut", "after": 0, "times": 1}),
    Case("cut at 0", {"kind": "cut", "after": 0}, openai.InternalServerError),
    Case("cut at 40", {"kind": "cut", "after": 40}, openai.APIError, early=False),
    Case("cut at 60", {"kind": "cut", "after": 60, "times": 1}, openai.APIError, early=False),
    Case("long stall", {"kind": "stall", "after": 10, "seconds": 600}, openai.APIError, early=False),
    Case("short stall", {"kind": "stall", "after": 10, "seconds": 0.3}),
    Case("malformed chunk", {"kind": "malformed", "after": 5}, openai.APIError, early=False),
    Case("end without finish_reason", {"kind": "no_finish"}, openai.APIError, early=False),
    Case("no [DONE] after finish_reason", {"kind": "no_end"}),
    Case("400 context", {"kind": "context"}, openai.BadRequestError, code="context_length_exceeded"),
    Case("400 filter", {"kind": "filter"}, openai.BadRequestError, code="content_filter"),
    Case("cut, prefill refused", {"kind": "no_prefill", "after": 30}, openai.APIError, early=False),
    Case("flapping", {"kind": "server_error", "every": 2}),
    Case("failing usage", {"kind": "bad_usage"}),
    Case("finish_reason content_filter", {"kind": "filtered"}, finish="content_filter"),
]
