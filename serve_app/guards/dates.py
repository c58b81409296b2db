"""Days, months, seasons, and words that point in time."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Dates(Guard):
    """Both questions are about the same time: today is not tomorrow, May is not June."""

    name = "dates"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        return "other dates" if pair.differs("date") else None
