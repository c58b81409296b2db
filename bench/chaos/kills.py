"""Who is killed when: drawn from the seed beforehand, so that a run can be had again."""

import asyncio
import contextlib
import os
import random
import signal
import time
from dataclasses import dataclass

from bench.chaos.eyes import Role, Seat
from bench.chaos.ground import Ground

ROLES: tuple[Role, ...] = ("gateway", "worker", "replica")
SERVERS = ("nats", "postgres")
TARGETS = (*ROLES, *SERVERS)
_FIND_S = 60.0  # how long a victim that is just being restarted is waited for


@dataclass(frozen=True)
class Kill:
    """A planned kill. `at_s` counts from the start; `pick` chooses among several; `away_s` is for servers."""

    at_s: float
    target: str
    pick: float
    away_s: float


@dataclass(frozen=True)
class Killed:
    """A kill that was done. `at`: Unix seconds."""

    at: float
    target: str
    pid: int


def plan(seed: int, kills: int, seconds: float, targets: tuple[str, ...] = TARGETS) -> list[Kill]:
    """`kills` kills over `seconds`, every target about as often as the others."""
    dice = random.Random(f"kills {seed}")
    order: list[str] = []
    while len(order) < kills:
        order += dice.sample(targets, len(targets))
    step = seconds / max(1, kills)
    return [
        Kill((number + dice.uniform(0.2, 0.9)) * step, order[number], dice.random(), dice.uniform(0.3, 3.0))
        for number in range(kills)
    ]


async def carry_out(ground: Ground, kills: list[Kill], done: list[Killed]) -> None:
    """Kill as planned. Servers are started again as a supervisor would; Ray starts its actors itself."""
    began = time.monotonic()
    for kill in kills:
        await asyncio.sleep(max(0.0, began + kill.at_s - time.monotonic()))
        if kill.target in SERVERS:
            await kill_server(ground, kill.target, kill.away_s, done)
        else:
            await kill_actor(ground, next(role for role in ROLES if role == kill.target), kill.pick, done)


async def kill_server(ground: Ground, name: str, away_s: float, done: list[Killed]) -> None:
    """kill -9, and back after `away_s`."""
    server = ground.server(name)
    pid = await asyncio.to_thread(server.kill)
    done.append(Killed(time.time(), name, pid))
    await asyncio.sleep(away_s)
    await asyncio.to_thread(server.start)


async def kill_actor(ground: Ground, role: Role, pick: float, done: list[Killed]) -> None:
    """kill -9 to one of the actors of this role, as Ray lists them."""
    killed = {past.pid for past in done}
    async with asyncio.timeout(_FIND_S):
        # Ray notices a death a moment later than we caused it.
        seats: list[Seat] = []
        while not seats:
            await asyncio.sleep(0.2)
            seats = [seat for seat in await ground.eyes.seats(role) if seat.pid not in killed]
    seat = seats[int(pick * len(seats))]
    with contextlib.suppress(ProcessLookupError):
        os.kill(seat.pid, signal.SIGKILL)
    done.append(Killed(time.time(), role, seat.pid))
