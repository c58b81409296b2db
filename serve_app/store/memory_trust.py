"""CacheTrust in memory, beside InMemoryAnswerCache."""

from dataclasses import replace

from serve_app.ports import CacheHit
from serve_app.store.memory import InMemoryAnswerCache
from serve_app.trust import Trust, raised


class InMemoryCacheTrust:
    """See trust.CacheTrust. For tests and small trials: it forgets nothing."""

    def __init__(self, cache: InMemoryAnswerCache) -> None:
        self._cache = cache
        self._known: dict[str, Trust] = {}

    async def trust(self, scope: str) -> Trust:
        """See trust.CacheTrust."""
        return self._known.get(scope, Trust())

    async def confirm(self, scope: str) -> None:
        """See trust.CacheTrust."""
        known = await self.trust(scope)
        self._known[scope] = replace(known, confirmed=known.confirmed + 1)

    async def refute(self, scope: str, hit: CacheHit, *, reason: str) -> bool:
        """See trust.CacheTrust."""
        known = await self.trust(scope)
        least = max(known.least_similarity, raised(hit.similarity))
        self._known[scope] = Trust(least, confirmed=0, refuted=known.refuted + 1)
        self._cache.least_similarity[scope] = least
        return self._cache.quarantine(hit.req_id, hit.trace_id)
