"""What comes out of the demo's topics: as it comes, and all of it at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.demo.contract import PREFIX, View
from ares_stream.errors import ScoringError
from ares_stream.processes.service import LOOK_SECONDS, Service
from ares_stream.records.base import OffsetRange
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.topics import DEADLETTERS, PROBE, PRODUCTION, REPAIR, VERDICTS, topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord

STALL_SECONDS: Final = 60.0
"""Without a new verdict for this long, the stream hangs."""


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


async def watch(connection: KafkaConnection, expected: int, scorer: Service, view: View) -> None:
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
