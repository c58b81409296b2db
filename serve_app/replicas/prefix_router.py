"""Which replica gets a request: the one that has seen its beginning before, unless that one has more to do than the others.

Serve loads this class by name into every process that holds a handle, so importing it must stay light: Ray's own
prefix-aware router brings vLLM and torch along, and asks an actor about each request.
"""

import asyncio
import hashlib
import time
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

import orjson
from ray.serve._private.request_router import PowerOfTwoChoicesRequestRouter
from ray.serve.request_router import LocalityMixin, MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

PREFIX_ROUTER: Final = "serve_app.replicas.prefix_router.PrefixRouter"
# Of what a request begins with, so much makes its key: of each message, in letters, and messages and parts of one.
_MESSAGE_CHARS: Final = 2048
_MESSAGES: Final = 8
_PARTS: Final = 16
_PROMPT: Final = 1024  # letters or tokens
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
        # By what a request waits for: Serve asks again and again for one while all replicas are full. Its id will not do, all
        # requests that come of one have the same.
        self._keys = WeakKeyDictionary[asyncio.Future[Any], bytes | None]()

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """Called by Serve when a request leaves for a replica: from here on its queue's length says so."""
        super().on_send_request(replica_id)
        if chosen := self._chosen.get(replica_id.unique_id):
            chosen.popleft()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas to try, the preferred one first. See Serve's RequestRouter."""
        key, first_time = None, False
        if pending_request is not None and not pending_request.metadata.multiplexed_model_id:
            key, first_time = self._key(pending_request)
        if pending_request is None or key is None or len(candidate_replicas) < 2:
            chosen: list[list[RunningReplica]] = await PowerOfTwoChoicesRequestRouter.choose_replicas(
                self, candidate_replicas, pending_request
            )
            return chosen
        # Else Serve looks at replicas near by first, again and again, without a pause between.
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        first, *rest = ranked(key, self._loads(by_id))
        if first_time:
            self._chosen[first].append(time.monotonic())
        return [[by_id[first]], [by_id[name] for name in rest]]

    def _key(self, request: PendingRequest) -> tuple[bytes | None, bool]:
        """Its key, and whether it was asked for now for the first time."""
        if request.future in self._keys:
            return self._keys[request.future], False
        key = self._keys[request.future] = prefix_key(request.args)
        return key, True

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
    """A digest of what the turns of one conversation have in common: the beginnings of the messages up to the user's first;
    of a prompt, its own.

    `arguments` of the replica's method; the first is the request's body. None when it has neither. Only the beginnings are
    read, each for itself: conversations with one long system prompt in front are still told apart.
    """
    body = next(iter(arguments), None)
    if not isinstance(body, Mapping):
        return None
    messages, prompt = body.get("messages"), body.get("prompt")
    try:
        if isinstance(messages, list) and messages:
            first = _first_of_user(messages)
            told = orjson.dumps(
                [_beginning(message) for message in (*messages[:first][:_MESSAGES], *messages[first : first + 1])]
            )
        else:
            while isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):  # of several the first
                prompt = prompt[0]
            if not prompt or not isinstance(prompt, str | list):
                return None
            told = orjson.dumps(prompt[:_PROMPT])
    except orjson.JSONEncodeError:  # half a character: the replica is to refuse it
        return None
    return hashlib.blake2b(told, digest_size=16).digest()


def ranked(key: bytes, loads: Mapping[str, int]) -> list[str]:
    """Replicas in the order in which they are to be tried: by the key, those with too much to do last.

    `loads`: requests of each replica. Too much is more than 1.25 times the average and more than a handful.
    """
    bound = max(_FREE_REQUESTS, _LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads))
    order = sorted(loads, key=lambda name: hashlib.blake2b(key, key=name.encode()[:64], digest_size=8).digest())
    return sorted(order, key=lambda name: loads[name] + 1 > bound)


def _beginning(message: Any) -> tuple[str, str] | None:
    """Role, and the text as far as it makes the key; None for what is no message."""
    if not isinstance(message, Mapping):
        return None
    role, content = message.get("role"), message.get("content")
    if isinstance(content, list):
        content = "".join(_part(part) for part in content[:_PARTS])
    return role if isinstance(role, str) else "", content[:_MESSAGE_CHARS] if isinstance(content, str) else ""


def _part(part: Any) -> str:
    """A part's text; of a picture or a sound the length and both ends, since much of it is the same in all."""
    if not isinstance(part, Mapping):
        return ""
    text = part.get("text")
    if isinstance(text, str):
        return text[:_MESSAGE_CHARS]
    for given in part.values():
        data = next((value for value in given.values() if isinstance(value, str)), "") if isinstance(given, Mapping) else ""
        if data:
            return f"<{len(data)}:{data[:64]}{data[-64:]}>"
    return ""


def _first_of_user(messages: list[Any]) -> int:
    for number, message in enumerate(messages):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return number
    return len(messages)
