"""Every error a caller can meet.

AifactoryError
├── BadRequest            400   the request is wrong; the message names the field and the cure
│   └── BodyTooLarge      413
├── Unauthorized          401
├── Forbidden             403
├── NotFound              404   unknown model, run, document; cache_miss
├── KeyReused             422   the Idempotency-Key was used with another body
├── Cancelled             499   the run was cancelled
├── RateLimited           429   more requests, or more at once, than the key or its project may have; retry
├── QuotaExhausted        429   the token budget of this period is used up
├── Overloaded            429   a queue is full; retry
├── Unavailable           503   a part is away; retry
├── DeadlineExceeded      504   the run's deadline passed
└── UpstreamFailed        502   a replica failed or spoke nonsense
"""

from typing import Any, ClassVar, Self


class AifactoryError(Exception):
    """An error in OpenAI's shape.

    `param` names the field at fault, `code` is stable and machine-readable, `retryable` says whether the same
    request may succeed later.
    """

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions with keyword arguments do not pickle by themselves, and these cross Ray processes.
        return _rebuild, (type(self), self.message, self.param, self.code, self.retry_after_s)

    def record(self) -> dict[str, Any]:
        """The body with what the log needs to raise the same error again: status and whether to retry."""
        return {**self.body(), "status": self.status, "retryable": self.retryable}

    def body(self) -> dict[str, Any]:
        """The `error` object: message, type, param, code."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}


def _rebuild(
    cls: type[AifactoryError], message: str, param: str | None, code: str, retry_after_s: float | None
) -> AifactoryError:
    return cls(message, param=param, code=code, retry_after_s=retry_after_s)


class BadRequest(AifactoryError):
    status = 400
    kind = "invalid_request_error"
    default_code = "invalid_request"


class BodyTooLarge(BadRequest):
    status = 413
    default_code = "body_too_large"


class Unauthorized(AifactoryError):
    status = 401
    kind = "authentication_error"
    default_code = "invalid_api_key"


class Forbidden(AifactoryError):
    status = 403
    kind = "permission_error"
    default_code = "forbidden"


class NotFound(AifactoryError):
    status = 404
    kind = "invalid_request_error"
    default_code = "not_found"


class KeyReused(AifactoryError):
    status = 422
    kind = "invalid_request_error"
    default_code = "idempotency_key_reused"


class Cancelled(AifactoryError):
    status = 499
    kind = "cancelled"
    default_code = "cancelled"

    @classmethod
    def because(cls, reason: str) -> Self:
        """Somebody asked the run to stop, for this reason."""
        return cls(f"the run was cancelled: {reason}")


class RateLimited(AifactoryError):
    status = 429
    kind = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True


class QuotaExhausted(AifactoryError):
    status = 429
    kind = "insufficient_quota"
    default_code = "insufficient_quota"


class Overloaded(AifactoryError):
    status = 429
    kind = "rate_limit_error"
    default_code = "overloaded"
    retryable = True


class Unavailable(AifactoryError):
    status = 503
    kind = "server_error"
    default_code = "unavailable"
    retryable = True


class DeadlineExceeded(AifactoryError):
    status = 504
    kind = "server_error"
    default_code = "deadline_exceeded"


class UpstreamFailed(AifactoryError):
    status = 502
    kind = "server_error"
    default_code = "upstream_failed"
    retryable = True


_ALL: tuple[type[AifactoryError], ...] = (
    AifactoryError,
    BadRequest,
    BodyTooLarge,
    Unauthorized,
    Forbidden,
    NotFound,
    KeyReused,
    Cancelled,
    RateLimited,
    QuotaExhausted,
    Overloaded,  # after the other two: what a 429 without a known code means
    Unavailable,
    DeadlineExceeded,
    UpstreamFailed,
)
BY_CODE = {cls.default_code: cls for cls in _ALL}
BY_STATUS = {cls.status: cls for cls in _ALL}


def from_body(body: dict[str, Any]) -> AifactoryError:
    """The error behind an `error` object that came over the bus or from the log."""
    cls = BY_CODE.get(str(body.get("code"))) or BY_STATUS.get(body.get("status") or 0)
    if cls is None:
        # A replica's own code: judge by the type.
        cls = BadRequest if body.get("type") == BadRequest.kind else UpstreamFailed
    return cls(
        str(body.get("message", "unknown error")),
        param=body.get("param"),
        code=str(body["code"]) if body.get("code") else None,
    )
