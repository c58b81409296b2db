"""Two questions side by side: which words answer to each other, and which are left over. Pure."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from serve_app.guards.lexicon import lemma, may_be_verb, past_form, same_meaning, typo
from serve_app.guards.reading import Kind, Reading, Word


@dataclass(frozen=True)
class Pair:
    """The question that is asked and one whose answer is stored. Both read; the order of the two does not matter."""

    asked: Reading
    stored: Reading

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
        return [w.key for w in self.asked.meant], [names.get(w.at, w.key) for w in self.stored.meant]

    @cached_property
    def _matched(self) -> tuple[list[Word], list[Word], dict[int, str]]:
        asked = _without(self.asked.meant, Counter(w.key for w in self.stored.meant))
        stored = _without(self.stored.meant, Counter(w.key for w in self.asked.meant))
        names: dict[int, str] = {}
        for word in [w for w in asked if w.kind == "content"]:
            other = next((o for o in stored if o.kind == "content" and self._alike(word, o)), None)
            if other is not None:
                asked.remove(word)
                stored.remove(other)
                names[other.at] = word.key
        return asked, stored, names

    def _alike(self, asked: Word, stored: Word) -> bool:
        if _agreement(asked, self.stored, stored.low) or _agreement(stored, self.asked, asked.low):
            return True
        if past_form(asked.low) != past_form(stored.low):
            past, other, side = (asked, stored, self.asked) if past_form(asked.low) else (stored, asked, self.stored)
            # "Who starts it?" is not "Who started it?", but "is needed" answers to "need", and "is cooked" to no "is cooking".
            if not side.copula or other.low != lemma(past.low):
                return False
        return same_meaning(asked.key, stored.key) or typo(asked.key, stored.key)


def _without(words: tuple[Word, ...], there: Counter[str]) -> list[Word]:
    rest = []
    for word in words:
        if there[word.key] > 0:
            there[word.key] -= 1
        else:
            rest.append(word)
    return rest


def _agreement(word: Word, other: Reading, base: str) -> bool:
    """It works - does it work?"""
    return word.low == f"{base}s" and may_be_verb(base) and any(w.low == "does" for w in other.words)
