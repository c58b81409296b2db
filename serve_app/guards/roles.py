"""Who does what to whom: the order of words, and what relates them."""

import re
from itertools import pairwise, product
from typing import Final

from serve_app.guards.closed import COPULAS, words
from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import lemma
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading

_COMPOUNDING: Final = frozenset({"of", "for", "in", "at", "on"})  # "the password for guests" is "the guest password"

_LONGEST_PART: Final = 2  # words on either side of `and`
_ORDERED: Final = words(
    "ratio rate respectively divide divided subtract minus then order quotient convert odds translate before after"
)

# With these verbs a preposition is a part of the word: get in, look for, check in, call in.
_PHRASAL: Final = {
    "in": words("get call run turn check log sign fill hand take break stand move pass come put go"),
    "on": words("get call run turn check log sign hand take move pass put go"),
    "at": words("get call look"),
    "for": words("look run ask search shop go"),
}
_DIRECTIONS: Final = words("to from into with by about through via")


class Roles(Guard):
    """The words come in the same order, apart from a clause moved to the front, or a noun moved before its head."""

    name = "roles"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        if pair.asked.passive != pair.stored.passive and not _impersonal(pair):
            return "other voice"
        if pair.asked.owns != pair.stored.owns and (_persons(pair) or _plain(pair)):
            return "one has what the other is"
        if _bound(pair.asked) != _bound(pair.stored):
            return "other relations"
        asked, stored = pair.sequences
        if sorted(asked) != sorted(stored):
            return None  # not this rule's business: order says nothing about different words
        if asked != stored:
            if pair.compounds:
                return "other order"
            moved = _fronted(pair, asked, stored) or _compounded(pair, asked, stored) or _dated(pair, asked, stored)
            moved = moved or _denied(pair, asked, stored) or _joined(pair, asked, stored) or _side_by_side(asked, stored)
            return None if moved else "other order"
        ours, theirs = set(pair.asked.keys("preposition")), set(pair.stored.keys("preposition"))
        if (ours - theirs == {"of"} and _inside(pair.stored)) or (theirs - ours == {"of"} and _inside(pair.asked)):
            return None
        return "other relations" if ours - theirs and theirs - ours else None


def _persons(pair: Pair) -> bool:
    return all(side.keys("subject", "person") for side in (pair.asked, pair.stored))


def _plain(pair: Pair) -> bool:
    """Does it have a bank? - Is it a bank? But: is there a bank, what are the sides of it."""
    sides = (pair.asked, pair.stored)
    return not any(side.keys("preposition") or any(w.low == "there" for w in side.words) for side in sides)


def _bound(text: Reading) -> list[str]:
    """The prepositions that cannot be left out: what is in it is not what it is, and who gets in a car gets none."""
    said = [w for w in text.words if w.low != "there"]
    triples = zip((None, *said), said, said[1:], strict=False)
    return sorted(
        word.low
        for first, verb, word in triples
        if word.low in _PHRASAL
        and (lemma(verb.low) in _PHRASAL[word.low] or (verb.low in COPULAS and first is not None and first.kind == "question"))
    )


def _inside(text: Reading) -> bool:
    """What ingredients are in it? - What are the ingredients of it?"""
    return re.match(r"what \w+ (?:is|are) (?:there )?in\b", text.core, re.IGNORECASE) is not None


def _joined(pair: Pair, asked: list[str], stored: list[str]) -> bool:
    """The difference between A and B - the difference between B and A; is A or B larger?"""
    if any(w.low in _ORDERED for w in pair.asked.words):
        return False
    for at in range(1, len(asked)):
        after = at + (asked[at] == "or")  # `and` is no word of the sequence
        if after == at and "and" not in _between(pair.asked, at):
            continue
        for left, right in product(range(1, _LONGEST_PART + 1), repeat=2):
            start, end = at - left, after + right
            turned = asked[:start] + asked[after:end] + asked[at:after] + asked[start:at] + asked[end:]
            if start >= 0 and end <= len(asked) and turned == stored and _on_a_par(pair.asked, start, end):
                return True
    return False


