"""How far the semantic answers of a scope are trusted, and the port to where that is kept."""

from dataclasses import dataclass
from typing import Final, Protocol

from serve_app.ports import CacheHit

_STEP: Final = 0.005  # how far over a refuted similarity the next semantic answer must be
_HALVED_EVERY: Final = 8  # confirmations
_LEAST_SHARE: Final = 1 / 16


@dataclass(frozen=True, slots=True)
class Trust:
    """What verification found in one scope. `confirmed` counts since the last refutation."""

    least_similarity: float = 0.0
    confirmed: int = 0
    refuted: int = 0

    @property
    def share(self) -> float:
        """The part of the otherwise sampled answers that are still verified: halved with every 8 confirmations, at least 1/16."""
        return float(max(_LEAST_SHARE, 0.5 ** (self.confirmed // _HALVED_EVERY)))


class CacheTrust(Protocol):
    """Verdicts on semantic answers. Every method raises errors.Unavailable when the database is away."""

    async def trust(self, scope: str) -> Trust:
        """What is known of a scope; the default when nothing is."""
        ...

    async def confirm(self, scope: str) -> None:
        """A fresh answer said the same as the stored one."""
        ...

    async def refute(self, scope: str, hit: CacheHit, *, reason: str) -> bool:
        """It said something else: quarantine the entry and raise the scope's least similarity, in one transaction.

        False when the entry holds another answer by now: then nothing is quarantined, but the scope is still distrusted.
        """
        ...


def raised(similarity: float) -> float:
    """The least similarity of a scope after an answer of this similarity was refuted."""
    return min(1.0, similarity + _STEP)
