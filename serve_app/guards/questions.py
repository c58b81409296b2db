"""What kind of answer is wanted: who, when, why, whether, whether one may."""

from typing import Final

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading

# "How do I", "how can I" and "how should I" ask for the same.
_INDIFFERENT: Final = {"how": {"can", "should"}, "where": {"can"}, "who": {"should"}}


class Questions(Guard):
    """Both ask for the same thing, at the same time (is, was, will be) and in the same mood (can, should, must)."""

    name = "questions"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        if pair.differs("question"):
            return "other question words"
        return "other tense or mood" if _mood(pair.asked) != _mood(pair.stored) else None


def _mood(text: Reading) -> set[str]:
    asked = text.keys("question")
    mood = set(text.keys("modal")) - (_INDIFFERENT.get(asked[0], set()) if asked else set())
    return mood - {"will"} if asked == ["why"] and text.keys("negation") else mood  # why won't it, why doesn't it
