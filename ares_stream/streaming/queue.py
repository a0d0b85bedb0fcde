"""A topic as a queue of work: who owns which partition, what waits there, what is settled.

A member of a group that fetches nothing. Work is read as ranges of offsets when it is due
(ares_stream.streaming.reader), and committed when it is settled, hours later if need be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from ares_stream.errors import StreamError
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import client_faults, explained, faults_as, missing_topics
from ares_stream.streaming.fetching import BatchConsumer, end_consumer
from ares_stream.streaming.topic_ids import known_topics

SESSION_TIMEOUT_MS: Final = 30_000
NEVER_MS: Final = 2**31 - 1
"""The consumer fetches nothing, so how long it fetched nothing says nothing of its health."""
METADATA_MS: Final = 30_000
"""A new partition is waited on within this."""
KAFKA_SECONDS: Final = 15.0
"""For one request: aiokafka repeats some for ever while a group rebalances."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A partition that this member owns: offsets of the group's commit (0 before the first), of
    the oldest record kept, and up to which transactions are settled."""

    partition: int
    committed: int
    first: int
    stable: int


class Queue(ConsumerRebalanceListener):  # type: ignore[misc]
    """This member's share of a topic. Raises BrokerError where Kafka fails or is too
    slow, AccessError where it forbids it."""

    def __init__(self, connection: KafkaConnection, topic: str, group: str) -> None:
        self._connection = connection
        self._where = connection.bootstrap
        self._topic = topic
        self._group = group
        self._consumer: Any = None
        """Of one start; after a failed one there is another."""
        self._joined = False

    @property
    def is_joined(self) -> bool:
        """Whether the group has told this member what it owns: who owns nothing then stands by."""
        return self._joined

    async def start(self) -> None:
        """Join the group. After an error it may be called again."""
        self._joined = False
        self._consumer = BatchConsumer(
            **self._connection.client_arguments(),
            group_id=self._group,
            enable_auto_commit=False,
            isolation_level="read_committed",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            max_poll_interval_ms=NEVER_MS,
            metadata_max_age_ms=METADATA_MS,
        )
        try:
            with faults_as(self._failed):
                async with asyncio.timeout(KAFKA_SECONDS):
                    await self._consumer.start()
        except BaseException:
            await self.stop()
            raise
        self._consumer.subscribe([self._topic], listener=self)

    async def stop(self) -> None:
        """Leave the group; a broker that is gone is not waited for."""
        if self._consumer is None:
            return
        await end_consumer(self._consumer)

    async def waiting(self) -> list[Waiting]:
        """The partitions owned now, in order; none while the group is being balanced. Raises
        TopicError where there is none and the topic is gone."""
        partitions = sorted(self._consumer.assignment())
        with faults_as(self._failed):
            if not partitions:
                # A member that may not join waits for ever, and only a fetch would say so.
                self._consumer._coordinator.check_errors()
                # Nobody owns a partition of a topic that is gone.
                if (await known_topics(self._consumer._client, [self._topic])).absent:
                    raise missing_topics(self._where, [self._topic])
                return []
            async with asyncio.timeout(KAFKA_SECONDS):
                stable = await self._consumer.end_offsets(partitions)
                first = await self._consumer.beginning_offsets(partitions)
                committed = [await self._consumer.committed(item) or 0 for item in partitions]
        return [
            Waiting(item.partition, done, first[item], stable[item])
            for item, done in zip(partitions, committed, strict=True)
        ]

    async def leads(self) -> bool:
        """Whether this member owns the first partition: of several processes of which one may work
        that one does, however many partitions the topic has been given. Raises as `waiting`."""
        return any(item.partition == 0 for item in await self.waiting())

    async def commit(self, ranges: Sequence[OffsetRange]) -> None:
        """Settle what lies before the ends of the ranges, of partitions that are still ours."""
        ours = self._consumer.assignment()
        ends = {TopicPartition(item.topic, item.partition): item.end for item in ranges}
        offsets = {partition: end for partition, end in ends.items() if partition in ours}
        if not offsets:
            return
        try:
            with client_faults():
                async with asyncio.timeout(KAFKA_SECONDS):
                    await self._consumer.commit(offsets)
        except (KafkaError, IllegalStateError, OSError, TimeoutError) as error:
            raise self._failed(error) from error

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """Nothing is fetched."""
        self._joined = True
        self._consumer.pause(*assigned)

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Work that was begun goes on: whoever does it must tell the next owner by other means."""
        self._joined = False

    def _failed(self, error: BaseException) -> StreamError:
        return explained(error, self._where, name=self._group)
