"""Two scorers share a topic under steady traffic; faults come one after another, in an order drawn
from a seed; then every record is accounted for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from ares_stream.lab.experiments.chaos.aside import EACH, Aside
from ares_stream.lab.experiments.chaos.checker import VIOLATIONS, check, verdict_place
from ares_stream.lab.experiments.chaos.clients import Traffic, Watch, read_all, until
from ares_stream.lab.experiments.chaos.proxy import Proxy
from ares_stream.lab.experiments.chaos.scorers import Scorer, ended_with
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.ports import free_ports
from ares_stream.records.topics import (
    DEADLETTERS,
    PROBE,
    PRODUCTION,
    REPAIR,
    VERDICTS,
    specs,
    topic_name,
)
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection

Profile = Literal["short", "full"]
ROUNDS: Final[Mapping[Profile, int]] = {"short": 1, "full": 5}
"""How often each fault comes."""
RATES: Final[Mapping[Profile, float]] = {"short": 100.0, "full": 200.0}
"""Conversations a second."""
PREFIX: Final = "chaos."
PARTITIONS: Final = 3
RECOVERY_SECONDS: Final = 90.0
"""Past every time-out that a fault can run into."""
IDLE_SECONDS: Final = 1.0
"""A fetch that was on its way has come back empty after this."""
VIOLATIONS_ASIDE: Final = ("aside_lost", "losses_miscounted")
OPEN_SECONDS: Final = 3.0
"""How long a producer's transaction stays open over traffic."""
QUIET_SECONDS: Final = 60.0
"""Without progress at the end, what is missing is taken for lost."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Offsets that a fault took from under the scorers (or partitions that it made others), and how
    many they told."""

    fault: str
    taken: int
    counted: int


@dataclass(frozen=True)
class Stage:
    """What faults act on."""

    broker: EmbeddedBroker
    proxy: Proxy
    direct: Scorer
    behind: Scorer
    """Talks to the broker through the proxy."""
    traffic: Traffic
    watch: Watch
    random: random.Random
    aside: Aside
    data: Path
    """The broker's files."""
    losses: list[Loss] = field(default_factory=list)

    async def recovered(self, since: float) -> list[float]:
        """Of each partition the seconds from `since` until a record that was sent after it came
        out, committed."""
        topic = topic_name(PREFIX, PRODUCTION)
        found: dict[int, float] = {}

        def all_moved() -> bool:
            for place, sent in list(self.traffic.sent.items())[-20_000:]:
                came = self.watch.arrived.get(place)
                if came is not None and sent.at >= since and place[0] == topic:
                    found[place[1]] = min(found.get(place[1], came), came)
            return len(found) == PARTITIONS

        try:
            await until(all_moved, RECOVERY_SECONDS, "a partition does not move on")
        except TimeoutError as error:
            still = [number for number in range(PARTITIONS) if number not in found]
            said = [await asyncio.to_thread(one.says) for one in (self.direct, self.behind)]
            lines = "\n".join(said)
            seen = len(self.watch.arrived)
            raise TimeoutError(
                f"{error}: {topic} {still}, {seen} outcomes seen since the start\n{lines}"
            ) from None
        return [found[number] - since for number in sorted(found)]

    async def skipped(self) -> int:
        """Offsets that the scorers counted as lost, of the topic aside."""
        topic = self.aside.topic
        return await asyncio.to_thread(
            lambda: self.direct.skipped(topic) + self.behind.skipped(topic)
        )

    async def rewritten(self) -> int:
        """Partitions of the topic aside that the scorers found rewritten."""
        topic = self.aside.topic
        return await asyncio.to_thread(
            lambda: self.direct.rewritten(topic) + self.behind.rewritten(topic)
        )

    def victim(self) -> Scorer:
        """Either scorer."""
        return self.random.choice((self.direct, self.behind))


async def _kill(stage: Stage) -> list[float]:
    """SIGKILL of a scorer, which is started again at once."""
    since = time.monotonic()
    stage.victim().send(signal.SIGKILL)
    return await stage.recovered(since)


