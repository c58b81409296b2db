"""Words that deny."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Negation(Guard):
    """Both questions deny the same: not, n't, never, without, except."""

    name = "negation"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        return "one denies what the other does not" if pair.differs("negation") else None
