"""Follow whole topics from known positions, partition by partition, without a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from aiokafka import TopicPartition
from aiokafka.errors import OffsetOutOfRangeError

from ares_stream.errors import StreamError
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import explained, faults_as
from ares_stream.streaming.fetching import BatchConsumer, end_consumer, read_batches
from ares_stream.streaming.log_identity import LastRecord, LogChange, LogIdentity
from ares_stream.streaming.reader import POLL_MS, READ_LIMITS
from ares_stream.streaming.records import InboundRecord
from ares_stream.streaming.resume import OffsetLoss, resume
from ares_stream.streaming.unreadable import Unreadable, log_unreadable

REQUEST_SECONDS: Final = 30.0
"""A consumer that cannot start or answer in this time is cut off."""
PARTITIONS_SECONDS: Final = 10.0
"""How soon a partition that was added is read, and a broker that is gone is told."""
AHEAD_MS: Final = 6 * 3_600_000
"""How far one partition is read ahead of another that still has records, by their time."""

Place = tuple[str, int]


class Follower:
    """Committed records of all partitions of some topics.

        async with Follower(connection, topics, positions) as follower:
            records = await follower.poll()

    One poll reads up to `most` batches; where no record can be read `unreadable` is told. A
    partition without a position is read from its beginning. What was deleted before it was
    read, and a log that is another one than the position is of (`logs` says which, as the `logs`
    of an earlier follower did), is no error: `take_losses` tells it, and reading goes on with what
    is there. Raises TopicError for a missing topic, BrokerError where Kafka fails.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        topics: Sequence[str],
        positions: Mapping[Place, int],
        *,
        logs: Mapping[Place, str] | None = None,
        most: int = 200,
        unreadable: Unreadable = log_unreadable,
    ) -> None:
        self._connection = connection
        self._topics = tuple(topics)
        self._positions = dict(positions)
        self._logs = {place: LogIdentity.parse(text) for place, text in (logs or {}).items()}
        self._ids: Mapping[str, str] = {}
        self._epochs: dict[TopicPartition, int] = {}
        self._most = most
        self._unreadable = unreadable
        self._losses: list[OffsetLoss] = []
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
            with faults_as(self._failed):
                async with asyncio.timeout(REQUEST_SECONDS):
                    await self._consumer.start()
            await self._assign()
        except BaseException:
            await self._stop()
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
        await end_consumer(self._consumer)

    @property
    def positions(self) -> dict[Place, int]:
        """The next offset of each partition."""
        return dict(self._positions)

    @property
    def logs(self) -> dict[Place, str]:
        """What is known of the log that each position is of; to be kept beside it."""
        return {place: str(known) for place, known in self._logs.items()}

    @property
    def topic_ids(self) -> Mapping[str, str]:
        """Of the topics, where the broker gives ids."""
        return self._ids

    def take_losses(self) -> list[OffsetLoss]:
        """Positions found since the last call that the log does not hold, or that another held."""
        losses, self._losses = self._losses, []
        return losses

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
        with faults_as(self._failed):
            try:
                return await self._next()
            except OffsetOutOfRangeError as error:
                await self._mend(error.args[0] if error.args else ())
        return []

    async def _next(self) -> list[InboundRecord]:
        batches = await self._consumer.getbatches(*self._due(), timeout_ms=POLL_MS, most=self._most)
        found: list[InboundRecord] = []
        for partition, fetched in batches.items():
            if await self._is_of_another_log(partition, fetched[0].leader_epoch):
                await self._mend([partition])
                continue
            self._epochs[partition] = fetched[-1].leader_epoch
            last: InboundRecord | None = None
            async for record in read_batches(fetched, READ_LIMITS, self._unreadable):
                self._stamps[partition] = record.timestamp_ms
                found.append(record)
                last = record
            if last is not None:
                self._remember(partition, last)
        for partition in self._consumer.assignment():
            # Past the markers of transactions as well, which are no records.
            place = (partition.topic, partition.partition)
            self._positions[place] = await self._consumer.position(partition)
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

    def _remember(self, item: TopicPartition, record: InboundRecord) -> None:
        last = LastRecord.of(record) or self._known(item).last
        self._logs[item.topic, item.partition] = LogIdentity(self._id(item), last)

    async def _is_of_another_log(self, item: TopicPartition, epoch: int) -> bool:
        """A log can be cut back and filled again under a reader only while its leader changes."""
        before = self._epochs.get(item, -1)
        if epoch == before or -1 in (epoch, before):
            return False
        return await self._change(item) is not None

    async def _change(self, item: TopicPartition) -> LogChange | None:
        async with asyncio.timeout(REQUEST_SECONDS):
            return await self._consumer.change_of(item, self._known(item), self._id(item))

    def _known(self, item: TopicPartition) -> LogIdentity:
        return self._logs.get((item.topic, item.partition), LogIdentity())

    def _id(self, item: TopicPartition) -> str:
        return self._ids.get(item.topic, "")

    async def _ask_topics(self) -> Mapping[str, int]:
        """Ask which topics are there now; how many partitions each has. Raises TopicError."""
        with faults_as(self._failed):
            async with asyncio.timeout(REQUEST_SECONDS):
                known = await self._consumer.known_topics(self._topics)
        self._ids = known.ids
        if known.partitions.keys() >= set(self._topics):
            return known.partitions
        # Which is missing or forbidden, or that this broker gives no ids.
        return await count_partitions(self._connection, self._topics)

    async def _assign(self) -> None:
        """Take partitions that were added, and those of topics that were made anew."""
        counts = await self._ask_topics()
        self._counted = time.monotonic()
        wanted = {TopicPartition(name, k) for name in counts for k in range(counts[name])}
        assigned = self._consumer.assignment()
        fresh = wanted - assigned
        fresh |= {item for item in wanted if self._known(item).change(self._id(item), None)}
        if not fresh:
            return
        if wanted != assigned:
            self._consumer.assign(sorted(wanted))
            for item in wanted & assigned:
                self._consumer.seek(item, self._positions[item.topic, item.partition])
        await self._mend(fresh)

    async def _mend(self, items: Iterable[TopicPartition]) -> None:
        """Put partitions (all, where none is named) where their reading goes on: retention may
        have been faster, the log truncated or another one."""
        broken = list(items) or list(self._consumer.assignment())
        await self._ask_topics()
        with faults_as(self._failed):
            async with asyncio.timeout(REQUEST_SECONDS):
                starts = await self._consumer.beginning_offsets(broken)
                ends = await self._consumer.end_offsets(broken)
            changes = await asyncio.gather(*(self._change(item) for item in broken))
        for item, change in zip(broken, changes, strict=True):
            self._place(item, starts[item], ends[item], change)

    def _place(self, item: TopicPartition, start: int, end: int, change: LogChange | None) -> None:
        place = (item.topic, item.partition)
        position, loss = resume(
            item.topic,
            item.partition,
            self._positions.get(place, 0),
            start,
            end,
            "earliest",
            change=change,
        )
        if loss is not None:
            self._losses.append(loss)
            self._logs.pop(place, None)
        self._positions[place] = position
        self._ends[item] = end
        self._epochs.pop(item, None)
        self._consumer.seek(item, position)

    def _failed(self, error: BaseException) -> StreamError:
        return explained(error, self._connection.bootstrap)
