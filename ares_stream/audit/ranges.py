"""Where audits read: topics of a broker, or archives of them, through one face."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from ares_stream.records.base import OffsetRange
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord
from ares_stream.streaming.unreadable import Unreadable, log_unreadable


class RangeReader(Protocol):
    """Committed records of whole ranges.

    Both methods raise TopicError for a topic or partition that is not there and ReadError, which
    names topic, partition and offsets, for a range that cannot be read whole.
    """

    async def snapshot(
        self, topics: Sequence[str], *, since_ms: int | None = None
    ) -> tuple[OffsetRange, ...]:
        """The ranges that hold all that there is of the topics now, one per partition;
        `since_ms` (Unix milliseconds) leaves out what lies before the first record that is not
        older."""
        ...

    def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
        """Every record of the ranges, in order within each partition."""
        ...


class TopicReader:
    """A broker's topics. Where no record can be read `unreadable` is told; who must not pass over
    it raises there."""

    def __init__(
        self, connection: KafkaConnection, unreadable: Unreadable = log_unreadable
    ) -> None:
        self._connection = connection
        self._unreadable = unreadable

    async def snapshot(
        self, topics: Sequence[str], *, since_ms: int | None = None
    ) -> tuple[OffsetRange, ...]:
        """See RangeReader; transactions that are open now are waited for."""
        return await snapshot(self._connection, topics, since_ms=since_ms)

    def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
        """See RangeReader."""
        return read(self._connection, ranges, unreadable=self._unreadable)
