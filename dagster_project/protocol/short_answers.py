"""Short answers in a form in which they can be compared. Pure.

Two texts compare as equal only if they say the same word for word, but for case, punctuation at the edges, markup, a
leading article and how a number is written. When in doubt they differ: an agreement that is none would end a debate.
"""

import re
import unicodedata
from decimal import Decimal
from typing import Any, Final

import orjson

_MOST_WORDS: Final = 12
_MOST_JSON_BYTES: Final = 200
_CONCLUSION: Final = re.compile(
    r"(?:^|[.!?:;,\n*#]|\b(?:so|thus|hence|therefore|then)\b)[\s*_#>]*"
    r"(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|short)\s+)?answer[\s*_]*(?:is\b|:)",
    re.IGNORECASE,
)
_BOXED: Final = re.compile(r"\\boxed\{([^{}]*)\}")
_FACTORIAL: Final = re.compile(r"(?:[0-9)\]]|\b[^\W\d_])!+$")
_IN_DOLLARS: Final = re.compile(r"\$([^$\s](?:[^$]*[^$\s])?)\$")
_IT_IS: Final = re.compile(r"(?:it|this|that)(?:\s+is|['\u2019]s)\s+", re.IGNORECASE)
_GROUPED: Final = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3}\b)")
_NUMBER: Final = re.compile(r"([$€£¥]?)([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|0|[1-9][0-9]*|(?=\.[0-9]))(\.[0-9]+)?([%°]?[a-z]{0,3})")
_EDGES: Final = "*_`\"'\u201c\u201d\u2018\u2019"
_STOPS: Final = ".,;:!?"
_JOINS: Final = frozenset({"and", "or"})
# After these a number is an amount. After another word it may be a version or a section: Python 3.10 is not Python 3.1.
_BEFORE_AMOUNTS: Final = _JOINS | {
    "is", "are", "was", "be", "equals", "about", "approximately", "around", "roughly", "exactly", "almost", "nearly", "just",
    "only", "plus", "minus", "times", "by", "to", "than", "of", "at", "between", "think", "say", "get", "gives", "makes",
}  # fmt: skip


def short_answer(text: str) -> str | None:
    """The canonical form of a short answer, or of the short answer that a long text concludes with; None for a long one."""
    text = unicodedata.normalize("NFC", text).replace("\u2212", "-").strip()
    if text[:1] in ("{", "["):
        return _json(text)
    boxed = _BOXED.findall(text)
    if boxed and len(boxed) != text.count(r"\boxed"):
        return None  # one of them holds braces of its own: it may be the last
    tail: str = boxed[-1] if boxed else _CONCLUSION.split(text)[-1]
    tail = _GROUPED.sub("", _IN_DOLLARS.sub(r"\1", tail).strip(" :\n\t" + _EDGES))
    tail = _IT_IS.sub("", tail, count=1) if _IT_IS.match(tail) else tail
    raw = tail.casefold().split()
    if len(raw) > _MOST_WORDS:
        return None
    told = _without_article(raw)
    words = [canonical for before, word in zip(["", *told], told, strict=False) if (canonical := _word(word, before))]
    return " ".join(words) or None


def _without_article(words: list[str]) -> list[str]:
    if len(words) < 2 or words[0] not in ("a", "an", "the"):
        return words
    # "a and b", "a b": there the letter is an answer, not an article.
    letter = words[0] == "a" and (len(words[1].strip(_STOPS + _EDGES)) < 2 or words[1] in _JOINS)
    return words if letter else words[1:]


def _word(word: str, before: str) -> str:
    """`before`: the word before it, as it stands, or an empty string."""
    bare = word.strip(_EDGES)
    if _FACTORIAL.search(bare) is None:  # 5! is not 5, nor n! n
        bare = bare.rstrip(_STOPS).rstrip(_EDGES).rstrip(_STOPS)
    if re.fullmatch(r"\(\w+\)", bare):
        bare = bare[1:-1]
    number = _NUMBER.fullmatch(bare)
    return _number(number, amount=not _names(before)) if number else bare


def _names(before: str) -> bool:
    """Whether a number after this word may be its name, such as a version."""
    return before.strip(_EDGES)[:1].isalpha() and before[-1:] not in _STOPS and before.strip(_EDGES) not in _BEFORE_AMOUNTS


def _number(match: re.Match[str], *, amount: bool) -> str:
    """Zeros at the end of the digits after the point say nothing of an amount."""
    currency, sign, whole, part, unit = match.groups(default="")
    value = Decimal(f"{whole.replace(',', '') or '0'}{part}")
    digits = f"{value:f}".rstrip("0").rstrip(".") if part and amount else f"{value:f}"
    return f"{currency}{'-' if sign == '-' and value else ''}{digits}{unit}"


def _json(text: str) -> str | None:
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    return canonical.decode() if len(canonical) <= _MOST_JSON_BYTES else None
