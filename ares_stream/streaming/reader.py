"""Reading topics without a group: a range read whole or not at all, and compacted topics.

`snapshot` fixes where a read ends before it begins, `read` yields exactly that. What aborted
transactions wrote is never seen. A range that cannot be read whole is a ReadError, never fewer
records.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from typing import Final, Literal, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ares_stream.errors import ReadError, TopicError
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.batches import BatchReader
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.faults import client_faults, explained
from ares_stream.streaming.fetching import (
    BatchConsumer,
    end_consumer,
    read_batches,
    record_lists,
    whole,
)
from ares_stream.streaming.records import InboundRecord, ReadLimits
from ares_stream.streaming.unreadable import Unreadable, log_unreadable

POLL_MS: Final = 200
WAIT_SECONDS: Final = 0.05
SETTLE_SECONDS: Final = 50.0
"""Open transactions end within their time-out (30 s for ours), for which brokers look every ten
seconds: past this one is stuck."""
STALL_SECONDS: Final = 30.0
"""A broker that restarts is back within this; a read without progress for longer is dead."""
FETCH_WAIT_MS: Final = 500
BRIEF_WAIT_MS: Final = 20
"""A fetch at the end of a partition, which no record follows, holds up the next range's."""
IDS_SECONDS: Final = 30.0
"""How soon a topic that was made anew under a reader is known."""
READ_LIMITS: Final = ReadLimits()
_KEPT_OF_A_KEY: Final = 16
"""Records of one key that wait undecoded: what is overwritten is rarely worth decoding."""

T = TypeVar("T")

_Isolation = Literal["read_committed", "read_uncommitted"]


@asynccontextmanager
async def _consumer(
    connection: KafkaConnection,
    isolation: _Isolation = "read_committed",
    *,
    fetch_wait_ms: int = FETCH_WAIT_MS,
) -> AsyncIterator[BatchConsumer]:
    consumer = BatchConsumer(
        **connection.client_arguments(),
        group_id=None,
        enable_auto_commit=False,
        # A position that retention has deleted is an error; "earliest" would skip the gap.
        auto_offset_reset="none",
        isolation_level=isolation,
        fetch_max_wait_ms=fetch_wait_ms,
    )
    try:
        with _faults(connection):
            async with asyncio.timeout(STALL_SECONDS):
                await consumer.start()
            yield consumer
    finally:
        await end_consumer(consumer)


@contextmanager
def _faults(connection: KafkaConnection) -> Iterator[None]:
    """What a consumer raises, as errors of ours."""
    try:
        with client_faults():
            yield
    except OffsetOutOfRangeError as error:
        raise ReadError(f"truncated while it was read: {error}") from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise explained(error, connection.bootstrap) from error


async def _partitions(connection: KafkaConnection, topics: Sequence[str]) -> list[TopicPartition]:
    counts = await count_partitions(connection, topics)
    return [TopicPartition(topic, number) for topic in counts for number in range(counts[topic])]


async def snapshot(
    connection: KafkaConnection,
    topics: Sequence[str],
    *,
    since_ms: int | None = None,
    settle_seconds: float = SETTLE_SECONDS,
) -> tuple[OffsetRange, ...]:
    """The ranges that hold all that was written to the topics until now, one per partition.

    `since_ms` (Unix milliseconds) leaves out what lies before the first record that is not
    older; records carry their producers' clocks, so younger ones may follow older ones.
    Transactions that are open now are waited for, since they may still commit below the end.

    Raises TopicError for a missing topic, ReadError when a transaction is open for longer than
    `settle_seconds`, BrokerError.
    """
    partitions = await _partitions(connection, topics)
    async with (
        _consumer(connection) as committed,
        _consumer(connection, "read_uncommitted") as everything,
    ):
        ends = await everything.end_offsets(partitions)
        await _settle(committed, ends, settle_seconds)
        starts = await committed.beginning_offsets(partitions)
        if since_ms is not None:
            # Before 1970 there is no record; -1 and -2 mean other things to a broker.
            times = dict.fromkeys(partitions, max(0, since_ms))
            found = await committed.offsets_for_times(times)
            for partition, hit in found.items():
                starts[partition] = ends[partition] if hit is None else hit.offset
    return tuple(
        OffsetRange(
            topic=partition.topic,
            partition=partition.partition,
            start=min(starts[partition], ends[partition]),
            end=ends[partition],
        )
        for partition in partitions
    )


