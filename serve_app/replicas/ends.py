"""How many choices an answer must have, and whether each has ended. Pure."""

from collections.abc import Mapping
from typing import Any

from serve_app.errors import UpstreamFailed


def choices_due(body: Mapping[str, Any]) -> int:
    """How many choices a request asks for; an `n` that is no number the replica refuses."""
    wanted = body.get("n")
    return max(1, wanted) if isinstance(wanted, int) else 1


def completions_due(body: Mapping[str, Any]) -> int:
    """The same for a legacy completion, which may hold several prompts."""
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    return choices_due(body) * prompts


class CompletionEnds:
    """Which choices of a legacy completion have begun and ended."""

    def __init__(self, due: int) -> None:
        self._due = due
        self._begun: set[int] = set()
        self._ended: set[int] = set()

    def note(self, chunk: dict[str, Any]) -> None:
        """Take account of a chunk. Raises UpstreamFailed for a malformed one."""
        try:
            for choice in chunk.get("choices") or ():
                self._begun.add(choice["index"])
                if choice.get("finish_reason"):
                    self._ended.add(choice["index"])
        except (KeyError, TypeError, AttributeError) as error:
            raise UpstreamFailed(f"the replica sent a malformed chunk: {type(error).__name__}: {error}") from error

    @property
    def complete(self) -> bool:
        """Whether every choice has its end."""
        return len(self._ended) >= self._due and not self._begun - self._ended

    def check(self) -> None:
        """Raises UpstreamFailed when a choice was cut, or never came."""
        if not self.complete:
            raise UpstreamFailed(f"the replica's answer broke off: {len(self._ended)} of {self._due} choices were finished")