async def _zombie(stage: Stage) -> list[float]:
    """SIGSTOP of a scorer past its session; SIGCONT once the other has its partitions."""
    victim, since = stage.victim(), time.monotonic()
    victim.send(signal.SIGSTOP)
    try:
        return await stage.recovered(since)
    finally:
        victim.send(signal.SIGCONT)


async def _broker_kill(stage: Stage) -> list[float]:
    """SIGKILL of the only broker, which is started again at once."""
    since = time.monotonic()
    await asyncio.to_thread(stage.broker.kill)
    await asyncio.to_thread(stage.broker.restart)
    return await stage.recovered(since)


async def _broker_pause(stage: Stage) -> list[float]:
    """The broker holds its connections and says nothing for some seconds."""
    since = time.monotonic()
    stage.broker.pause()
    try:
        await asyncio.sleep(stage.random.uniform(1.0, 4.0))
    finally:
        stage.broker.resume()
    return await stage.recovered(since)


async def _black_hole(stage: Stage) -> list[float]:
    """What one scorer and the broker say to each other is swallowed, until the other scorer has
    its partitions."""
    since = time.monotonic()
    stage.proxy.deaf = True
    try:
        return await stage.recovered(since)
    finally:
        stage.proxy.heal()


async def _pills(stage: Stage) -> list[float]:
    """Records that no scorer can read."""
    since = time.monotonic()
    stage.traffic.pills()
    return await stage.recovered(since)


async def _bomb(stage: Stage) -> list[float]:
    """Some KiB on the wire, 40 MiB inside."""
    since = time.monotonic()
    stage.traffic.bomb()
    return await stage.recovered(since)


async def _transactions(stage: Stage) -> list[float]:
    """Input by transactions, committed, aborted and left open; a scorer is killed meanwhile."""
    async with asyncio.TaskGroup() as group:
        group.create_task(stage.traffic.transactions(OPEN_SECONDS))
        await asyncio.sleep(stage.random.uniform(0.5, OPEN_SECONDS))
        since = time.monotonic()
        stage.victim().send(signal.SIGKILL)
    return await stage.recovered(since)


async def _disk_full(stage: Stage) -> list[float]:
    """No file of the broker can be written, of which it ends; it is started when there is room."""
    since = time.monotonic()
    await asyncio.to_thread(stage.broker.fill_disk)
    await asyncio.sleep(stage.random.uniform(2.0, 6.0))
    await asyncio.to_thread(stage.broker.restart)
    return await stage.recovered(since)


@contextlib.contextmanager
def _both_stopped(stage: Stage) -> Iterator[None]:
    """While it lasts no scorer reads."""
    scorers = (stage.direct, stage.behind)
    for scorer in scorers:
        scorer.send(signal.SIGSTOP)
    try:
        yield
    finally:
        for scorer in scorers:
            scorer.send(signal.SIGCONT)


async def _retention(stage: Stage) -> list[float]:
    """Records are deleted before scorers that are behind could read them."""
    await stage.aside.decided(await asyncio.to_thread(stage.aside.send))
    since, before = time.monotonic(), await stage.skipped()
    with _both_stopped(stage):
        await asyncio.sleep(IDLE_SECONDS)
        ids = await asyncio.to_thread(stage.aside.send)
        lost = await asyncio.to_thread(stage.aside.delete_all_but, EACH // 2)
    await stage.aside.decided(ids)
    stage.losses.append(Loss("retention", lost, await stage.skipped() - before))
    return await stage.recovered(since)


async def _truncation(stage: Stage) -> list[float]:
    """The broker is killed and comes back without the records of a topic."""
    await stage.aside.decided(await asyncio.to_thread(stage.aside.send))
    since, before = time.monotonic(), await stage.skipped()
    await asyncio.to_thread(stage.broker.kill)
    stage.aside.truncate(stage.data)
    await asyncio.to_thread(stage.broker.restart)
    lost = await asyncio.to_thread(stage.aside.past_the_end)
    deadline = since + RECOVERY_SECONDS
    # Records that are sent before it is noticed would fill the log up again.
    while await stage.skipped() - before < lost and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.2)
    await stage.aside.decided(await asyncio.to_thread(stage.aside.send))
    stage.losses.append(Loss("truncation", lost, await stage.skipped() - before))
    return await stage.recovered(since)


