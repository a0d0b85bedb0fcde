"""Compacted topics: the present value of each key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final, Generic, TypeVar

from ares_stream.errors import DecodeError
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import follow, read, snapshot
from ares_stream.streaming.records import InboundRecord
from ares_stream.streaming.unreadable import Unreadable, log_unreadable

_KEPT_OF_A_KEY: Final = 16
"""Records of one key that wait undecoded: what is overwritten is rarely worth decoding."""

T = TypeVar("T")


class _Present(Generic[T]):
    """The present value of each key, of the records that it is given.

    In a partition the later offset counts. A topic that was given more partitions has keys in
    two: records of a key that nobody writes to any more stay for ever in the first one, since
    compaction is a partition's own. Of those the later timestamp counts.
    """

    def __init__(self, decode: Callable[[InboundRecord], T], unreadable: Unreadable) -> None:
        self._decode = decode
        self._unreadable = unreadable
        self._records: dict[bytes, dict[int, list[InboundRecord]]] = {}

    def take(self, record: InboundRecord) -> None:
        """The next record of its partition."""
        key = record.key or b""
        by_partition = self._records.pop(key, {})
        self._records[key] = by_partition
        kept = by_partition.setdefault(record.partition, [])
        if record.value is None:
            kept.clear()
        kept.append(record)
        if len(kept) == _KEPT_OF_A_KEY:
            self._newest(kept)

    def values(self) -> dict[bytes, T]:
        """By key; a deleted one is absent."""
        found: dict[bytes, T] = {}
        for key, by_partition in self._records.items():
            newest = [item for kept in by_partition.values() if (item := self._newest(kept))]
            if not newest:
                continue
            _, _, values = max(newest, key=lambda item: item[:2])
            if values:
                found[key] = values[0]
        return found

    def _newest(self, kept: list[InboundRecord]) -> tuple[int, int, list[T]] | None:
        """When and where the last record was written that can be read, and what it is (nothing: a
        deletion); None where none can be read."""
        while kept:
            record = kept[-1]
            place = record.timestamp_ms, record.partition
            if record.value is None:
                return *place, []
            try:
                value = self._decode(record)
            except DecodeError as error:
                self._unreadable(kept.pop(), error)
                continue
            del kept[:-1]
            return *place, [value]
        return None


async def read_latest(
    connection: KafkaConnection,
    topic: str,
    *,
    ranges: Sequence[OffsetRange] | None = None,
    unreadable: Unreadable = log_unreadable,
) -> dict[bytes, InboundRecord]:
    """The present value of every key of a compacted topic; a deleted key is absent."""
    return await read_latest_as(
        connection, topic, lambda record: record, ranges=ranges, unreadable=unreadable
    )


async def read_latest_as(
    connection: KafkaConnection,
    topic: str,
    decode: Callable[[InboundRecord], T],
    *,
    ranges: Sequence[OffsetRange] | None = None,
    unreadable: Unreadable = log_unreadable,
) -> dict[bytes, T]:
    """The present value of every key of a compacted topic, as what it is; a deleted key is absent.
    `ranges` are the topic's where the caller has fixed them already.

    `unreadable` is told of a record that `decode` refuses with a DecodeError, and what stood under
    its key before counts, where the topic still holds that.
    """
    if ranges is None:
        ranges = await snapshot(connection, [topic])
    present = _Present(decode, unreadable)
    async for record in read(connection, ranges, unreadable=unreadable):
        present.take(record)
    return present.values()


async def follow_compacted(
    connection: KafkaConnection, topic: str, *, unreadable: Unreadable = log_unreadable
) -> AsyncIterator[InboundRecord]:
    """The present value of every key, then each change as it is committed, without an end.

    A deletion arrives, after the start, as a record whose value is None. A broker that goes
    away is waited for. Raises as `snapshot` and `read` do while it starts.
    """
    ranges = await snapshot(connection, [topic])
    latest = await read_latest(connection, topic, ranges=ranges, unreadable=unreadable)
    for record in latest.values():
        yield record
    # Closed with this generator: a loop alone would leave the consumer to the garbage collector.
    async with aclosing(follow(connection, ranges, unreadable=unreadable)) as changes:
        async for record in changes:
            yield record
