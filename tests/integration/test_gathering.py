"""Records that come one after another share fetches; the first after a pause waits for nobody."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import TopicPartition

from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.fetching import ENOUGH_BYTES, BatchConsumer, end_consumer
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.sessions import until

pytestmark = pytest.mark.kafka
USUAL = (1, 500)
GATHERED = (ENOUGH_BYTES, 20)


@asynccontextmanager
async def consumer(kafka: str, name: str, gather: float) -> AsyncIterator[list[tuple[int, int]]]:
    """How each fetch waited that the consumer sent: (least bytes, most milliseconds)."""
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, [TopicSpec(name, 1, 1, {})])
    reading = BatchConsumer(**connection.client_arguments(), auto_offset_reset="earliest")
    reading.gather(gather)
    waits: list[tuple[int, int]] = []
    send = reading._client.send

    async def noted(node: int, request: Any, **more: Any) -> Any:
        if type(request).__name__ == "FetchRequest":
            waits.append((request._min_bytes, request._max_wait_ms))
        return await send(node, request, **more)

    reading._client.send = noted
    await reading.start()
    polling = asyncio.create_task(poll(reading))
    try:
        reading.assign([TopicPartition(name, 0)])
        yield waits
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        await end_consumer(reading)


def turns(waits: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Without those that are like the one before."""
    return [wait for wait, _ in itertools.groupby(waits)]


async def poll(reading: BatchConsumer) -> None:
    while True:
        await reading.getbatches(timeout_ms=50)


async def publish(kafka: str, name: str) -> None:
    async with Publisher(KafkaConnection(bootstrap=kafka)) as publisher:
        await publisher.publish([OutboundRecord(name, b"k", b"v")])


async def test_a_fetch_waits_for_company_once_something_came_and_for_the_first_after_a_pause(
    kafka: str, prefix: str
) -> None:
    name = f"{prefix}in"
    async with consumer(kafka, name, 0.02) as waits:
        await until(lambda: waits)
        # The first record alone, then a short wait that finds nothing, then patience.
        await publish(kafka, name)
        await until(lambda: turns(waits) == [USUAL, GATHERED, USUAL])
        await publish(kafka, name)
        await until(lambda: turns(waits) == [USUAL, GATHERED, USUAL, GATHERED, USUAL])


async def test_who_does_not_gather_is_answered_at_once(kafka: str, prefix: str) -> None:
    name = f"{prefix}in"
    async with consumer(kafka, name, 0.0) as waits:
        await publish(kafka, name)
        await until(lambda: len(waits) >= 3)
        assert set(waits) == {USUAL}
