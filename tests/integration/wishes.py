"""A driver on a Ray cluster that wants what gateways, debate workers and replicas want of it.

One question a line on stdin, one JSON answer a line on stdout: `python -m tests.integration.wishes ADDRESS`.
"""

import json
import sys
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group


@ray.remote
class _Actor:
    """Takes room, as a gateway does."""

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


class Wishes:
    """What was asked for and not given back."""

    def __init__(self) -> None:
        self._actors: list[Any] = []
        self._groups: list[PlacementGroup] = []

    def actors(self, count: int, options: dict[str, Any]) -> None:
        """Actors that Serve would place with these options."""
        self._actors += [_Actor.options(**options).remote() for _ in range(count)]  # type: ignore[attr-defined]

    def groups(self, count: int, bundles: list[dict[str, float]], strategy: str, labels: dict[str, str]) -> None:
        """Placement groups on nodes with these labels, as Ray Serve LLM makes one for each replica."""
        selectors = [labels] * len(bundles) if labels else None
        self._groups += [placement_group(bundles, strategy=strategy, bundle_label_selector=selectors) for _ in range(count)]

    def release(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        for group in self._groups:
            remove_placement_group(group)
        self._actors, self._groups = [], []

    def placed(self) -> dict[str, int]:
        """Fulfilled wishes by the label of the node."""
        calls = [actor.node.remote() for actor in self._actors]
        ready = ray.wait(calls, num_returns=len(calls), timeout=1)[0] if calls else []
        places = [{node} for node in ray.get(ready)]
        table = ray.util.placement_group_table()
        told = [table[group.id.hex()] for group in self._groups]
        places += [set(group["bundles_to_node_id"].values()) for group in told if group["state"] == "CREATED"]
        # Asked for last: a node may join while the wishes are looked at.
        of_node = {node["NodeID"]: node["Labels"].get("aifactory.group", "") for node in ray.nodes()}
        named = ["+".join(sorted({of_node[node] for node in place})) for place in places]
        return {place: named.count(place) for place in named}


def main(address: str) -> None:
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    wishes = Wishes()
    for line in sys.stdin:
        question = json.loads(line)
        wish = question.pop("wish")
        answer: Any = None
        match wish:
            case "actors":
                wishes.actors(**question)
            case "groups":
                wishes.groups(**question)
            case "release":
                wishes.release()
            case "placed":
                answer = wishes.placed()
            case "nodes":
                answer = [node["Labels"] for node in ray.nodes() if node["Alive"]]
        sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
