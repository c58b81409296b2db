"""How the steps of `up` and `down` are shown: each with its time, the current one with a line that moves."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console


class Progress:
    """Writes to a terminal, or plain lines where there is none."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def note(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, name: str, done: str = "ready") -> Iterator[Callable[[str], None]]:
        """One step: shows that it goes on, then `postgres ready (0.7 s)`. The given function updates what it waits for."""
        started = time.monotonic()
        with self.console.status(f"{name} …") as status:

            def waiting_for(what: str) -> None:
                status.update(f"{name} … {time.monotonic() - started:.0f} s, {what}")

            yield waiting_for
        self.note(f"  {name} {done} ({time.monotonic() - started:.1f} s)")
