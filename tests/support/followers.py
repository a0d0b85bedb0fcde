"""Who follows verdicts, by what it has written: a monitor's figures, a notary's heads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from ares_stream.records import topics
from ares_stream.records.checkpoint import Checkpoint
from ares_stream.records.rates import Rates, decode_held
from ares_stream.records.topics import topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.streaming.compacted import read_latest_as
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.verdicts import verdict

SECONDS: Final = 120.0
"""On a machine that does much else a start alone takes twenty."""


def verdicts(prefix: str, numbers: Sequence[int]) -> list[OutboundRecord]:
    made = [verdict(number, FailureClass.CLEAN) for number in numbers]
    topic = topic_name(prefix, topics.VERDICTS)
    return [OutboundRecord(topic, item.interaction_id.encode(), item.encode()) for item in made]


async def counted(connection: KafkaConnection, prefix: str, verdicts: int) -> None:
    """Return once the state of the monitors counts so many."""
    name = topic_name(prefix, topics.RATES)
    async with asyncio.timeout(SECONDS):
        while True:
            held = await read_latest_as(
                connection, name, lambda record: decode_held(record.key, record.value)
            )
            found = [item for item in held.values() if isinstance(item, Rates)]
            total = sum(item.figures.total for item in found if not item.slice.attribute)
            if total >= verdicts:
                assert total == verdicts
                return
            await asyncio.sleep(0.2)


async def signed(connection: KafkaConnection, prefix: str, leaves: int) -> None:
    """Return once signed heads cover so many records."""
    name = topic_name(prefix, topics.CHECKPOINTS)
    async with asyncio.timeout(SECONDS):
        while True:
            sizes: dict[tuple[str, int], int] = {}
            async for record in read(connection, await snapshot(connection, [name])):
                item = Checkpoint.decode(record.value or b"")
                sizes[item.topic, item.partition] = item.size
            if sum(sizes.values()) >= leaves:
                assert sum(sizes.values()) == leaves
                return
            await asyncio.sleep(0.2)
