"""API keys: who is calling."""

import time
from collections import OrderedDict
from typing import Protocol

from serve_app.errors import Unauthorized, Unavailable
from serve_app.gateway.asks import Caller

_CACHE_SIZE = 4096


class KeyOwner(Protocol):
    """What the store knows of a key."""

    @property
    def project(self) -> str: ...
    @property
    def projects(self) -> tuple[str, ...]: ...
    @property
    def key_id(self) -> str: ...
    @property
    def limited(self) -> frozenset[str]: ...


class KeyCheck(Protocol):
    """Looks a key up. Raises errors.Unavailable when the database is away."""

    async def check(self, key: str) -> KeyOwner | None: ...


class Authenticator:
    """Checks `Authorization: Bearer …` against the stored hashes; a checked key is trusted for `ttl_s` seconds.

    While the database is away, a key that was good before stays good: plain chat must go on. Whether a key has limits is
    known as long; what they are is asked anew with each request (gateway.metering).
    """

    def __init__(self, keys: KeyCheck, *, ttl_s: float) -> None:
        self._keys = keys
        self._ttl_s = ttl_s
        self._known: OrderedDict[str, tuple[float, Caller]] = OrderedDict()

    async def caller(self, authorization: str | None) -> Caller:
        """Raises Unauthorized for a missing, malformed or unknown key."""
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("no API key: send the header 'Authorization: Bearer YOUR_KEY'", code="missing_api_key")
        key = key.strip()
        known = self._known.get(key)
        if known is not None and time.monotonic() - known[0] < self._ttl_s:
            return known[1]
        try:
            owner = await self._keys.check(key)
        except Unavailable:
            if known is None:
                raise
            return known[1]
        if owner is None:
            self._known.pop(key, None)
            raise Unauthorized("this API key is not known or was revoked; create one with 'aifactory keys create --project P'")
        caller = Caller(owner.project, tuple(owner.projects), owner.key_id, owner.limited)
        self._known[key] = (time.monotonic(), caller)
        self._known.move_to_end(key)
        while len(self._known) > _CACHE_SIZE:
            self._known.popitem(last=False)
        return caller
