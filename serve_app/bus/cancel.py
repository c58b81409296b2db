"""Cancel messages: `cancel.{trace_id}` with a JSON reason."""

from collections.abc import Callable
from typing import Any

import orjson

from serve_app.telemetry import logger


class CancelListeners:
    """Those who want to hear of cancelled runs."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[str, str], None]] = []

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    @staticmethod
    def encode(reason: str) -> bytes:
        """The payload of a cancel message."""
        return orjson.dumps({"reason": reason})

    def add(self, callback: Callable[[str, str], None]) -> None:
        """Call `callback(trace_id, reason)` from now on."""
        self._callbacks.append(callback)

    def tell(self, subject: str, payload: bytes) -> None:
        """Hand one message to every listener. A payload without a reason still cancels."""
        trace_id = subject.rpartition(".")[2]
        reason = _reason(payload)
        for callback in tuple(self._callbacks):
            try:
                callback(trace_id, reason)
            except Exception:  # noqa: BLE001 - one listener's fault must not keep the others from hearing
                logger.bind(trace_id=trace_id).exception("a cancel listener failed")


def _reason(payload: bytes) -> str:
    try:
        fields: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return "cancelled"
    return str(fields.get("reason", "cancelled")) if isinstance(fields, dict) else "cancelled"