def _side_by_side(asked: list[str], stored: list[str]) -> bool:
    """To Rome from Paris - from Paris to Rome: each preposition keeps its noun."""
    heads = [i for i, key in enumerate(asked) if key in _DIRECTIONS]
    for first, second in pairwise(heads):
        for end in range(second + 2, min(len(asked), second + 2 + _LONGEST_PART) + 1):
            if first + 1 < second and asked[:first] + asked[second:end] + asked[first:second] + asked[end:] == stored:
                return True
    return False


def _on_a_par(text: Reading, start: int, end: int) -> bool:
    """Not two sentences ("A hit B and C hit D"), and no span ("between Monday and Friday")."""
    before = [w for w in text.meant[:start] if w.kind != "question"]
    if any(w.kind in ("number", "date", "unit", "negation") for w in text.meant[start:end]):
        return False
    if end == len(text.meant) or (before and before[-1].low in ("between", "compare")):
        return True
    return len(before) < 2 and "'" not in text.core[text.meant[start].at : text.meant[end].at]


def _impersonal(pair: Pair) -> bool:
    """What do I need? - What is needed?"""
    return bool(pair.asked.keys("subject")) != bool(pair.stored.keys("subject"))


def _fronted(pair: Pair, asked: list[str], stored: list[str]) -> bool:
    """On the menu, what is vegan? - What is vegan on the menu?"""
    turn = next((i for i in range(1, len(asked)) if asked[i:] + asked[:i] == stored), 0)
    if not turn:
        return False
    return _comma_after(pair.asked, turn) or _comma_after(pair.stored, len(asked) - turn)


def _comma_after(text: Reading, count: int) -> bool:
    gap = text.core[text.meant[count - 1].at : text.meant[count].at]
    return "," in gap and text.words[0].kind not in ("question", "modal")


def _compounded(pair: Pair, asked: list[str], stored: list[str]) -> bool:
    """The capital of Australia - Australia's capital; the password for guests - the guest password."""
    start = next(i for i, (a, b) in enumerate(zip(asked, stored, strict=True)) if a != b)
    end = len(asked) - next(i for i, (a, b) in enumerate(zip(reversed(asked), reversed(stored), strict=True)) if a != b)
    ours, theirs = asked[start:end], stored[start:end]
    turn = next((i for i in range(1, len(ours)) if ours[i:] + ours[:i] == theirs), 0)
    if not turn:
        return False
    back = len(ours) - turn
    return (_related(pair.asked, start + turn) and _adjoined(pair.stored, start + back)) or (
        _related(pair.stored, start + back) and _adjoined(pair.asked, start + turn)
    )


def _related(text: Reading, index: int) -> bool:
    return bool(_between(text, index) & _COMPOUNDING)


def _adjoined(text: Reading, index: int) -> bool:
    return not _between(text, index)


def _between(text: Reading, index: int) -> set[str]:
    start, end = text.meant[index - 1].at, text.meant[index].at
    return {w.low for w in text.words if start < w.at < end}


def _denied(pair: Pair, asked: list[str], stored: list[str]) -> bool:
    """Why is it not open? - Why isn't it open? But "not to open" stays what it is."""
    once = asked.count("not") == 1 and not any(
        re.search(r"\bnot to\b", side.core, re.IGNORECASE) for side in (pair.asked, pair.stored)
    )
    return once and [k for k in asked if k != "not"] == [k for k in stored if k != "not"]


def _dated(pair: Pair, asked: list[str], stored: list[str]) -> bool:
    """The World Cup in 2014 - the 2014 World Cup; the weather in Paris tomorrow - tomorrow's weather in Paris."""
    times = [w.key for w in pair.asked.meant if w.kind == "date" or (w.kind == "number" and len(w.key) == 4 and w.key.isdigit())]
    return len(times) == 1 and [k for k in asked if k != times[0]] == [k for k in stored if k != times[0]]
