"""What Kafka's client lets through is one error for a person, whichever part of ours asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.protocol.types import Int32

from ares_stream.errors import AccessError, BrokerError
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.fetching import BatchConsumer
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.publisher import Publisher, end_producer
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.records import OutboundRecord

CONNECTION = KafkaConnection()


async def follow() -> None:
    async with Follower(CONNECTION, ["in"], {}):
        pass


async def write_a_journal() -> None:
    async with Journal(CONNECTION, "name"):
        pass


async def publish() -> None:
    async with Publisher(CONNECTION) as publisher:
        await publisher.publish([OutboundRecord("out", b"k", b"v")])


async def queue() -> None:
    await Queue(CONNECTION, "in", "g").start()


@pytest.mark.parametrize("use", [follow, write_a_journal, publish, queue])
@pytest.mark.parametrize(
    ("failure", "told"),
    [(None, BrokerError), (TopicAuthorizationFailedError("in"), AccessError)],
    ids=["a defect of the client", "a refusal"],
)
async def test_who_starts_a_client_is_told_what_failed(
    monkeypatch: pytest.MonkeyPatch, use: Any, failure: Exception | None, told: type[Exception]
) -> None:
    async def start(self: object) -> None:
        if failure is not None:
            raise failure
        Int32.encode("not a number")

    for kind in (AIOKafkaConsumer, AIOKafkaProducer, BatchConsumer):
        monkeypatch.setattr(kind, "start", start)
    with pytest.raises(told, match=r"127\.0\.0\.1:9092"):
        await use()


class Batch:
    tp = TopicPartition("out", 0)

    def failure(self, error: BaseException) -> None:
        """It will never be sent."""


async def test_a_producer_is_ended_whatever_its_sender_ends_of() -> None:
    """Where a broker goes away the client loses its own count of batches (KeyError), and raises
    that from its stop: a service ended with a defect."""
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")

    async def send() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            producer._message_accumulator.reenqueue(Batch())

    sending = asyncio.create_task(send())
    await asyncio.sleep(0)
    producer._closed = False
    producer._sender._sender_task = sending
    await end_producer(producer)
    assert isinstance(sending.exception(), KeyError)
