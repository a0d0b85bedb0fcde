"""Conversations through a broker and a scorer that are started for them: what goes in, what comes
out as it comes, and all of it at the end. For the demo and for experiments.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import ScoringError
from ares_stream.processes.ports import free_port
from ares_stream.processes.service import (
    LOOK_SECONDS,
    Service,
    service_process,
    until_ready,
)
from ares_stream.records.base import OffsetRange
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.topics import (
    ANCHOR,
    DEADLETTERS,
    PROBE,
    PRODUCTION,
    REPAIR,
    VERDICTS,
    topic_name,
)
from ares_stream.records.verdict import Verdict
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord

PREFIX: Final = "demo."
"""Of every topic of such a broker."""
CHUNK: Final = 50
"""Records sent together."""
PAUSE_SECONDS: Final = 0.15
"""Between chunks, so that a person can watch; the scorer is faster."""
STALL_SECONDS: Final = 60.0
"""Without a new verdict for this long, the stream hangs."""


class Watcher(Protocol):
    """Who is told what happens. Calls are quick and never raise."""

    def sent(self, conversations: int) -> None:
        """So many more were sent."""

    def verdict(self, verdict: Verdict) -> None:
        """A verdict was read back from Kafka."""

    def failure(self, failure: CoupledFailure) -> None:
        """A coupled failure was read back from the repair topic."""

    def refused(self) -> None:
        """A dead letter was read back."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What goes in: values with keys, and the bundles and mapping to score them with."""

    records: tuple[tuple[bytes, bytes], ...]
    harm: tuple[Path, ...]
    reward: Path
    mapping: Mapping | None
    victim: Any = None
    """The testbed's Victim, whose policy can be asked; None for conversations of a file."""
    anchors: tuple[Interaction, ...] = ()
    """Conversations of known truth, for the monitor; none for conversations of a file."""


@asynccontextmanager
async def scorer_process(
    connection: KafkaConnection, stream: Stream, policy: DetectionPolicy, scratch: Path
) -> AsyncIterator[Service]:
    """The `ares scorer` of this environment, ready; killed if the block fails."""
    port = free_port()
    topic: dict[str, Any] = {"topic": topic_name(PREFIX, PRODUCTION), "lane": "production"}
    probes = {"topic": topic_name(PREFIX, PROBE), "lane": "probe"}
    inputs = [topic, probes]
    if stream.anchors:
        inputs.append({"topic": topic_name(PREFIX, ANCHOR), "lane": "anchor"})
    if stream.mapping is not None:
        topic["map"] = stream.mapping.model_dump(mode="json", exclude_defaults=True)
    settings = {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": port},
        "scorer": {
            "inputs": inputs,
            "harm": [str(path.absolute()) for path in stream.harm],
            "reward": str(stream.reward.absolute()),
            "detection": policy.model_dump(mode="json"),
        },
    }
    async with service_process("scorer", settings, scratch) as scorer:
        await until_ready(scorer, port)
        yield scorer


async def send(connection: KafkaConnection, stream: Stream, view: Watcher) -> None:
    """Publish the records to the production topic, slowly enough to be watched; before them each
    anchor once, since the monitor's own steady rate would take minutes."""
    topic = topic_name(PREFIX, PRODUCTION)
    async with Publisher(connection) as publisher:
        await publisher.publish(
            [
                OutboundRecord(topic_name(PREFIX, ANCHOR), item.id.encode(), item.encode())
                for item in stream.anchors
            ]
        )
        for start in range(0, len(stream.records), CHUNK):
            chunk = stream.records[start : start + CHUNK]
            now = int(time.time() * 1000)
            await publisher.publish(
                [OutboundRecord(topic, key, value, timestamp_ms=now) for key, value in chunk]
            )
            view.sent(len(chunk))
            await asyncio.sleep(PAUSE_SECONDS)


class _Tail:
    """What was committed to some topics since the last look."""

    def __init__(self, connection: KafkaConnection, topics: Sequence[str]) -> None:
        self._connection = connection
        self._topics = topics
        self._seen: dict[tuple[str, int], int] = {}

    async def look(self) -> list[InboundRecord]:
        """New records, in order within each partition."""
        fresh: list[OffsetRange] = []
        for item in await snapshot(self._connection, self._topics):
            place = (item.topic, item.partition)
            start = self._seen.get(place, item.start)
            self._seen[place] = item.end
            fresh.append(item.model_copy(update={"start": start}))
        return [record async for record in read(self._connection, fresh)]


async def watch(connection: KafkaConnection, expected: int, scorer: Service, view: Watcher) -> None:
    """Show what comes out until everything that was sent is settled."""
    verdicts, repair, letters = (
        topic_name(PREFIX, name) for name in (VERDICTS, REPAIR, DEADLETTERS)
    )
    tail = _Tail(connection, [verdicts, repair, letters])
    settled, deadline = 0, time.monotonic() + STALL_SECONDS
    while settled < expected:
        scorer.check()
        records = await tail.look()
        for record in records:
            if record.topic == repair:
                view.failure(CoupledFailure.decode(record.value or b""))
                continue
            if record.topic == verdicts:
                verdict = Verdict.decode(record.value or b"")
                if verdict.lane == "anchor":
                    continue  # The monitor's own.
                view.verdict(verdict)
            else:
                view.refused()
            settled += 1
        if records:
            deadline = time.monotonic() + STALL_SECONDS
        elif time.monotonic() > deadline:
            raise ScoringError(
                f"{settled:,} of {expected:,} conversations are settled, and nothing came for "
                f"{STALL_SECONDS:.0f} s"
            )
        await asyncio.sleep(LOOK_SECONDS)
    for record in await tail.look():
        if record.topic == repair:
            view.failure(CoupledFailure.decode(record.value or b""))


@dataclass(frozen=True, slots=True)
class Held:
    """What the topics hold at the end."""

    inputs: list[InboundRecord]
    verdicts: list[Verdict]
    letters: list[InboundRecord]
    repair: list[CoupledFailure]


async def held_by_topics(connection: KafkaConnection) -> Held:
    """Read all of it, whole or not at all, with consumers of no group."""

    async def content(name: str) -> list[InboundRecord]:
        ranges = await snapshot(connection, [topic_name(PREFIX, name)])
        return [record async for record in read(connection, ranges)]

    return Held(
        inputs=[*await content(PRODUCTION), *await content(PROBE)],
        # Anchors are the monitor's, and are shown by it.
        verdicts=[
            verdict
            for record in await content(VERDICTS)
            if (verdict := Verdict.decode(record.value or b"")).lane != "anchor"
        ],
        letters=await content(DEADLETTERS),
        repair=[CoupledFailure.decode(record.value or b"") for record in await content(REPAIR)],
    )
