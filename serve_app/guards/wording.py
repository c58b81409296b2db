"""Tasks about words, quotations, long texts."""

from typing import Final

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading

_TELLING: Final = 5  # letters


class Wording(Guard):
    """Where only the very same words will do, they are the same; what stands in quotation marks is so to the letter."""

    name = "wording"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.asked, pair.stored
        if asked.quoted != stored.quoted and not (_unmarked(asked, stored) or _unmarked(stored, asked)):
            return "other quotations"
        if (asked.strict or stored.strict) and [w.low for w in asked.words] != [w.low for w in stored.words]:
            return "other wording"
        if (asked.literal or stored.literal) and asked.task != stored.task:
            return "other words"
        return None


def _unmarked(marked: Reading, plain: Reading) -> bool:
    """What does "ennui" mean? - What does ennui mean? A short word ("it") means something else without its marks."""
    return not plain.quoted and all(len(quoted) >= _TELLING and quoted in plain.core for quoted in marked.quoted)
