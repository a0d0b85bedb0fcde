"""Connections that aiokafka lets go: none stays open, whichever client it was made for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from ares_stream.lab.experiments.chaos.proxy import Proxy
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.fetching import BatchConsumer
from tests.support.sessions import until

pytestmark = pytest.mark.kafka

METADATA = 3
CLIENTS: dict[str, Callable[[KafkaConnection], object]] = {
    "consumer": lambda at: AIOKafkaConsumer(**at.client_arguments()),
    "consumer of batches": lambda at: BatchConsumer(**at.client_arguments()),
    "producer": lambda at: AIOKafkaProducer(**at.client_arguments()),
    "admin": lambda at: AIOKafkaAdminClient(**at.client_arguments()),
}


def open_connections(proxy: Proxy) -> int:
    return len(proxy._writers) // 2


async def end(client: object) -> None:
    stop: Callable[[], Awaitable[None]] = (
        client.close if isinstance(client, AIOKafkaAdminClient) else client.stop  # type: ignore[attr-defined]
    )
    await stop()


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_client_that_is_given_up_while_it_connects_leaves_no_connection_open(
    kafka: str, kind: str
) -> None:
    host, _, port = kafka.partition(":")
    async with Proxy(host, int(port)) as proxy:
        proxy.mute(METADATA)
        client = CLIENTS[kind](KafkaConnection(bootstrap=f"127.0.0.1:{proxy.port}"))
        starting = asyncio.create_task(client.start())  # type: ignore[attr-defined]
        await until(lambda: open_connections(proxy) == 1)
        await asyncio.sleep(0.3)  # The connection is made; its first question has no answer.
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        del starting
        await until(lambda: open_connections(proxy) == 0, 5)
        await end(client)


async def test_a_connection_that_the_broker_ends_just_before_it_is_asked_for_is_closed(
    kafka: str,
) -> None:
    producer = AIOKafkaProducer(**KafkaConnection(bootstrap=kafka).client_arguments())
    await producer.start()
    try:
        (node, *_) = (broker.nodeId for broker in producer.client.cluster.brokers())
        assert await producer.client.ready(node)
        ended = producer.client._conns[node, 0]
        transport = ended._writer.transport
        ended._reader.feed_eof()
        del ended
        # Another connection takes its place before the end of the first is noticed.
        assert await producer.client.ready(node)
        assert transport.is_closing()
    finally:
        await producer.stop()
