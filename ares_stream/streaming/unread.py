"""What was fetched of one partition and is not read yet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from ares_stream.streaming.batches import BatchReader, RawBatch
from ares_stream.streaming.records import InboundRecord, ReadLimits


class Unread:
    """Batches of a partition in the order of their offsets, read as far as there is room."""

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._batches: deque[RawBatch] = deque()
        self._reader: BatchReader | None = None
        self.leader_epoch = -1
        """Of the batch that was taken from last; see RawBatch."""

    def __bool__(self) -> bool:
        return self._reader is not None or bool(self._batches)

    @property
    def held(self) -> int:
        """Bytes that the decompression of the batch in hand keeps."""
        return 0 if self._reader is None else self._reader.held

    def put(self, batches: Sequence[RawBatch]) -> None:
        """Add what was fetched."""
        self._batches.extend(batches)

    async def take(self, records: int, size: int) -> list[InboundRecord]:
        """The next records: up to `records`, and no further one once they have `size` bytes.
        What is compressed is read in a thread, since a bomb takes a second."""
        if self._reader is None:
            if not self._batches:
                return []
            batch = self._batches.popleft()
            self.leader_epoch = batch.leader_epoch
            self._reader = BatchReader(batch, self._limits)
        reader = self._reader
        if reader.is_compressed:
            taken, ended = await asyncio.to_thread(_take, iter(reader), records, size)
        else:
            taken, ended = _take(iter(reader), records, size)
        if ended:
            self._reader = None
        return taken


def _take(
    reader: Iterator[InboundRecord], records: int, size: int
) -> tuple[list[InboundRecord], bool]:
    taken: list[InboundRecord] = []
    while records > len(taken) and size > 0:
        record = next(reader, None)
        if record is None:
            return taken, True
        taken.append(record)
        size -= record.size
    return taken, False
