"""What the guards see of a text: its words in order, each with what it does in the sentence. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final, Literal

from serve_app.guards.closed import (
    COPULAS,
    COUNTRIES,
    DATES,
    FREE,
    LITERAL,
    MIXED_UNITS,
    MODALS,
    MULTIPLIERS,
    NEGATIONS,
    NUMBER_WORDS,
    OFFICES,
    ORDINALS,
    PAST,
    PERSONS,
    POSSESSION,
    PREPOSITIONS,
    QUANTIFIERS,
    QUESTION_WORDS,
    RELATIONS,
    SHORT_UNIT,
    SUBJECTS,
    UNITS,
)
from serve_app.guards.closed import words as words_of
from serve_app.guards.frames import PUNCTUATION, unframed
from serve_app.guards.lexicon import lemma, may_be_verb, past_form, untwisted
from serve_app.guards.rephrased import rephrased
from serve_app.guards.tokens import split

Kind = Literal[
    "content",
    "number",
    "unit",
    "date",
    "negation",
    "quantifier",
    "question",
    "modal",
    "subject",
    "person",
    "preposition",
    "free",
    "symbol",
]
_SMALL_WORD: Final = re.compile(r"(?<![\w'.-])[A-Za-z][a-z]{2,6}(?![\w'-]|\.\w)")
_STRICT_WORDS: Final = 24  # from here on a vector may miss one word among many
_TYPOGRAPHY: Final = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "\u00a0": " "}
)
_CODE: Final = re.compile(
    r"[`{}\[\]\\<>=|^~]|\+\+|//|&&|\w\(|(?<!\S)--?[A-Za-z][\w-]*|[a-z0-9]_[a-z0-9]|\w#|#\w|!=|::|\w\.\w+\(|"
    r"\b(?:SELECT|INSERT|UPDATE|DELETE)\b|[a-z][A-Z][a-z]*\(|(?<![\w.])[A-Za-z]\w*\.[a-z]\w+\.?\w*(?!\.\w)(?=\s+(?:in|do|does|return)\b)"
)
_LITERAL: Final = re.compile(r"^(?:repeat|correct|echo)\b|\b(?:the|first|last|which|what|capital) letter\b", re.IGNORECASE)
_QUOTED: Final = re.compile(r'"([^"]+)"|(?<!\w)\'([^\']+)\'(?!\w)|`([^`]+)`')
_SYMBOL: Final = re.compile(r"[^\s\w.,;:!?'\"()$%-]|_|^-+\w|[a-z]\.[a-z]|\w\(")


@dataclass(frozen=True, slots=True)
class Word:
    """One word: `raw` as written, `low` in lower case, `key` what it is compared by."""

    raw: str
    low: str
    key: str
    kind: Kind
    at: int  # where it begins in the text


@dataclass(frozen=True)
class Reading:
    """A text as the guards compare it. Made by `read`."""

    text: str  # as it was asked
    core: str  # without greetings, thanks and doubled spaces
    words: tuple[Word, ...]

    @cached_property
    def meant(self) -> tuple[Word, ...]:
        """The words that carry the question, in order."""
        return tuple(w for w in self.words if w.kind not in ("free", "subject", "person", "preposition", "modal"))

    def keys(self, *kinds: Kind) -> list[str]:
        """The keys of all words of these kinds, in order."""
        return [w.key for w in self.words if w.kind in kinds]

    @cached_property
    def owned(self) -> frozenset[int]:
        """Where the words begin that somebody has: my teacher, his dogs."""
        return frozenset(word.at for before, word in pairwise(self.words) if before.kind == "person")

    @cached_property
    def code_like(self) -> bool:
        """Whether a single character may change everything."""
        return _CODE.search(self.core) is not None

    @cached_property
    def quoted(self) -> list[str]:
        """What stands in quotation marks."""
        return ["".join(found) for found in _QUOTED.findall(self.core)]

    @cached_property
    def strict(self) -> bool:
        """Whether only the very same words will do: code, quotations, and long texts."""
        bare = all(w.kind == "question" for w in self.meant)  # "How are you?", "What is it?"
        return self.code_like or bare or bool(self.quoted) or len(self.words) > _STRICT_WORDS or "\n" in self.core

    @cached_property
    def literal(self) -> bool:
        """Whether it is about words: what they mean, how they are spelt, translated."""
        return any(w.low in LITERAL for w in self.words) or _LITERAL.search(self.core) is not None

    @cached_property
    def task(self) -> list[str]:
        """All words but those that only make it a question."""
        return [w.low for before, w in pairwise((None, *self.words)) if w and not _asking(before, w)]

    @cached_property
    def infinitives(self) -> frozenset[int]:
        """Where the verbs begin that have `to` before them, which might be -ing as well: start to talk, but not stop to talk."""
        return frozenset(word.at for verb, word in self._linked if lemma(verb.low) not in _STOPPING)

    @cached_property
    def stopped(self) -> frozenset[int]:
        """Where the verbs begin that have `to` before them and say something else than -ing would: stop to talk."""
        return frozenset(word.at for verb, word in self._linked if lemma(verb.low) in _STOPPING)

    @property
    def _linked(self) -> Iterator[tuple[Word, Word]]:
        """What stands before each `to`, and what behind it."""
        triples = zip(self.words, self.words[1:], self.words[2:], strict=False)
        return ((before, after) for before, to, after in triples if to.low == "to")

    @cached_property
    def chunks(self) -> list[str]:
        """Stretches with symbols in them, as written."""
        return [chunk.rstrip(PUNCTUATION) for chunk in self.core.split() if _SYMBOL.search(chunk)]

    @cached_property
    def cased(self) -> bool:
        """Whether its capitals say something: it has some, and small letters where others would be capitals."""
        inner = [w.raw[0].isupper() for w in self.words if w.at and w.raw[0].isalpha() and w.low != "i"]
        return (self.core[:1].isupper() or any(inner)) and 2 * sum(inner) <= max(2, len(inner))

    @cached_property
    def passive(self) -> bool:
        """Whether something is done to somebody: "is paid", where "pays" and "has paid" are not."""
        return self.copula and any(w.kind == "content" and past_form(w.low) for w in self.words)

    @cached_property
    def owns(self) -> bool:
        """Whether a form of `have` stands in it, and none of `be`."""
        return not self.copula and any(w.low in POSSESSION for w in self.words)

    @cached_property
    def copula(self) -> bool:
        """Whether a form of `be` stands in it: its -ed words may be participles."""
        return any(w.low in COPULAS for w in self.words)


def read(text: str) -> Reading:
    """Take the text apart. Linear in its length; callers bound that."""
    core = unframed(" ".join(_lines(text.translate(_TYPOGRAPHY))))
    if core.isupper() and " " in core and not _CODE.search(core):
        core = core.lower()  # shouted: its capitals say nothing
    if not _CODE.search(core):
        core = rephrased(_SMALL_WORD.sub(lambda found: untwisted(found[0]), core))
    pairs = list(split(core))
    words: list[Word] = []
    for index, (raw, at, tag) in enumerate(pairs):
        after = pairs[index + 1][0].lower() if index + 1 < len(pairs) else ""
        words.append(_word(raw, at, tag, words[-1] if words else None, after))
    for index in range(len(words) - 1):
        if words[index].raw in _CURRENCIES and words[index + 1].kind == "number":  # $5 is 5 dollars
            words[index : index + 2] = words[index + 1], words[index]
    if _telegraphic(words):
        words.insert(0, Word("?", "?", "what:-", "question", -1))
    return Reading(text, core, tuple(_joined(words)))


def _asking(before: Word | None, word: Word) -> bool:
    return word.kind == "question" or (before is not None and before.kind == "question" and word.low in COPULAS)


def _telegraphic(words: list[Word]) -> bool:
    """Capital of France: a noun and what belongs to it, where others ask what it is."""
    if any(w.kind in ("question", "modal") or w.low in _SENTENCE for w in words):
        return False
    nouns = [w for w in words if w.low not in _ARTICLES][:1]
    return bool(nouns) and nouns[0].kind == "content" and nouns[0].low not in RELATIONS and nouns[0].raw.isalpha()


def _lines(text: str) -> Iterator[str]:
    for number, line in enumerate(text.strip().splitlines()):
        if number:
            yield "\n"
        yield from line.split()


def _word(raw: str, at: int, tag: str, before: Word | None, after: str) -> Word:
    low = raw.lower().replace("-", "") if tag == "word" else raw.lower()
    key, kind = _classified(raw, low, tag, before, after)
    return Word(raw, low, key, kind, at)


def _classified(raw: str, low: str, tag: str, before: Word | None, after: str) -> tuple[str, Kind]:
    behind_number = before is not None and before.kind == "number"
    if tag == "number":
        return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", low), "number"
    if low in ORDINALS and not (low == "second" and behind_number):
        return f"{ORDINALS[low]}{_ending(ORDINALS[low])}", "number"
    behind = behind_number and not (low == "in" and UNITS.get(lemma(after)) in _MONEY)  # what is 5 in euros?
    if tag == "unit" or (low in UNITS and (behind or len(low) > SHORT_UNIT)):
        return _unit(raw, low), "unit"
    if tag == "symbol":
        return (UNITS[low], "unit") if low in UNITS else (raw, "symbol")
    if raw.isupper() and len(raw) > 1 and low in _PLAIN_WORDS:
        return raw, "content"  # IT, US, WHO: not the word in capitals
    if low in NUMBER_WORDS or (low in MULTIPLIERS and behind_number):
        return low, "number"
    if before is not None and (raw == "May" or (low in ("fall", "may") and before.low in _BEFORE_SEASONS)):
        return low, "date"
    if low == "fall":
        return low, "content"
    for words, kind in _CLASSES:
        if low in words:
            return (words[low] if isinstance(words, dict) else low), kind
    if low == "to":
        return low, ("free" if may_be_verb(after) else "content")
    if low in COUNTRIES and raw[0].isupper() and after in OFFICES:
        return COUNTRIES[low], "content"
    singular = lemma(low)
    if singular in UNITS and len(singular) > SHORT_UNIT:
        return UNITS[singular], "unit"
    return low, "content"


_CLASSES: Final[tuple[tuple[dict[str, str] | frozenset[str], Kind], ...]] = (
    (NEGATIONS, "negation"),
    (QUESTION_WORDS, "question"),
    (PAST, "modal"),
    (MODALS, "modal"),
    (SUBJECTS, "subject"),
    (PERSONS, "person"),
    (DATES, "date"),
    (QUANTIFIERS, "quantifier"),
    (PREPOSITIONS, "preposition"),
    (FREE, "free"),
)
_CURRENCIES: Final = frozenset("$€£¥")
_MONEY: Final = _CURRENCIES | {"aud", "cad", "chf", "inr"}
_STOPPING: Final = words_of("stop quit remember forget try regret go")
_BEFORE_SEASONS: Final = words_of("in this last next every each during late early since until by")
_ARTICLES: Final = frozenset({"a", "an", "the"})
_SENTENCE: Final = COPULAS | {"do", "does", "did", "i", "we", "you"}
_PLAIN_WORDS: Final = frozenset().union(*(set(words) for words, _ in _CLASSES if words is not DATES)) | {"to"}


def _unit(raw: str, low: str) -> str:
    # Case tells milli from mega and bit from byte.
    return raw if low in MIXED_UNITS and raw not in (low, low.upper()) else UNITS[low]


def _ending(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _joined(words: list[Word]) -> Iterator[Word]:
    """Number words that form one number become one."""
    index = 0
    while index < len(words):
        run = index
        while (
            run < len(words) and words[run].kind == "number" and (words[run].key in NUMBER_WORDS or words[run].key in MULTIPLIERS)
        ):
            run += 1
        if run == index:
            yield words[index]
            index += 1
            continue
        first = words[index]
        yield Word(first.raw, first.low, _value([w.key for w in words[index:run]]), "number", first.at)
        index = run


def _value(names: list[str]) -> str:
    total = part = 0
    for name in names:
        if name in NUMBER_WORDS:
            part += NUMBER_WORDS[name]
        elif MULTIPLIERS[name] == 100:
            part = max(1, part) * 100
        else:
            total, part = total + max(1, part) * MULTIPLIERS[name], 0
    return str(total + part)
