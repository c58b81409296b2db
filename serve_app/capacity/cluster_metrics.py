"""Reads how many requests wait for a replica from the Prometheus endpoints of the Ray nodes, over HTTP."""

import asyncio
import re
from collections.abc import Sequence
from typing import Final

import httpx

_QUEUED: Final = "ray_serve_deployment_queued_queries"
_BETWEEN_S: Final = 5.0  # processes hand their numbers over every 10 s
_TIMEOUT_S: Final = 3.0


class ClusterMetrics:
    """The queue of one Serve deployment, as gateways report it. `endpoints` are URLs of Ray's metrics pages."""

    def __init__(self, endpoints: Sequence[str], deployment: str) -> None:
        self._endpoints = endpoints
        self._line = re.compile(rf'^{_QUEUED}\{{[^}}]*deployment="{re.escape(deployment)}"[^}}]*\}} (\S+)', re.MULTILINE)

    async def queued(self) -> float | None:
        """Requests that wait for a replica with a free place; None when no endpoint says."""
        found: list[float] = []
        async with httpx.AsyncClient(timeout=_TIMEOUT_S, trust_env=False) as http:
            for endpoint in self._endpoints:
                try:
                    page = await http.get(endpoint)
                except httpx.HTTPError:
                    continue  # Ray lists endpoints that may be down
                found += [float(value) for value in self._line.findall(page.text)]
        return sum(found) if found else None

    async def mean_queued(self, begin_s: float, end_s: float) -> float | None:
        """Mean of what is seen from `begin_s` to `end_s` seconds from now; None when nothing is."""
        await asyncio.sleep(begin_s)
        seen: list[float] = []
        clock = asyncio.get_running_loop()
        last = clock.time() + end_s - begin_s
        while clock.time() < last:
            value = await self.queued()
            if value is not None:
                seen.append(value)
            await asyncio.sleep(min(_BETWEEN_S, max(0.0, last - clock.time())))
        return sum(seen) / len(seen) if seen else None
