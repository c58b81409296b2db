"""Code, patterns, formulas: a single character may change everything, and embeddings hardly see it."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair
from serve_app.guards.reading import Reading


class Code(Guard):
    """Symbols and what they are attached to are the same to the letter; where a text looks like code, so is every word."""

    name = "code"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.asked, pair.stored
        if asked.chunks != stored.chunks or asked.keys("symbol") != stored.keys("symbol"):
            return "other symbols"
        if (asked.code_like or stored.code_like) and _letters(asked) != _letters(stored):
            return "other code"
        return None


def _letters(text: Reading) -> list[str]:
    return [w.raw if len(w.raw) == 1 else w.low for w in text.words if w.kind not in ("free", "question", "modal", "subject")]
