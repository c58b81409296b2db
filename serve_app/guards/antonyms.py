"""Words that mean the contrary."""

from serve_app.guards.guard import Guard
from serve_app.guards.lexicon import opposites
from serve_app.guards.pair import Pair


class Antonyms(Guard):
    """No word of one question is the contrary of a word of the other: WordNet's antonyms, and un-, in-, non-, dis-."""

    name = "antonyms"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.left_over
        return "contrary words" if any(opposites(a.low, b.low) for a in asked for b in stored) else None