async def _filled_again(stage: Stage) -> list[float]:
    """As truncated, while both scorers are stopped, and more records than were read come before
    they go on: every partition's log is another one than they committed."""
    await stage.aside.decided(await asyncio.to_thread(stage.aside.send))
    since, before = time.monotonic(), await stage.rewritten()
    with _both_stopped(stage):
        await asyncio.to_thread(stage.broker.kill)
        stage.aside.truncate(stage.data)
        await asyncio.to_thread(stage.broker.restart)
        longer = await asyncio.to_thread(stage.aside.begin_again)
        ids = await asyncio.to_thread(stage.aside.send, longer + EACH)
    await stage.aside.decided(ids)
    stage.losses.append(Loss("filled again", PARTITIONS, await stage.rewritten() - before))
    return await stage.recovered(since)


async def _made_anew(stage: Stage) -> list[float]:
    """A topic is deleted and made anew, with more records than were read of the first."""
    await stage.aside.decided(await asyncio.to_thread(stage.aside.send))
    since = time.monotonic()
    longer = await asyncio.to_thread(stage.aside.make_anew)
    await stage.aside.decided(await asyncio.to_thread(stage.aside.send, longer + EACH))
    return await stage.recovered(since)


FAULTS: Final[Mapping[str, Callable[[Stage], Awaitable[list[float]]]]] = {
    "scorer killed": _kill,
    "scorer stopped past its session": _zombie,
    "broker killed": _broker_kill,
    "broker paused": _broker_pause,
    "black hole": _black_hole,
    "pills": _pills,
    "bomb": _bomb,
    "transactions and a scorer killed": _transactions,
    "broker's disk full": _disk_full,
    "retention faster than a reader": _retention,
    "log truncated": _truncation,
    "log truncated and filled again": _filled_again,
    "topic made anew": _made_anew,
}


def plan(profile: Profile, seed: int, chosen: Sequence[str] = ()) -> list[str]:
    """The faults (all, where none is chosen) in their order: each as often as the profile says."""
    order = [*(chosen or FAULTS)] * ROUNDS[profile]
    random.Random(seed).shuffle(order)
    return order


async def run(
    profile: Profile,
    seed: int,
    folder: Path,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    *,
    chosen: Sequence[str] = (),
) -> dict[str, Any]:
    """The document: counts, recovery and memory. `folder` takes topics, models and logs; `chosen`
    are the only faults, where there are any.

    Raises TimeoutError when a partition does not move on after a fault, and ScorerEnded for a
    scorer that does not start or drain.
    """
    order, began = plan(profile, seed, chosen), time.monotonic()
    plain, control, proxied = free_ports(3)
    async with Proxy("127.0.0.1", proxied) as proxy:
        with _broker(folder, plain, control, proxied, proxy.port) as broker:
            await create_topics(
                KafkaConnection(bootstrap=broker.bootstrap),
                specs(PREFIX, partitions=PARTITIONS, replication=1),
            )
            judge, reward = write_judge(folder / "judge"), write_reward(folder / "reward")
            direct, behind = (
                Scorer(name, bootstrap, PREFIX, folder, judge, reward)
                for name, bootstrap in (
                    ("direct", broker.bootstrap),
                    ("behind", f"127.0.0.1:{proxy.port}"),
                )
            )
            watch = Watch(
                broker.bootstrap, topic_name(PREFIX, VERDICTS), topic_name(PREFIX, DEADLETTERS)
            )
            aside = topic_name(PREFIX, PROBE)
            with ended_with(direct, behind):
                stage = Stage(
                    broker,
                    proxy,
                    direct,
                    behind,
                    Traffic(broker.bootstrap, topic_name(PREFIX, PRODUCTION), seed),
                    watch,
                    random.Random(seed + 1),
                    Aside(broker.bootstrap, aside, PARTITIONS, watch.verdicts),
                    folder / "kafka",
                )
                found = await _act(stage, profile, order, progress)
            progress("counting", len(order), len(order))
            counts = await asyncio.to_thread(_count, broker.bootstrap, stage.traffic)
            counts |= stage.aside.counts()
            counts["losses_miscounted"] = sum(item.taken != item.counted for item in stage.losses)
    return {
        "schema": "ares.bench-chaos/1",
        "profile": profile,
        "seed": seed,
        "seconds": time.monotonic() - began,
        "plan": order,
        "counts": counts,
        "losses": [asdict(item) for item in stage.losses],
        "violations": {
            name: counts[name] for name in (*VIOLATIONS, *VIOLATIONS_ASIDE) if counts[name]
        },
        **found,
    }


