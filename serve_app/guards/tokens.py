"""A text cut into words, numbers, units and symbols."""

import re
from collections.abc import Iterator
from typing import Final

from serve_app.guards.closed import CONTRACTED, IS_CONTRACTED, UNITS

_TOKEN: Final = re.compile(
    r"(?P<number>(?<![\w.])-?(?=[\d.])\.?\d+(?:[.,:/]\d+)*(?:[sS][tT]|[nN][dD]|[rR][dD]|[tT][hH])?(?![^\W\d_]))"
    r"|(?P<amount>(?<![\w.])-?\d+(?:[.,:]\d+)*)(?P<unit>[^\W\d_]{1,3})(?!\w)"
    r"|(?P<word>(?:(?<![^\W_])[^\W\d_]{1,2}-(?=[^\W\d_]))?[^\W_]+(?:'[^\W\d_]+)*)"  # e-mail is one word, call-out two
    r"|(?P<symbol>[^\s\w.,;:!?'\"()-]|_)"
)


def split(core: str) -> Iterator[tuple[str, int, str]]:
    """Each as written, where it begins, and what it is: word, number, unit or symbol."""
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
