"""Tasks about words, quotations, long texts."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Wording(Guard):
    """Where only the very same words will do, they are the same; what stands in quotation marks is so to the letter."""

    name = "wording"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.asked, pair.stored
        if asked.quoted != stored.quoted:
            return "other quotations"
        if (asked.strict or stored.strict) and [w.low for w in asked.words] != [w.low for w in stored.words]:
            return "other wording"
        return None
