"""What a reply answers, in a form that can be compared, found without knowing the right answer.

Strict: a number is right when it is equal, a text when its words are equal. That an accepted answer stands somewhere
in the reply does not help. Every method under comparison is read by the same rules.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from bench.debate_quality.questions import Question

_SPELLED: Final = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
"""
_NUMBER_WORDS: Final = {word: str(value) for value, word in enumerate(_SPELLED.split())}
# A number stands alone: no part of a word (B12) or of another number (4 in 42 or 4.2). A minus after one subtracts.
_NUMBER: Final = re.compile(r"(?<![\w.,])(?:(?<!\))(?<![\d)] )-)?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w|[.,]\d)")
_MARKER: Final = re.compile(r"\banswer\s*(?:is\b\s*:?|:|=)", re.IGNORECASE)
_NEGATION: Final = re.compile(r"\b(?:not|never|cannot)\b|n't\b", re.IGNORECASE)
_MARKUP: Final = re.compile(r"[*`#_$~{}]|\\text")
_FRAME: Final = re.compile(r"\\boxed|\\[()\[\]]")
_SENTENCE_END: Final = re.compile(r"(?<!\b[A-Z])(?<!\bMt)(?<!\bSt)(?<!\bDr)(?<!\bMr)[.!?]+(?=\s+[A-Z]|\s*$)")
_PIECE_END: Final = re.compile(r"[,;:()\u2013\u2014]|\s-\s|\b(?:because|since|which)\b")
# Words of a sentence around its answer: they neither make it right nor wrong.
_AROUND: Final = """
    a an the is are was were be been it its this that they he she i you we there here of in on at by to for from and as
    has have had does do did would who what which where when s
    called named known considered written painted composed invented discovered located found made used formed founded
"""
_NEUTRAL: Final = frozenset(_AROUND.split())


def canonical(reply: str, question: Question) -> str | None:
    """What the reply answers; None when it answers nothing. Equal answers have equal forms."""
    text = _MARKUP.sub("", _FRAME.sub(" ", reply.rsplit("</think>", 1)[-1]))
    text = text.replace("\u2212", "-").replace("\u2019", "'").strip()
    stated = list(_MARKER.finditer(text))
    if stated:
        text = text[stated[-1].end() :].strip()
    if question.answer_type == "text":
        return _said_text(_first_line(text), question.question)
    return _said_number(_first_line(text), stated=True) if stated else _said_number(text, stated=False)


def is_right(answer: str | None, question: Question) -> bool:
    """Whether a canonical answer is one of those accepted."""
    return answer is not None and answer in accepted(question)


def accepted(question: Question) -> set[str]:
    """The canonical forms of the accepted answers. Raises ValueError for a label that is no answer."""
    read = _said_number_label if question.answer_type == "number" else _said_text_label
    return {read(answer) for answer in question.answers}


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent canonical answer; of equally frequent ones that which came first. What answers nothing has no vote."""
    votes = Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None  # most_common keeps the order of first sight among equals


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0].strip()


def _said_number(text: str, *, stated: bool) -> str | None:
    """Announced as the answer: the first number after the last `=`. Else the last number of all that was said."""
    if stated:
        text = text.rsplit("=", 1)[-1]
    found = [(match.start(), match.group()) for match in _NUMBER.finditer(text)]
    if not found:
        spelled = ((match.start(), _NUMBER_WORDS.get(match.group().casefold())) for match in re.finditer(r"[A-Za-z]+", text))
        found = [(place, digits) for place, digits in spelled if digits is not None]
    if not found:
        return None
    place, number = found[0] if stated else found[-1]
    if stated and _NEGATION.search(text[:place]):
        return None
    return _plain(number)


def _plain(number: str) -> str:
    # 42, 42.0 and 0042 are one number.
    value = Decimal(number.replace(",", ""))
    return format(value.normalize() if value else Decimal(0), "f")


def _said_number_label(label: str) -> str:
    number = _said_number(label, stated=True)
    if number is None:
        raise ValueError(f"{label!r} is no number")
    return number


def _said_text(line: str, asked: str) -> str | None:
    """The new words of the first sentence; what follows a comma is a remark, unless nothing new was said before it."""
    sentence = _SENTENCE_END.split(line, maxsplit=1)[0]
    known = {_stem(word) for word in words(asked)}
    for piece in _PIECE_END.split(sentence):
        if said := [word for word in words(piece) if word not in _NEUTRAL and _stem(word) not in known]:
            return " ".join(said)
    return None


def _said_text_label(label: str) -> str:
    said = " ".join(word for word in words(label) if word not in _NEUTRAL)
    if not said:
        raise ValueError(f"{label!r} has no word that says something")
    return said


def words(text: str) -> list[str]:
    """The words of a text without case, accents, marks and possessive s; number words as digits."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return [_NUMBER_WORDS.get(word, word) for word in re.findall(r"[^\W_]+", re.sub(r"'s\b", "", plain))]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") else word
