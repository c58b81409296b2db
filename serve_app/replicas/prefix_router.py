"""Which replica gets a request: the one that has seen its beginning before, unless that one has more to do than the others.

Serve loads this class by name into every process that holds a handle, so importing it must stay light: Ray's own
prefix-aware router brings vLLM and torch along, and asks an actor about each request.
"""

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import LocalityMixin, MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

PREFIX_ROUTER: Final = "serve_app.replicas.prefix_router.PrefixRouter"
_PREFIX_CHARS: Final = 4096
_LOAD_FACTOR: Final = 1.25
_CHOICE_COUNTS_S: Final = 1.0
_FREE_REQUESTS: Final = 4  # a replica with fewer is never too busy


class PrefixRouter(LocalityMixin, MultiplexMixin, RequestRouter):  # type: ignore[misc]  # Ray ships no types
    """Consistent hashing with bounded load, on what `prefix_key` takes from the request.

    Each router comes to the same choice alone, so gateways share nothing. A replica that comes or goes moves only the
    conversations that are its own. A request for an adapter goes to a replica that has it loaded, as Serve decides.
    """

    def initialize_state(self) -> None:
        """Called by Serve before the first request."""
        self._chosen: dict[str, deque[float]] = {}  # by replica: when it was chosen for requests that are not sent yet

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Called by Serve when a request leaves for a replica: from here on its queue's length says so."""
        super().on_send_request(replica_id)
        if chosen := self._chosen.get(replica_id.unique_id):
            chosen.popleft()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, the preferred one first. See Serve's RequestRouter."""
        key = None
        if pending_request is not None and not pending_request.metadata.multiplexed_model_id:
            key = prefix_key(pending_request.args)
        if pending_request is None or key is None or len(candidate_replicas) < 2:
            chosen: list[list[RunningReplica]] = await PowerOfTwoChoicesRequestRouter.choose_replicas(
                self, candidate_replicas, pending_request
            )
            return chosen
        # Else Serve looks at replicas near by first, again and again, without a pause between.
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        first, *rest = ranked(key, self._loads(by_id))
        self._chosen[first].append(time.monotonic())
        return [[by_id[first]], [by_id[name] for name in rest]]

    def _loads(self, replicas: Mapping[str, RunningReplica]) -> dict[str, int]:
        """Requests of each replica. A burst is shared out before any of it is sent, so choices count as well, for a while."""
        now = time.monotonic()
        self._chosen = {name: self._chosen.get(name, deque()) for name in replicas}
        for chosen in self._chosen.values():
            while chosen and now - chosen[0] > _CHOICE_COUNTS_S:  # its caller left, or it went elsewhere
                chosen.popleft()
        queues = {name: self._replica_queue_len_cache.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return {name: queues[name] + len(self._chosen[name]) for name in replicas}


def prefix_key(arguments: Iterable[Any]) -> bytes | None:
    """What the turns of one conversation have in common: the messages up to the user's first; of a prompt, its beginning.

    `arguments` of the replica's method; the first is the request's body. None when it has neither.
    """
    body = next(iter(arguments), None)
    if not isinstance(body, Mapping):
        return None
    messages, prompt = body.get("messages"), body.get("prompt")
    try:
        if isinstance(messages, list) and messages:
            return orjson.dumps(messages[: _first_of_user(messages) + 1])[:_PREFIX_CHARS]
        return orjson.dumps(prompt)[: _PREFIX_CHARS // 4] if prompt else None
    except orjson.JSONEncodeError:  # half a character: the replica is to refuse it
        return None


def ranked(key: bytes, loads: Mapping[str, int]) -> list[str]:
    """Replicas in the order in which they are to be tried: by the key, those with too much to do last.

    `loads`: requests of each replica. Too much is more than 1.25 times the average and more than a handful.
    """
    bound = max(_FREE_REQUESTS, _LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads))
    order = sorted(loads, key=lambda name: hashlib.blake2b(key, key=name.encode()[:64], digest_size=8).digest())
    return sorted(order, key=lambda name: loads[name] + 1 > bound)


def _first_of_user(messages: list[Any]) -> int:
    for number, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return number
    return len(messages)
