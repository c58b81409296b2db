"""Two questions side by side: which words answer to each other, and which are left over. Pure."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

from serve_app.guards.lexicon import gerund_of, lemma, may_be_verb, past_form, same_meaning, typo
from serve_app.guards.reading import Kind, Reading, Word


@dataclass(frozen=True)
class Pair:
    """The question that is asked and one whose answer is stored. Both read; the order of the two does not matter."""

    asked: Reading
    stored: Reading

    @property
    def same_questions(self) -> bool:
        """Whether both ask for the same: who, when, what."""
        asked, stored = sorted(self.asked.keys("question")), sorted(self.stored.keys("question"))
        return len(asked) == len(stored) and all(map(same_question, asked, stored))

    def differs(self, *kinds: Kind) -> bool:
        """Whether the words of these kinds are not the same, whatever their order."""
        return Counter(self.asked.keys(*kinds)) != Counter(self.stored.keys(*kinds))

    @property
    def left_over(self) -> tuple[list[Word], list[Word]]:
        """The meant words of either side that nothing on the other side answers to."""
        return self._matched[0], self._matched[1]

    @property
    def sequences(self) -> tuple[list[str], list[str]]:
        """The keys of the meant words in order, the stored ones named after those of the asked that they answer to."""
        names = self._matched[2]
        asked, stored = ([names.get((n, w.at), w.key) for w in side.meant] for n, side in enumerate((self.asked, self.stored)))
        return [key for key in asked if key], [key for key in stored if key]

    @property
    def compounds(self) -> bool:
        """Whether two words on one side are one on the other, so that the keys in `sequences` are not one for each word."""
        return "" in self._matched[2].values()

    @cached_property
    def _matched(self) -> tuple[list[Word], list[Word], dict[tuple[int, int], str]]:
        asked = _without(self.asked.meant, Counter(w.key for w in self.stored.meant))
        stored = _without(self.stored.meant, Counter(w.key for w in self.asked.meant))
        names = _compounds(0, asked, stored) | _compounds(1, stored, asked)
        for word in [w for w in asked if w.kind in ("content", "question")]:
            other = next((o for o in stored if o.kind == word.kind and self._alike(word, o)), None)
            if other is not None:
                asked.remove(word)
                stored.remove(other)
                names[1, other.at] = word.key
        return asked, stored, names

    def _alike(self, asked: Word, stored: Word) -> bool:
        if asked.kind == "question":
            return same_question(asked.key, stored.key)
        if _agreement(asked, self.stored, stored.low) or _agreement(stored, self.asked, asked.low):
            return True
        if asked.low != stored.low and (asked.at in self.asked.stopped or stored.at in self.stored.stopped):
            return False  # stop to rest, stop resting
        if past_form(asked.low) != past_form(stored.low):
            past, other, side = (asked, stored, self.asked) if past_form(asked.low) else (stored, asked, self.stored)
            # "Who starts it?" is not "Who started it?", but "is needed" answers to "need", and "is cooked" to no "is cooking".
            # And "why it fell" answers to "why did it fall".
            return other.low == lemma(past.low) and (side.copula or self._reported(past))
        if self._continuous(asked, stored):
            return True
        if asked.at in self.asked.owned and stored.at in self.stored.owned and {asked.low, stored.low} & _plurals(asked, stored):
            return False  # my teacher is not my teachers; but a teacher may be any
        return same_meaning(asked.key, stored.key) or typo(asked.key, stored.key)

    def _reported(self, past: Word) -> bool:
        side, there = (self.asked, self.stored) if past in self.asked.words else (self.stored, self.asked)
        return "did" in (w.low for w in there.words) and "did" not in (w.low for w in side.words)

    def _continuous(self, asked: Word, stored: Word) -> bool:
        """Start to talk - start talking; why does it hurt - why is it hurting. But to cook is not to be cooking."""
        for one, there, other, here in ((asked, self.asked, stored, self.stored), (stored, self.stored, asked, self.asked)):
            if other.low.endswith("ing") and gerund_of(other.low) == one.low:
                why = here.copula and there.keys("question") == here.keys("question") == ["why"]
                return why or (one.at in there.infinitives and other.at not in here.infinitives)
        return False


def _plurals(left: Word, right: Word) -> set[str]:
    return {f"{word.low}{ending}" for word in (left, right) for ending in ("s", "es")}


def _without(words: tuple[Word, ...], there: Counter[str]) -> list[Word]:
    rest = []
    for word in words:
        if there[word.key] > 0:
            there[word.key] -= 1
        else:
            rest.append(word)
    return rest


def same_question(left: str, right: str) -> bool:
    """Whether two question words ask for the same: "in what year" is "when", and not "in what month"."""
    if left == right or frozenset((left, right)) in _SAME_QUESTIONS:
        return True
    (one, _, detail), (other, _, further) = left.partition(":"), right.partition(":")
    return one == other and not (detail and further) and (detail or further) in _SAID_ANYWAY.get(one, ())


# "Who" asks for a person, but may ask for a party; "where" may want a street, and "when" an hour.
_SAID_ANYWAY: Final = {"when": ("year", "date"), "who": ("person", "man", "woman")}
# What are the planets, list the planets, name the planets; but "Tell me a joke" does not ask what a joke is, nor for all jokes.
_SAME_QUESTIONS: Final = {
    *(frozenset(("what", other)) for other in ("what:list", "what:explain", "what:-")),
    *(frozenset(("what:name", other)) for other in ("what:list", "what:-")),
    *(frozenset(("what:-", other)) for other in ("what:list", "what:explain", "what:give")),
}


def _compounds(side: int, parts: list[Word], wholes: list[Word]) -> dict[tuple[int, int], str]:
    """Web site - website: two words left over on this side are one on the other. Taken off; their new keys by side and place."""
    names: dict[tuple[int, int], str] = {}
    for first, second in list(pairwise(parts)):
        whole = next((w for w in wholes if w.low == first.low + second.low and w.kind == "content"), None)
        if whole is not None and (side, first.at) not in names and second.at - first.at - len(first.raw) <= 1:
            parts.remove(first)
            parts.remove(second)
            wholes.remove(whole)
            names |= {(side, first.at): whole.key, (side, second.at): ""}
    return names


def _agreement(word: Word, other: Reading, base: str) -> bool:
    """It works - does it work?"""
    return word.low == f"{base}s" and may_be_verb(base) and any(w.low == "does" for w in other.words)
