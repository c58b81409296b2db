"""What the guards see of a text: its words in order, each with what it does in the sentence. Pure."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from serve_app.guards.closed import (
    CLOSING,
    CONTRACTED,
    COPULAS,
    DATES,
    FREE,
    IS_CONTRACTED,
    LITERAL,
    LONGEST_CLOSING,
    MIXED_UNITS,
    MODALS,
    MULTIPLIERS,
    NEGATIONS,
    NUMBER_WORDS,
    OPENING,
    ORDINALS,
    PAST,
    PERSONS,
    POSSESSION,
    PREPOSITIONS,
    QUANTIFIERS,
    QUESTION_WORDS,
    REPHRASED,
    SHORT_UNIT,
    SUBJECTS,
    UNITS,
)
from serve_app.guards.lexicon import lemma, may_be_verb, past_form

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
_FRAMES: Final = 6  # openings or closings taken off at most
_STRICT_WORDS: Final = 24  # from here on a vector may miss one word among many
_TYPOGRAPHY: Final = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-", "\u00a0": " "}
)
_TOKEN: Final = re.compile(
    r"(?P<number>(?<![\w.])-?(?=[\d.])\.?\d+(?:[.,:/]\d+)*(?:[sS][tT]|[nN][dD]|[rR][dD]|[tT][hH])?(?![^\W\d_]))"
    r"|(?P<amount>(?<![\w.])-?\d+(?:[.,:]\d+)*)(?P<unit>[^\W\d_]{1,3})(?!\w)"
    r"|(?P<word>(?:(?<![^\W_])[^\W\d_]{1,2}-(?=[^\W\d_]))?[^\W_]+(?:'[^\W\d_]+)*)"  # e-mail is one word, call-out two
    r"|(?P<symbol>[^\s\w.,;:!?'\"()-]|_)"
)
_CODE: Final = re.compile(
    r"[`{}\[\]\\<>=|^~]|\+\+|//|&&|\w\(|(?<!\S)--?[A-Za-z][\w-]*|[a-z0-9]_[a-z0-9]|\w#|#\w|!=|::|\w\.\w+\(|"
    r"\b(?:SELECT|INSERT|UPDATE|DELETE)\b|[a-z][A-Z][a-z]*\(|(?<![\w.])[A-Za-z]\w*\.[a-z]\w+\.?\w*(?!\.\w)(?=\s+(?:in|do|does|return)\b)"
)
_QUOTED: Final = re.compile(r'"([^"]+)"|(?<!\w)\'([^\']+)\'(?!\w)|`([^`]+)`')
_SYMBOL: Final = re.compile(r"[^\s\w.,;:!?'\"()$%-]|_|^-+\w|[a-z]\.[a-z]|\w\(")
_PUNCTUATION: Final = " .,;:!?-"


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
    def code_like(self) -> bool:
        """Whether a single character may change everything."""
        return _CODE.search(self.core) is not None

    @cached_property
    def quoted(self) -> list[str]:
        """What stands in quotation marks."""
        return ["".join(found) for found in _QUOTED.findall(self.core)]

    @cached_property
    def strict(self) -> bool:
        """Whether only the very same words will do: code, quotations, tasks about words, and long texts."""
        literal = any(w.low in LITERAL for w in self.words)
        bare = all(w.kind == "question" for w in self.meant)  # "How are you?", "What is it?"
        return self.code_like or literal or bare or bool(self.quoted) or len(self.words) > _STRICT_WORDS or "\n" in self.core

    @cached_property
    def chunks(self) -> list[str]:
        """Stretches with symbols in them, as written."""
        return [chunk.rstrip(_PUNCTUATION) for chunk in self.core.split() if _SYMBOL.search(chunk)]

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
    core = _unframed(" ".join(_lines(text.translate(_TYPOGRAPHY))))
    if core.isupper() and " " in core and not _CODE.search(core):
        core = core.lower()  # shouted: its capitals say nothing
    for pattern, instead in REPHRASED:
        core = pattern.sub(instead, core)
    pairs = list(_split(core))
    words: list[Word] = []
    for index, (raw, at, tag) in enumerate(pairs):
        after = pairs[index + 1][0].lower() if index + 1 < len(pairs) else ""
        words.append(_word(raw, at, tag, words[-1] if words else None, after))
    return Reading(text, core, tuple(_joined(words)))


def _lines(text: str) -> Iterator[str]:
    for number, line in enumerate(text.strip().splitlines()):
        if number:
            yield "\n"
        yield from line.split()


def _unframed(text: str) -> str:
    for _ in range(_FRAMES):
        opening = OPENING.match(text)
        if opening is None or opening.end() >= len(text):
            break
        text = text[opening.end() :].lstrip(_PUNCTUATION)
    for _ in range(_FRAMES):
        bare = text.rstrip(_PUNCTUATION)
        closing = CLOSING.search(bare, max(0, len(bare) - LONGEST_CLOSING))
        if closing is None or closing.start() == 0:
            break
        text = bare[: closing.start()]
    return text


def _split(core: str) -> Iterator[tuple[str, int, str]]:
    for found in _TOKEN.finditer(core):
        at = found.start()
        if found["amount"]:
            if found["unit"].lower() in UNITS:
                yield found["amount"], at, "number"
                yield found["unit"], at, "unit"
            else:
                yield found[0], at, "word"
        elif found["word"]:
            for part in _uncontracted(found["word"]):
                yield part, at, "word"
        else:
            yield found[0], at, "number" if found["number"] else "symbol"


def _uncontracted(word: str) -> tuple[str, ...]:
    low = word.lower()
    if low in CONTRACTED:
        return CONTRACTED[low]
    base, mark, ending = word.rpartition("'")
    if not mark:
        return (word,)
    if ending.lower() == "t" and base.lower().endswith("n"):
        stem = base[:-1]
        return {"ca": "can", "wo": "will", "sha": "shall"}.get(stem.lower(), stem), "not"
    if ending.lower() == "s" and base.lower() in IS_CONTRACTED:
        return base, "is"
    whole = {"ll": "will", "ve": "have", "re": "are", "m": "am", "d": "would", "s": ""}.get(ending.lower())
    if whole is None:
        return (word,)
    return (base, whole) if whole else (base,)


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
    if tag == "unit" or (low in UNITS and (behind_number or len(low) > SHORT_UNIT)):
        return _unit(raw, low), "unit"
    if tag == "symbol":
        return (UNITS[low], "unit") if low in UNITS else (raw, "symbol")
    if raw.isupper() and len(raw) > 1 and low in _PLAIN_WORDS:
        return raw, "content"  # IT, US, WHO: not the word in capitals
    if low in NUMBER_WORDS or (low in MULTIPLIERS and behind_number):
        return low, "number"
    for words, kind in _CLASSES:
        if low in words:
            return (words[low] if isinstance(words, dict) else low), kind
    if low == "to":
        return low, ("free" if may_be_verb(after) else "content")
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
_PLAIN_WORDS: Final = frozenset().union(*(set(words) for words, _ in _CLASSES if words not in (DATES,))) | {"to"}


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
