"""What kind of answer is wanted: who, when, why, whether, whether one may."""

from typing import Final

from serve_app.guards.closed import COPULAS, words
from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import past_form
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading

# "How do I", "how can I" and "how should I" ask for the same.
_INDIFFERENT: Final = {"how": {"can", "should", "must"}, "where": {"can"}, "who": {"should"}}

_UNREPORTED: Final = COPULAS | words("do does to have has")


class Questions(Guard):
    """Both ask for the same thing, at the same time (is, was, will be) and in the same mood (can, should, must)."""

    name = "questions"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        if not pair.same_questions:
            return "other question words"
        return "other tense or mood" if _mood(pair.asked) != _mood(pair.stored) else None


def _mood(text: Reading) -> set[str]:
    asked = text.keys("question")
    modals = text.keys("modal") or (["past"] if _reported(text) else [])
    mood = set(modals) - (_INDIFFERENT.get(asked[0].partition(":")[0], set()) if asked else set())
    return mood - {"will"} if asked == ["why"] and text.keys("negation") else mood  # why won't it, why doesn't it


def _reported(text: Reading) -> bool:
    """Why it fell, who won it: past without a word for it."""
    return not any(w.low in _UNREPORTED for w in text.words) and any(w.kind == "content" and past_form(w.low) for w in text.words)
