"""Publishing without a transaction: for tools that send, such as the demo and the prober."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerClosed,
    RecordListTooLargeError,
    UnknownTopicOrPartitionError,
)

from ares_stream.errors import BrokerError, InputError, TopicError
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import (
    TIMES,
    client_faults,
    explained,
    faults_as,
    first_refusal,
    without_leader,
)
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.topic_ids import NO_LEADER

PUBLISH_SECONDS: Final = 30.0
"""A broker that restarts is back within this."""
END_SECONDS: Final = 3.0
"""An idle producer ends at once; one that still flushes to a dead broker never would."""
BATCH_BYTES: Final = 64 << 10
MAX_REQUEST_BYTES: Final = 16 << 20
"""Above every topic's max.message.bytes: the broker says what is too large, per topic."""


class Publisher:
    """Sends records with acks from all replicas, idempotently, in order per key.

        async with Publisher(connection) as publisher:
            await publisher.publish(records)

    Each call is whole or an error. After an error some of its records may be there: who sends
    them again gives them ids that readers can tell apart.
    """

    def __init__(
        self, connection: KafkaConnection, *, publish_seconds: float = PUBLISH_SECONDS
    ) -> None:
        self._connection = connection
        self._seconds = publish_seconds
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def publish(self, records: Sequence[OutboundRecord]) -> None:
        """Return once every record is acknowledged.

        Raises TopicError for a missing topic, InputError for a record that its topic does not
        take, BrokerError when Kafka fails or does not answer within the publisher's deadline.
        """
        try:
            with faults_as(lambda error: self._explained(error, records)):
                async with asyncio.timeout(self._seconds):
                    await self._send(records)
        except BaseException:
            # A failed batch has used its sequence numbers: this producer can send no more.
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the producer; a later `publish` starts another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await end_producer(producer)

    async def _send(self, records: Sequence[OutboundRecord]) -> None:
        if self._producer is None:
            self._producer = AIOKafkaProducer(
                **self._connection.client_arguments(),
                enable_idempotence=True,
                acks="all",
                max_batch_size=BATCH_BYTES,
                max_request_size=MAX_REQUEST_BYTES,
            )
            await self._producer.start()
        sent: list[asyncio.Future[Any]] = []
        errors: list[BaseException] = []
        try:
            for record in records:
                future = await self._producer.send(
                    record.topic,
                    value=record.value,
                    key=record.key,
                    headers=list(record.headers),
                    timestamp_ms=record.timestamp_ms,
                    partition=record.partition,
                )
                future.add_done_callback(retrieve)
                sent.append(future)
        except Exception as error:
            errors.append(error)
        results = await asyncio.gather(*sent, return_exceptions=True)
        errors += [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise first_refusal(errors) or errors[0]

    def _explained(self, error: Exception, records: Sequence[OutboundRecord]) -> Exception:
        where = self._connection.bootstrap
        if isinstance(error, UnknownTopicOrPartitionError):
            return TopicError(f"a topic is missing on {where}; create it with `ares topics create`")
        if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
            return InputError("a record is larger than its topic's max.message.bytes")
        if isinstance(error, InvalidTimestampError):
            return InputError(f"Kafka at {where} {TIMES}")
        if isinstance(error, TimeoutError):
            said = f"Kafka at {where} did not take the records within {self._seconds:.0f} s"
            leaderless = self._leaderless({record.topic for record in records})
            return BrokerError(f"{said}: {without_leader(leaderless)}" if leaderless else said)
        # A user that may write nothing at all is refused before a topic is named.
        named = ", ".join(sorted({record.topic for record in records}))
        return explained(error, where, on_topic="Write", name=named)

    def _leaderless(self, topics: Iterable[str]) -> list[TopicPartition]:
        if self._producer is None:
            return []
        cluster = self._producer.client.cluster
        return sorted(
            TopicPartition(topic, number)
            for topic in topics
            for number in (cluster.partitions_for_topic(topic) or ())
            if cluster.leader_for_partition(TopicPartition(topic, number)) == NO_LEADER
        )


def retrieve(future: asyncio.Future[Any]) -> None:
    """Look at a send's exception even when nobody waits for it any more."""
    if not future.cancelled():
        future.exception()


def transaction_outcome(producer: AIOKafkaProducer) -> asyncio.Future[Any]:
    """How the transaction that has just begun ends. To be kept from the beginning: the client puts
    another in its place when it aborts, and when it fails once more."""
    outcome: asyncio.Future[Any] = producer._txn_manager.wait_for_transaction_end()
    outcome.add_done_callback(retrieve)
    return outcome


def transaction_refusal(
    producer: AIOKafkaProducer,
    begun: asyncio.Future[Any] | None,
    sent: Iterable[asyncio.Future[Any]] = (),
) -> Exception | None:
    """Why the broker forbade the producer's last transaction, if it did: what the client raises
    then is "not in transaction", or what the broker says of the topics that it left out. `begun`
    is the outcome kept from the beginning, `sent` are the sends of the transaction."""
    last: asyncio.Future[Any] | None = producer._txn_manager.wait_for_transaction_end()
    return first_refusal(
        future.exception()
        for future in (begun, last, *sent)
        if future is not None and future.done() and not future.cancelled()
    )


async def end_producer(producer: AIOKafkaProducer) -> None:
    """End a producer in whatever state it is, within a few seconds.

    aiokafka's stop() flushes first and, against a broker that is gone, flushes for ever; when
    cancelled there, it leaves its sender task and sockets behind.
    """
    try:
        await _ended(producer)
    except asyncio.CancelledError:
        # Whoever cancels wants no goodbye, and no open socket either.
        sender, sync = producer._sender.sender_task, producer.client._sync_task
        for task in (sender, sync):
            if task is not None:
                task.cancel()
        for connection in list(producer.client._conns.values()):
            connection.close()
        raise


async def _ended(producer: AIOKafkaProducer) -> None:
    # Its sender may have ended of an error of its own bookkeeping, which stopping it raises.
    with contextlib.suppress(KafkaError, OSError, TimeoutError), client_faults():
        async with asyncio.timeout(END_SECONDS):
            await producer.stop()
            return
    producer._message_accumulator.fail_all(ProducerClosed())
    for close in (producer._sender.close, producer.client.close):
        with contextlib.suppress(KafkaError, OSError, TimeoutError), client_faults():
            async with asyncio.timeout(END_SECONDS):
                await close()
