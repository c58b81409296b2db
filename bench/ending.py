"""What a bench has started is ended by it, also when it is told to stop."""

import signal
import sys
from types import FrameType


def end_on_sigterm() -> None:
    """From here on SIGTERM leaves the program as Ctrl-C does: through every `finally`. Only for the main thread."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    # Said again while the servers are being ended, it would cut that short. Not SIG_IGN: children would inherit it.
    signal.signal(number, _heard)
    sys.exit(128 + number)


def _heard(_: int, __: FrameType | None) -> None:
    """It is ending."""