async def _settle(
    committed: BatchConsumer, ends: Mapping[TopicPartition, int], seconds: float
) -> None:
    """Wait until no transaction is open below the ends. Under read_committed an end offset is
    the last stable offset."""
    deadline = time.monotonic() + seconds
    while True:
        stable = await committed.end_offsets(list(ends))
        behind = [partition for partition, end in ends.items() if stable[partition] < end]
        if not behind:
            return
        if time.monotonic() > deadline:
            first = behind[0]
            raise ReadError(
                f"open transaction: {first.topic} {first.partition} is stable to offset "
                f"{stable[first]} of {ends[first]} after {seconds:.0f} s; end the producer that "
                "holds it, or try again once its transaction has timed out"
            )
        await asyncio.sleep(WAIT_SECONDS)


async def read(
    connection: KafkaConnection,
    ranges: Sequence[OffsetRange],
    *,
    stall_seconds: float = STALL_SECONDS,
    unreadable: Unreadable = log_unreadable,
    limits: ReadLimits = READ_LIMITS,
) -> AsyncGenerator[InboundRecord, None]:
    """Every committed record of the ranges, in order within each partition.

    Where no record can be read, or `limits` forbid it, `unreadable` is told; who must not pass over
    it raises there.

    Raises TopicError for a missing topic or partition; ReadError for a range that starts before
    what retention kept, ends past what was written, or makes no progress for `stall_seconds`;
    BrokerError when Kafka cannot be reached.
    """
    await _check_partitions(connection, ranges)
    if any(item.start < item.end for item in ranges):
        async with (
            _consumer(connection) as consumer,
            aclosing(_read(consumer, ranges, stall_seconds, limits)) as lists,
        ):
            async for records in lists:
                for record in whole(records, unreadable):
                    yield record


class SteadyReader:
    """Reads one range after another through one consumer, for whoever reads many short ones:
    connecting takes as long as reading thousands of records. Not for two reads at a time."""

    def __init__(self, connection: KafkaConnection, topic_ids: Mapping[str, str]) -> None:
        """`topic_ids`, of `ids_of`, say which topics are meant: one that is made anew under its
        name begins its offsets again."""
        self._connection = connection
        self._ids = topic_ids
        self._checked: set[tuple[str, int]] = set()
        self._opened = AsyncExitStack()
        self._consumer: BatchConsumer | None = None

    async def read(
        self, item: OffsetRange, *, limits: ReadLimits = READ_LIMITS
    ) -> AsyncGenerator[list[InboundRecord], None]:
        """See `read`; in lists, and a record that cannot be read is there as its coordinates.
        Raises ReadError as well where the topic is another one now."""
        if self._consumer is None:
            self._consumer = await self._opened.enter_async_context(
                _consumer(self._connection, fetch_wait_ms=BRIEF_WAIT_MS)
            )
        with _faults(self._connection):
            await self._check_id(self._consumer, item)
            place = item.topic, item.partition
            if place not in self._checked:
                await _check_partitions(self._connection, [item])
                self._checked.add(place)
            if item.start >= item.end:
                return
            async with aclosing(_read(self._consumer, [item], STALL_SECONDS, limits)) as lists:
                async for records in lists:
                    yield records
            # Made anew while it was read, it may have given records of both.
            await self._check_id(self._consumer, item)

    async def _check_id(self, consumer: BatchConsumer, item: OffsetRange) -> None:
        expected = self._ids.get(item.topic)
        if expected is None:
            return
        found = (await consumer.known_topics([item.topic])).ids
        if found.get(item.topic) != expected:
            what = "made anew" if item.topic in found else "deleted"
            raise ReadError(
                f"{item.topic} {item.partition} offsets {item.start} to {item.end}: the topic was "
                f"{what} since its ranges were fixed; nothing can be said of what it held"
            )

    async def aclose(self) -> None:
        """Disconnect."""
        self._consumer = None
        await self._opened.aclose()


async def ids_of(connection: KafkaConnection, topics: Sequence[str]) -> dict[str, str]:
    """The id of each topic that is there; none from a broker that gives none (before Kafka 2.8)."""
    async with _consumer(connection) as consumer:
        return dict((await consumer.known_topics(topics)).ids)


async def _check_partitions(connection: KafkaConnection, ranges: Sequence[OffsetRange]) -> None:
    counts = await count_partitions(connection, (item.topic for item in ranges))
    for item in ranges:
        if item.partition >= counts[item.topic]:
            raise TopicError(f"{item.topic}: has no partition {item.partition}")


