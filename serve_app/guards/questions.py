"""What kind of answer is wanted: who, when, why, whether, whether one may."""

from typing import Final

from serve_app.guards.closed import COPULAS, MODALS, words
from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import past_form
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading

# "How do I", "how can I" and "how should I" ask for the same; how teachers should be paid is not how they are.
_INDIFFERENT: Final = {"how": {"can", "should", "must"}, "where": {"can"}, "who": {"should"}}

_HELPING: Final = words("do does did") | MODALS.keys()
_UNREPORTED: Final = COPULAS | words("do does to have has")


class Questions(Guard):
    """Both ask for the same thing, at the same time (is, was, will be) and in the same mood (can, should, must)."""

    name = "questions"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        if not pair.same_questions:
            return "other question words"
        return "other tense or mood" if _mood(pair.asked) != _mood(pair.stored) or _other_deeds(pair) else None


def _other_deeds(pair: Pair) -> bool:
    """What should I be? - What should I do? What is there to do? - What is there?"""
    asked, stored = _deeds(pair.asked), _deeds(pair.stored)
    return ("do" in asked) != ("do" in stored) or bool(asked and stored and asked != stored)


def _deeds(text: Reading) -> set[str]:
    """The little words that are verbs of their own, not a part of another."""
    low = [w.low for w in text.words]
    acts = any(word == "do" and (low[i - 1] == "to" or not _HELPING.isdisjoint(low[:i])) for i, word in enumerate(low) if i)
    return {"do"} & set(low if acts else ()) | ({"be", "have"} & set(low if text.keys("modal") else ()))


def _mood(text: Reading) -> set[str]:
    asked = text.keys("question")
    modals = text.keys("modal") or (["past"] if _reported(text) else [])
    indifferent = bool(asked) and set(text.keys("subject")) == {"1"}
    mood = set(modals) - (_INDIFFERENT.get(asked[0].partition(":")[0], set()) if indifferent else set())
    return mood - {"will"} if asked == ["why"] and text.keys("negation") else mood  # why won't it, why doesn't it


def _reported(text: Reading) -> bool:
    """Why it fell, who won it: past without a word for it."""
    return not any(w.low in _UNREPORTED for w in text.words) and any(w.kind == "content" and past_form(w.low) for w in text.words)
