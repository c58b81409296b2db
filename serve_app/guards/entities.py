"""Names."""

from typing import Final

from serve_app.guards.closed import SOFTWARE
from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import known
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading

_SHORT: Final = 4  # letters; longer names are written either way (NASA, Nasa)


class Entities(Guard):
    """Both questions name the same things, and a word is a name in both or in neither: Turkey is not turkey."""

    name = "entities"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        if any(word.raw[0].isupper() and word.at for side in pair.left_over for word in side):
            return "other names"
        if _odd(pair.asked, pair.stored):
            return "other capitals"
        if pair.asked.cased and pair.stored.cased:
            asked, stored = _capitals(pair.asked), _capitals(pair.stored)
            if any(
                low not in SOFTWARE and known(low) and asked[low].isdisjoint(stored[low]) for low in asked.keys() & stored.keys()
            ):
                return "a name in one, a word in the other"
        return None


def _odd(asked: Reading, stored: Reading) -> bool:
    """Whether a short word has its capitals elsewhere: CO and Co, MBps and Mbps, pH and PH."""
    theirs: dict[str, set[str]] = {}
    for word in stored.words:
        theirs.setdefault(word.low, set()).add(word.raw)
    return any(
        w.raw not in theirs[w.low] and all(_telling(raw) for raw in (w.raw, *theirs[w.low]))
        for w in asked.words
        if w.low in theirs and w.kind in ("content", "unit") and (len(w.raw) < _SHORT or w.low.endswith("ps"))
    )


def _telling(raw: str) -> bool:
    return not raw.islower()


def _capitals(text: Reading) -> dict[str, set[bool]]:
    """Whether a word is written with a capital where the sentence does not ask for one."""
    found: dict[str, set[bool]] = {}
    for word in text.words:
        if word.at and word.kind in ("content", "date"):
            found.setdefault(word.low, set()).add(word.raw[0].isupper())
    return found
