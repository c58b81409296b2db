"""Who speaks, who is spoken to, who is spoken of."""

from typing import Final

from serve_app.guards.closed import words
from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair

_OWN: Final = words(
    "make open keep leave adopt start join find get know check see track choose pick buy rent look locate many much"
)


class Persons(Guard):
    """Both questions are about the same persons: my is not your, he is not she.

    `I` and `you` may be missing on one side: "documents that I need" are "documents that are needed".
    """

    name = "persons"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.asked.keys("subject"), pair.stored.keys("subject")
        if (pair.differs("person") and not _anybody(pair)) or (asked and stored and asked != stored):
            return "other persons"
        return None


def _anybody(pair: Pair) -> bool:
    """How do I reset my password? - How do I reset a password? Not so where it is one out of many: find, buy."""
    if any(side.keys("question") != ["how"] or any(w.low in _OWN for w in side.words) for side in (pair.asked, pair.stored)):
        return False
    asked, stored = pair.asked.keys("person"), pair.stored.keys("person")
    return (
        not (asked and stored) and asked + stored == ["1'"] and "the" not in {w.low for w in pair.asked.words + pair.stored.words}
    )