async def _read(
    consumer: BatchConsumer,
    ranges: Sequence[OffsetRange],
    stall_seconds: float,
    limits: ReadLimits,
) -> AsyncGenerator[list[InboundRecord], None]:
    """What stands at the ranges' offsets, in lists; see `record_lists`."""
    ends = {
        TopicPartition(item.topic, item.partition): item.end
        for item in ranges
        if item.start < item.end
    }
    await _refuse_gaps(consumer, ranges, ends)
    consumer.assign(list(ends))
    for item in ranges:
        if item.start < item.end:
            consumer.seek(TopicPartition(item.topic, item.partition), item.start)
    deadline = time.monotonic() + stall_seconds
    # The end is a position, not the last record's offset: transaction markers and
    # compaction take offsets that no record has.
    while ends:
        batches = await consumer.getbatches(*ends, timeout_ms=POLL_MS)
        for partition, fetched in batches.items():
            for batch in fetched:
                for records in record_lists(BatchReader(batch, limits)):
                    if records[-1].offset >= ends[partition]:
                        records = [item for item in records if item.offset < ends[partition]]
                    if records:
                        yield records
                await asyncio.sleep(0)  # Gives way to other tasks.
        moved = bool(batches)
        for partition in list(ends):
            if await consumer.position(partition) >= ends[partition]:
                del ends[partition]
                consumer.pause(partition)
                moved = True
        if moved:
            deadline = time.monotonic() + stall_seconds
        elif time.monotonic() > deadline:
            first, end = next(iter(ends.items()))
            raise ReadError(
                f"no progress for {stall_seconds:.0f} s: {first.topic} {first.partition} is "
                f"at offset {await consumer.position(first)} of {end}; a transaction may be "
                "open, or the broker is down"
            )


async def _refuse_gaps(
    consumer: BatchConsumer,
    ranges: Sequence[OffsetRange],
    ends: Mapping[TopicPartition, int],
) -> None:
    beginnings = await consumer.beginning_offsets(list(ends))
    stable = await consumer.end_offsets(list(ends))
    for item in ranges:
        partition = TopicPartition(item.topic, item.partition)
        if partition not in ends:
            continue
        if item.start < beginnings[partition]:
            raise ReadError(
                f"truncated: {item.topic} {item.partition} starts at offset "
                f"{beginnings[partition]}, offset {item.start} was asked for; retention has "
                "deleted the rest"
            )
        if item.end > stable[partition]:
            raise ReadError(
                f"{item.topic} {item.partition} is stable to offset {stable[partition]}, offset "
                f"{item.end} was asked for; a transaction is open, or that much was never written"
            )


async def follow(
    connection: KafkaConnection,
    ranges: Sequence[OffsetRange],
    *,
    unreadable: Unreadable = log_unreadable,
) -> AsyncGenerator[InboundRecord, None]:
    """Each record past the ends of the ranges as it is committed, without an end, of partitions
    that the topics are given meanwhile as well. A broker that goes away is waited for. Where no
    record can be read `unreadable` is told.

    Raises ReadError where a topic is made anew: what was read is of one that is gone, and who
    begins again reads all of the new one.
    """
    topics = {item.topic for item in ranges}
    async with _consumer(connection) as consumer:
        ids = (await consumer.known_topics(topics)).ids
        asked = time.monotonic()
        _assign(consumer, {TopicPartition(item.topic, item.partition): item.end for item in ranges})
        while True:
            for fetched in (await consumer.getbatches(timeout_ms=POLL_MS)).values():
                async for record in read_batches(fetched, READ_LIMITS, unreadable):
                    yield record
            if time.monotonic() - asked < IDS_SECONDS:
                continue
            asked = time.monotonic()
            with suppress(KafkaError, OSError, TimeoutError), client_faults():
                now = await consumer.known_topics(topics)
                if other := sorted(n for n in ids if now.ids.get(n, ids[n]) != ids[n]):
                    raise ReadError(f"{', '.join(other)}: made anew while it was followed")
                await _take_added(consumer, now.partitions)


def _assign(consumer: BatchConsumer, positions: Mapping[TopicPartition, int]) -> None:
    consumer.assign(list(positions))
    for partition, position in positions.items():
        consumer.seek(partition, position)


async def _take_added(consumer: BatchConsumer, partitions: Mapping[str, int]) -> None:
    """Read partitions that were added as well, from their beginning."""
    followed: frozenset[TopicPartition] = consumer.assignment()
    there = {TopicPartition(name, k) for name, count in partitions.items() for k in range(count)}
    if added := sorted(there - followed):
        positions = {item: await consumer.position(item) for item in followed}
        _assign(consumer, positions | dict.fromkeys(added, 0))
