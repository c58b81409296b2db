"""The whole experiment: load, kills, calm, checks."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from bench.chaos import records
from bench.chaos.exchange import Exchange, exchange
from bench.chaos.ground import LEASE_S, Ground
from bench.chaos.invariants import Evidence, Finding, check
from bench.chaos.kills import Kill, Killed, carry_out
from bench.chaos.load import Load
from serve_app.bus.streams import REQUEST_STREAM, WORKERS

_SAMPLE_S = 5.0
_TRIES, _TRY_PAUSE_S = 5, 2.0  # of a key, where nobody took the question


@dataclass
class Story:
    """What happened, for the table."""

    killed: list[Killed] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    debates: Counter[str] = field(default_factory=Counter)
    healed_s: float = 0.0
    settled_s: float = 0.0

    @property
    def broken(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.broken]


# Kills by itself, and notes whom; it may ask for more than the load does.
Strike = Callable[[list[Killed], Load], Awaitable[None]]


async def chaos(
    ground: Ground, *, seed: int, kills: Sequence[Kill] = (), strike: Strike | None = None, seconds: float, lanes: int = 10
) -> Story:
    """Load for `seconds` with these kills, or with `strike`, then let everything come to rest, and check."""
    story, stop = Story(), asyncio.Event()
    async with ground.stack.http() as http:
        await _warm(Load(http, seed=-1))
        before = ground.nats.subscriptions()
        load = Load(http, seed, lanes=lanes, most_s=ground.timeout_s + LEASE_S + 20)
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(stop))
            sampling = group.create_task(_sample_memory(ground, story))
            began = time.monotonic()
            await (strike(story.killed, load) if strike else carry_out(ground, list(kills), story.killed))
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            stop.set()
            sampling.cancel()
        story.healed_s = await ground.whole()
        await _ask_keys_again(load)
    began = time.monotonic()
    await records.settled(ground, timeout_s=ground.timeout_s + 4 * LEASE_S)
    story.settled_s = time.monotonic() - began
    story.memory.append(await ground.memory())
    await _judge(ground, story, load, before)
    return story


async def disconnects(
    ground: Ground, count: int, *, seed: int = 1, at_once: int = 15, after_s: float = 1.0, tokens: int = 400
) -> Finding:
    """`count` clients leave: a third a stream, a third a non-stream, a third a debate. Then the engines are asked.

    `tokens`: of each answer; it takes 15 ms a token where nobody aborts it.
    """
    dice, kinds = random.Random(f"leave {seed}"), ["stream", "whole", "debate"] * (count // 3)
    dice.shuffle(kinds)
    queue = iter(kinds)
    async with ground.stack.http() as http, asyncio.TaskGroup() as group:
        load = Load(http, seed=seed + 1_000_000, pause_s=0, leave_tokens=tokens)

        async def lane() -> None:
            for kind in queue:
                await load.leave(dice, kind)

        for _ in range(at_once):
            group.create_task(lane())
    last = time.monotonic()
    await asyncio.sleep(after_s)  # this pause is what is measured
    engines = await ground.eyes.engines()
    idle_s = await _until_idle(ground, last)
    left = sum(made.end == "left" for made in load.exchanges)
    busy = [f"{e['replica']}: {e['running']} running, {e['waiting']} waiting" for e in engines if e["running"] or e["waiting"]]
    if left < count // 3:
        busy.append(f"only {left} of {count} clients left in the middle: this measured nothing")
    if busy:
        busy.append(f"idle {idle_s:.2f} s after the last")
    return Finding(f"{left} of {len(kinds)} clients left in the middle; engines idle {after_s:g} s later", left, busy)


async def _until_idle(ground: Ground, since: float) -> float:
    """Seconds since `since` (monotonic) when the engines were first seen idle."""
    async with asyncio.timeout(60):
        busy = await ground.eyes.busy()
        while busy:
            await asyncio.sleep(0.05)
            busy = await ground.eyes.busy()
    return time.monotonic() - since


async def _warm(load: Load) -> None:
    dice = random.Random(0)
    for kind in ("stream", "whole", "debate", "keyed", "hot"):
        await asyncio.gather(*(load.once(kind, dice) for _ in range(2)))


async def _sample_memory(ground: Ground, story: Story) -> None:
    while True:
        story.memory.append(await ground.memory())
        await asyncio.sleep(_SAMPLE_S)


async def _ask_keys_again(load: Load) -> None:
    """Every key once more, now that all is well: the answer must be there, or be made now."""
    last = {made.key: made for made in load.exchanges if made.key is not None}
    for some in _chunks([made for made in last.values() if made.key], 8):
        await asyncio.gather(*(_ask_key_again(load, made) for made in some))


async def _ask_key_again(load: Load, made: Exchange) -> None:
    """As an SDK does: the proxy may still know a gateway that is dead, a gateway may not have found its servers yet."""
    for _ in range(_TRIES):
        found = await exchange(load.http, made.kind, made.body, key=made.key, most_s=load.most_s)
        load.exchanges.append(found)
        if not _was_refused(found):
            return
        await asyncio.sleep(_TRY_PAUSE_S)


def _was_refused(made: Exchange) -> bool:
    """Nobody took the question. The proxy's own word has no trace_id; a run that failed has one."""
    return made.end in ("error", "broken") and (made.status in (429, 503) or made.trace_id is None)


async def _judge(ground: Ground, story: Story, load: Load, before: dict[str, list[str]]) -> None:
    bus, rows = await records.bus_state(ground), await records.rows(ground)
    story.exchanges = load.exchanges
    evidence = Evidence(
        load.exchanges, rows, bus, ground.tap.finished, ground.nats.outages, ground.postgres.outages, story.killed
    )
    story.findings = check(evidence)
    engines = await ground.eyes.engines()
    busy = [f"{e['replica']}: {e}" for e in engines if e["running"] or e["waiting"]]
    story.findings.append(Finding("engines are idle", len(engines), busy))
    locks = await records.advisory_locks(ground)
    story.findings.append(Finding("no advisory lock is held", 1, [f"{locks} locks"] if locks else []))
    stuck = await records.open_dagster_runs(ground)
    story.findings.append(Finding("every Dagster run has ended", 1, stuck))
    strange = [f"{stream}: {name}" for stream, names in bus.consumers.items() for name in names]
    expected = {f"{REQUEST_STREAM}: {WORKERS}"}
    story.findings.append(Finding("no orphan consumer", len(strange), sorted(set(strange) ^ expected)))
    story.findings.append(Finding("the queue is empty", 1, [f"{bus.queued} runs in {REQUEST_STREAM}"] if bus.queued else []))
    after = ground.nats.subscriptions()
    grown = _more_subscriptions(before, after)
    story.findings.append(Finding("no orphan subscription", sum(map(len, after.values())), grown))
    story.ends = Counter(f"{made.kind.split()[0]} {made.end}" for made in load.exchanges)
    story.debates = Counter(
        f"{row.status}{': ' + row.error[:90] if row.error else ''}" for row in rows if row.route == "workflow"
    )


def _more_subscriptions(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """Connections with more subscriptions than any of their kind had at first; a puller's inbox comes and goes."""
    most: Counter[str] = Counter()
    for name, subjects in before.items():
        most[name.split()[0]] = max(most[name.split()[0]], len(subjects))
    return [
        f"{name}: {len(subjects)} where {most[name.split()[0]]} were: {subjects[:12]}"
        for name, subjects in after.items()
        if len(subjects) > most[name.split()[0]]
    ]


def _chunks(items: list[Exchange], size: int) -> list[list[Exchange]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
