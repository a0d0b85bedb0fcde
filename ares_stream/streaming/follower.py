"""Follow whole topics from known positions, partition by partition, without a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ares_stream.errors import StreamError
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import explained
from ares_stream.streaming.fetching import BatchConsumer, end_consumer, read_batches
from ares_stream.streaming.reader import POLL_MS, READ_LIMITS
from ares_stream.streaming.records import InboundRecord
from ares_stream.streaming.unreadable import Unreadable, log_unreadable

REQUEST_SECONDS: Final = 30.0
"""A consumer that cannot start or answer in this time is cut off."""
PARTITIONS_SECONDS: Final = 30.0
"""How soon a partition that was added is read."""
AHEAD_MS: Final = 6 * 3_600_000
"""How far one partition is read ahead of another that still has records, by their time."""

Place = tuple[str, int]


class Follower:
    """Committed records of all partitions of some topics.

        async with Follower(connection, topics, positions) as follower:
            records = await follower.poll()

    One poll reads up to `most` batches; where no record can be read `unreadable` is told. A
    partition without a position is read from its beginning. What was deleted before it was
    read is no error: `gaps` tells it, and reading goes on with what is there. Raises TopicError
    for a missing topic, BrokerError where Kafka fails.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Sequence[str],
        positions: Mapping[Place, int],
        *,
        most: int = 200,
        unreadable: Unreadable = log_unreadable,
    ) -> None:
        self._connection = connection
        self._topics = tuple(topics)
        self._positions = dict(positions)
        self._most = most
        self._unreadable = unreadable
        self._gaps: list[OffsetRange] = []
        self._stamps: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}
        """Each partition's end when its reading began: until its first fetch nothing newer is
        known."""
        self._counted = -PARTITIONS_SECONDS
        self._consumer = BatchConsumer(
            **connection.client_arguments(),
            group_id=None,
            enable_auto_commit=False,
            # "earliest" would pass over deleted records and tell nobody.
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=4 << 20,
        )

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._consumer.start()
            await self._assign()
        except BaseException as error:
            await self._stop()
            if isinstance(error, (KafkaError, OSError, TimeoutError)):
                raise self._failed(error) from error
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await end_consumer(self._consumer, REQUEST_SECONDS)

    @property
    def positions(self) -> dict[Place, int]:
        """The next offset of each partition."""
        return dict(self._positions)

    def take_gaps(self) -> list[OffsetRange]:
        """Offsets found deleted since the last call."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def behind(self) -> int:
        """Records that are written and not yet read, as far as the consumer knows; 0 when all that
        was there at the start is read."""
        return sum(
            max(0, self._end(item) - self._positions[item.topic, item.partition])
            for item in self._consumer.assignment()
        )

    def _end(self, item: TopicPartition) -> int:
        return max(self._consumer.highwater(item) or 0, self._ends.get(item, 0))

    async def poll(self) -> list[InboundRecord]:
        """The next records, in order within each partition; none after a short wait."""
        if time.monotonic() - self._counted > PARTITIONS_SECONDS:
            await self._assign()
        try:
            batches = await self._consumer.getbatches(
                *self._due(), timeout_ms=POLL_MS, most=self._most
            )
            found: list[InboundRecord] = []
            for partition, fetched in batches.items():
                async for record in read_batches(fetched, READ_LIMITS, self._unreadable):
                    self._stamps[partition] = record.timestamp_ms
                    found.append(record)
            for partition in self._consumer.assignment():
                # Past the markers of transactions as well, which are no records.
                place = (partition.topic, partition.partition)
                self._positions[place] = await self._consumer.position(partition)
        except OffsetOutOfRangeError as error:
            await self._mend(error.args[0] if error.args else {})
            return []
        except (KafkaError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        return found

    def _due(self) -> Iterable[TopicPartition]:
        """All partitions but those that are far ahead of one that still has records to read."""
        assigned: frozenset[TopicPartition] = self._consumer.assignment()
        slow = [
            self._stamps[item]
            for item in assigned
            if item in self._stamps
            and self._end(item) > self._positions[item.topic, item.partition] + 1
        ]
        if not slow:
            return assigned
        bound = min(slow) + AHEAD_MS
        return [item for item in assigned if self._stamps.get(item, 0) <= bound]

    async def _assign(self) -> None:
        counts = await count_partitions(self._connection, self._topics)
        self._counted = time.monotonic()
        wanted = {TopicPartition(name, k) for name in counts for k in range(counts[name])}
        fresh = wanted - self._consumer.assignment()
        if not fresh:
            return
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                starts = await self._consumer.beginning_offsets(list(fresh))
                ends = await self._consumer.end_offsets(list(fresh))
                self._consumer.assign(sorted(wanted))
                for item in wanted:
                    place = (item.topic, item.partition)
                    if item in fresh:
                        self._place(item, starts[item], ends[item])
                    self._consumer.seek(item, self._positions[place])
        except (KafkaError, OSError, TimeoutError) as error:
            raise self._failed(error) from error

    def _place(self, item: TopicPartition, start: int, end: int) -> None:
        """Where reading of a partition goes on, and what it can no longer read."""
        place = (item.topic, item.partition)
        position = self._positions.get(place, 0)
        if position < start:
            self._gaps.append(_gap(item, position, start))
            position = start
        elif position > end:
            # The topic was made anew: what the offsets named is gone.
            self._gaps.append(_gap(item, end, position))
            position = start
        self._positions[place] = position
        self._ends[item] = end

    async def _mend(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Retention was faster than this reader, or a topic was truncated under it."""
        broken = list(offsets) or list(self._consumer.assignment())
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                starts = await self._consumer.beginning_offsets(broken)
                ends = await self._consumer.end_offsets(broken)
        except (KafkaError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        for item in broken:
            self._place(item, starts[item], ends[item])
            self._consumer.seek(item, self._positions[item.topic, item.partition])

    def _failed(self, error: BaseException) -> StreamError:
        return explained(error, self._connection.bootstrap)


def _gap(item: TopicPartition, start: int, end: int) -> OffsetRange:
    return OffsetRange(topic=item.topic, partition=item.partition, start=start, end=end)
