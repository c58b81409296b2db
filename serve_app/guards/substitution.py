"""The rule that needs no list: every word that carries the question is answered by one on the other side."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Substitution(Guard):
    """No word is left over on either side: the same word in another form or spelling, a synonym, a slip of the keyboard."""

    name = "substitution"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        asked, stored = pair.left_over
        if asked and stored:
            return "other words"
        return "more words" if asked or stored else None
