"""Units of measure and currencies."""

from serve_app.guards.guard import Guard
from serve_app.guards.pair import Pair


class Units(Guard):
    """Both questions hold the same units: `km` is kilometres, and not miles; mW is not MW."""

    name = "units"

    def veto(self, pair: Pair) -> str | None:
        """See Guard."""
        return "other units" if pair.differs("unit") else None
