"""Who speaks, who is spoken to, who is spoken of."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Persons(Guard):
    """Both questions are about the same persons: my is not your, he is not she.

    `I` and `you` may be missing on one side: "documents that I need" are "documents that are needed".
    """

    name = "persons"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.asked.keys("subject"), pair.stored.keys("subject")
        if pair.differs("person") or (asked and stored and asked != stored):
            return "other persons"
        return None
