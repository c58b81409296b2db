"""Numbers: digits, number words, ordinals, decimals, signs, versions."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Numbers(Guard):
    """Both questions hold the same numbers: `two` is 2, `1,000` is 1000, `2.1` is not `2.10`."""

    name = "numbers"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        return "other numbers" if pair.differs("number") else None
