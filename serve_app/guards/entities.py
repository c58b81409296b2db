"""Names."""

from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import known
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading


class Entities(Guard):
    """Both questions name the same things, and a word is a name in both or in neither: Turkey is not turkey."""

    name = "entities"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        if any(word.raw[0].isupper() and word.at for side in pair.left_over for word in side):
            return "other names"
        if pair.asked.cased and pair.stored.cased:
            asked, stored = _capitals(pair.asked), _capitals(pair.stored)
            if any(known(low) and asked[low].isdisjoint(stored[low]) for low in asked.keys() & stored.keys()):
                return "a name in one, a word in the other"
        return None


def _capitals(text: Reading) -> dict[str, set[bool]]:
    """Whether a word is written with a capital where the sentence does not ask for one."""
    found: dict[str, set[bool]] = {}
    for word in text.words:
        if word.at and word.kind in ("content", "date"):
            found.setdefault(word.low, set()).add(word.raw[0].isupper())
    return found