def _broker(folder: Path, plain: int, control: int, proxied: int, outside: int) -> EmbeddedBroker:
    """A broker that tells its clients behind the proxy the proxy's address."""
    data = folder / "kafka"
    data.mkdir()
    (data / "ports.json").write_text(json.dumps([plain, control]), encoding="utf-8")
    return EmbeddedBroker(
        data_dir=data,
        properties={
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{control},"
            f"PROXIED://127.0.0.1:{proxied}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},"
            f"CONTROLLER://127.0.0.1:{control},PROXIED://127.0.0.1:{outside}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,"
            "PROXIED:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
        },
    )


async def _act(
    stage: Stage, profile: Profile, order: list[str], progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    scorers = (stage.direct, stage.behind)
    quiet, still, over = asyncio.Event(), asyncio.Event(), asyncio.Event()
    recovery: dict[str, list[list[float]]] = {name: [] for name in dict.fromkeys(order)}
    progress("starting", 0, len(order))
    for scorer in scorers:
        await scorer.ready()
    idle = {scorer.name: scorer.memory("VmRSS") for scorer in scorers}
    async with asyncio.TaskGroup() as group:
        supervised = [group.create_task(scorer.supervise(over)) for scorer in scorers]
        group.create_task(stage.watch.follow(still))
        flow = group.create_task(stage.traffic.flow(RATES[profile], quiet))
        await stage.recovered(time.monotonic())
        for number, name in enumerate(order):
            progress(name, number, len(order))
            for scorer in scorers:
                await scorer.ready()
            await asyncio.sleep(stage.random.uniform(0.0, 1.0))
            recovery[name].append(await FAULTS[name](stage))
        progress("draining", len(order), len(order))
        quiet.set()
        await flow
        await stage.traffic.finished()
        await _settled(stage)
        over.set()
        await asyncio.gather(*supervised)
        for scorer in scorers:
            await scorer.drained()
        still.set()
    return {
        "given_up_by_the_producer": len(stage.traffic.failed),
        "recovery_seconds": {
            name: {
                "faults": len(rounds),
                "median_of_slowest_partition": statistics.median(map(max, rounds)),
                "slowest": max(map(max, rounds)),
                "partitions": rounds,
            }
            for name, rounds in recovery.items()
        },
        "memory_mebibytes": {
            scorer.name: {"idle": idle[scorer.name], "peak": scorer.peak_mebibytes}
            for scorer in scorers
        },
        "exits_by_themselves": {
            scorer.name: {str(code): count for code, count in scorer.exits.items()}
            for scorer in scorers
        },
    }


async def _settled(stage: Stage) -> None:
    """Return once everything came out, or nothing more comes."""
    wanted = {place for place, sent in stage.traffic.sent.items() if sent.fate != "aborted"}
    left, since = len(wanted), time.monotonic()
    while left and time.monotonic() - since < QUIET_SECONDS:
        await asyncio.sleep(0.2)
        now = len(wanted - stage.watch.arrived.keys())
        if now < left:
            left, since = now, time.monotonic()


def _count(bootstrap: str, traffic: Traffic) -> dict[str, int]:
    def read(name: str, *, values: bool = True) -> Any:
        return read_all(bootstrap, topic_name(PREFIX, name), values=values)

    production = topic_name(PREFIX, PRODUCTION)
    return check(
        traffic.sent,
        read(PRODUCTION, values=False),
        [item for item in read(VERDICTS) if verdict_place(json.loads(item.value))[0] == production],
        read(REPAIR),
        read(DEADLETTERS, values=False),
    )
