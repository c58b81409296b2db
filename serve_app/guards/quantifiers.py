"""How many, how much, which of several, more or less."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Quantifiers(Guard):
    """Both questions quantify alike: first is not last, all is not some, most is not least."""

    name = "quantifiers"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        return "other quantities" if pair.differs("quantifier") else None
