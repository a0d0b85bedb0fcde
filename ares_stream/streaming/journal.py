"""Topics as the memory of one process, appended by a single owner; what a group has yet to read."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
)

from ares_stream.errors import BrokerError, InputError, StreamError
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import client_faults, explained, faults_as
from ares_stream.streaming.fetching import BatchConsumer, end_consumer
from ares_stream.streaming.publisher import (
    MAX_REQUEST_BYTES,
    end_producer,
    retrieve,
    transaction_outcome,
    transaction_refusal,
)
from ares_stream.streaming.records import OutboundRecord

OPEN_SECONDS: Final = 30.0
"""A coordinator that moves is back within this; a start that takes longer hangs for ever."""
TRANSACTION_SECONDS: Final = 30.0
ABORT_SECONDS: Final = 5.0
"""A broker that is there aborts at once; one that is not ends the transaction by its time-out."""
FOLLOW_SECONDS: Final = 30.0
"""A consumer that cannot start, or an offset that cannot be asked for, in this time is cut off."""


class Journal:
    """Appends to topics under a name that has one owner at a time.

        async with Journal(connection, "ares.prober.nightly") as journal:
            await journal.append(records)

    Entering ends whoever had the name before and what they left open: topics read afterwards
    hold all that was ever appended under the name. After a BrokerError the outcome of an
    append is unknown: enter again and read.
    """

    def __init__(self, connection: KafkaConnection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(
            **self._connection.client_arguments(),
            transactional_id=self._name,
            transaction_timeout_ms=int(TRANSACTION_SECONDS * 1000),
            acks="all",
            max_request_size=MAX_REQUEST_BYTES,
        )
        try:
            with faults_as(self._explained):
                async with asyncio.timeout(OPEN_SECONDS):
                    await self._producer.start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._end()

    async def append(self, records: Sequence[OutboundRecord]) -> None:
        """All records or none, in one transaction. Returns or raises within a minute.

        Raises AccessError where the broker forbids a topic, whatever else fails for it,
        StreamError when another process has taken the name, InputError for a record
        that is larger than its topic takes, BrokerError when the outcome is unknown.
        """
        producer = self._producer
        if producer is None:
            raise BrokerError(f"{self._name}: the journal is not open")
        begun: asyncio.Future[Any] | None = None
        sent: list[asyncio.Future[Any]] = []
        try:
            with client_faults():
                async with asyncio.timeout(TRANSACTION_SECONDS):
                    await producer.begin_transaction()
                    begun = transaction_outcome(producer)
                    for record in records:
                        future = await producer.send(
                            record.topic,
                            value=record.value,
                            key=record.key,
                            headers=list(record.headers),
                            timestamp_ms=record.timestamp_ms,
                            partition=record.partition,
                        )
                        future.add_done_callback(retrieve)
                        sent.append(future)
                    # A commit after a failed send would succeed without it.
                    await asyncio.gather(*sent)
                    await producer.commit_transaction()
        except (KafkaError, OSError, TimeoutError) as error:
            refusal = transaction_refusal(producer, begun, sent)
            await self._abort(producer)
            raise self._explained(refusal or error) from error

    async def _abort(self, producer: AIOKafkaProducer) -> None:
        """Give the open transaction up, so that nobody waits for it; where that fails or takes too
        long, the producer too."""
        # aiokafka flushes before it aborts: for ever, where a topic is gone.
        try:
            with client_faults():
                async with asyncio.timeout(ABORT_SECONDS):
                    await producer.abort_transaction()
        except (KafkaError, OSError, TimeoutError):
            await self._end()

    async def _end(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await end_producer(producer)

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, (ProducerFenced, InvalidProducerEpoch)):
            return StreamError(
                f"{self._name}: another process has taken over; run one at a time per name"
            )
        if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
            return InputError("a record is larger than its topic's max.message.bytes")
        return explained(error, self._connection.bootstrap, on_topic="Write", name=self._name)


async def group_lag(connection: KafkaConnection, group: str, topics: Sequence[str]) -> int:
    """Records of the topics that a consumer group has not committed yet.

    Raises TopicError for a missing topic, BrokerError.
    """
    counts = await count_partitions(connection, topics)
    partitions = [TopicPartition(name, k) for name in counts for k in range(counts[name])]
    consumer = BatchConsumer(
        **connection.client_arguments(), group_id=group, enable_auto_commit=False
    )
    try:
        with client_faults():
            async with asyncio.timeout(FOLLOW_SECONDS):
                await consumer.start()
                starts = await consumer.beginning_offsets(partitions)
                ends = await consumer.end_offsets(partitions)
                committed = {item: await consumer.committed(item) for item in partitions}
    except (KafkaError, OSError, TimeoutError) as error:
        raise explained(
            error, connection.bootstrap, on_topic="Describe", on_group="Describe", name=group
        ) from error
    finally:
        await end_consumer(consumer)
    return sum(max(0, ends[item] - max(committed[item] or 0, starts[item])) for item in partitions)
