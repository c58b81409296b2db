"""What a guard is."""

from typing import ClassVar

from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading


class Guard:
    """One rule of the cache. Override either method; both must be pure and fast, and hold whichever question came first."""

    name: ClassVar[str]  # the rule in metrics and logs

    def refuse(self, text: Reading) -> str | None:
        """Why this text may only be answered by its exact twin, or None."""
        return None

    def veto(self, pair: Pair) -> str | None:
        """Why the stored answer must not be given to the question that is asked, or None. The reason never quotes them."""
        return None
