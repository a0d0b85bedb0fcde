"""Topic ranges as Parquet on any fsspec store, and read again as topics are.

    URL/TOPIC/PARTITION/START-END.parquet

A file holds the records of the offsets START to END, END exclusive, byte for byte: key, value and
header values may be null, and stay so. A file appears under its name when it is whole; every page
has a checksum, and the file itself says which offsets of which partition it is of: under another
name it is refused. Ranges that are archived one after the other read as one. What held nothing has
a file without records, and each file names all partitions that its topic had: so that one which was
taken away is missed, and nothing is read as empty that was never archived.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final

import fsspec

from ares_stream.audit.ranges import RangeReader
from ares_stream.errors import InputError, ReadError, TopicError
from ares_stream.records.base import OffsetRange, canonical_json
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import InboundRecord, OutboundRecord

BATCH: Final = 2_000
"""Records in memory at a time."""
_PLACE: Final = b"ares.archive"
"""Of the file's metadata: topic, partition, start and end. Files of older versions have none."""
_WHOLE: Final = b"ares.archive-of"
"""Of the file's metadata: the partitions that were archived of the topic together, and the Unix
time in milliseconds up to which the topic was read, where it is known. Likewise."""
_NAME = re.compile(r"(\d{20})-(\d{20})\.parquet")


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("archives need pyarrow: install ares-stream[archive]") from None
    return pa, pq


def _schema(pa: Any) -> Any:
    header = pa.struct([pa.field("name", pa.string(), nullable=False), ("value", pa.binary())])
    return pa.schema(
        [
            pa.field("offset", pa.int64(), nullable=False),
            pa.field("timestamp_ms", pa.int64(), nullable=False),
            ("key", pa.binary()),
            ("value", pa.binary()),
            pa.field("headers", pa.list_(header), nullable=False),
        ]
    )


async def write_archive(
    reader: RangeReader,
    ranges: Sequence[OffsetRange],
    url: str,
    progress: Callable[[int], None] = lambda records: None,
    *,
    at_ms: int | None = None,
) -> int:
    """Archive the ranges, a file each; the number of records.

    `at_ms` is a time before the ranges' ends were asked for: all that stood then is in them.
    `progress` is told of each batch. Raises ReadError and TopicError as the reader does, InputError
    for a store that cannot be written.
    """
    pa, pq = _arrow()
    store, root = _store(url)
    schema, total = _schema(pa), 0
    together: dict[str, set[int]] = {}
    for item in ranges:
        together.setdefault(item.topic, set()).add(item.partition)
    for item in ranges:
        folder = f"{root}/{item.topic}/{item.partition}"
        name = f"{folder}/{item.start:020}-{item.end:020}.parquet"
        partial = f"{name}.partial"
        try:
            store.makedirs(folder, exist_ok=True)
            with store.open(partial, "wb") as file:
                whole = canonical_json([sorted(together[item.topic]), at_ms])
                placed = schema.with_metadata({_PLACE: _place(item), _WHOLE: whole})
                writer = pq.ParquetWriter(
                    file, placed, compression="zstd", write_page_checksum=True
                )  # fmt: skip
                with writer:
                    batch: list[InboundRecord] = []
                    async for record in reader.read([item]):
                        batch.append(record)
                        if len(batch) == BATCH:
                            writer.write_table(_table(pa, schema, batch))
                            progress(len(batch))
                            total += len(batch)
                            batch = []
                    writer.write_table(_table(pa, schema, batch))
                    progress(len(batch))
                    total += len(batch)
            store.mv(partial, name)
        except OSError as error:
            raise InputError(f"{url}: {error.strerror or type(error).__name__}") from error
    return total


def _place(item: OffsetRange) -> bytes:
    return canonical_json([item.topic, item.partition, item.start, item.end])


def _table(pa: Any, schema: Any, records: Sequence[InboundRecord]) -> Any:
    rows = [
        {
            "offset": item.offset,
            "timestamp_ms": item.timestamp_ms,
            "key": item.key,
            "value": item.value,
            "headers": [{"name": name, "value": value} for name, value in item.headers],
        }
        for item in records
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def _store(url: str) -> tuple[Any, str]:
    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {error}") from None
    return store, root.rstrip("/")


class ArchiveReader:
    """An archive; see RangeReader. An offset that lies in two files is read from the first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store, self._root = _store(url)

    async def snapshot(
        self, topics: Sequence[str], *, since_ms: int | None = None
    ) -> tuple[OffsetRange, ...]:
        """See RangeReader. Raises ReadError for a hole between two files."""
        found = []
        for topic in topics:
            self._partitions_are_there(topic)
            for partition in self._partitions(topic):
                files = self._files(topic, partition)
                start, end = files[0][0], files[0][1]
                for first, last, _ in files[1:]:
                    if first > end:
                        raise self._hole(topic, partition, end, first)
                    end = max(end, last)
                covered = OffsetRange(topic=topic, partition=partition, start=start, end=end)
                if since_ms is not None:
                    covered = covered.model_copy(update={"start": self._since(covered, since_ms)})
                found.append(covered)
        return tuple(found)

    async def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
        """See RangeReader."""
        for item in ranges:
            for record in self.records(item):
                yield record

    def taken_ms(self, topic: str) -> int | None:
        """Until when (Unix milliseconds) all partitions of the topic were archived; None where no
        file says."""
        times = [
            self._whole(self._files(topic, partition)[-1][2])[1]
            for partition in self._partitions(topic)
        ]
        known = [item for item in times if item is not None]
        return min(known) if len(known) == len(times) else None

    def _partitions_are_there(self, topic: str) -> None:
        """Raises ReadError for a partition that was archived with another one and is gone."""
        there = self._partitions(topic)
        for partition in there:
            for _, _, path in self._files(topic, partition):
                if gone := sorted(set(self._whole(path)[0]) - set(there)):
                    raise ReadError(
                        f"{topic} {gone[0]}: is not in the archive {self._url}, and was archived "
                        f"together with partition {partition}"
                    )

    def _whole(self, path: str) -> tuple[list[int], int | None]:
        """The partitions that a file was written together with, and until when."""
        _, pq = _arrow()
        try:
            with self._store.open(path, "rb") as raw:
                metadata = pq.ParquetFile(raw).schema_arrow.metadata or {}
            partitions, at_ms = json.loads(metadata.get(_WHOLE, b"[[], null]"))
            return [int(item) for item in partitions], None if at_ms is None else int(at_ms)
        except (OSError, ValueError, TypeError) as error:
            raise ReadError(f"{path} is damaged or no archive ({type(error).__name__})") from None

    def _since(self, covered: OffsetRange, since_ms: int) -> int:
        young = (item.offset for item in self.records(covered) if item.timestamp_ms >= since_ms)
        return next(young, covered.end)

    def records(self, wanted: OffsetRange) -> Iterator[InboundRecord]:
        """One range's, in order. Raises ReadError as `read` does."""
        _, pq = _arrow()
        at = wanted.start
        if at >= wanted.end:
            return
        for first, last, path in self._files(wanted.topic, wanted.partition):
            if last <= at:
                continue
            if first > at:
                break
            try:
                with self._store.open(path, "rb") as raw:
                    file = pq.ParquetFile(raw, page_checksum_verification=True)
                    named = wanted.model_copy(update={"start": first, "end": last})
                    _check_place(file, named)
                    before = first - 1
                    for batch in file.iter_batches(BATCH):
                        for row in batch.to_pylist():
                            offset = row["offset"]
                            if not before < offset < last:
                                raise ValueError
                            before = offset
                            if at <= offset < wanted.end:
                                yield _record(wanted, row)
            except (OSError, ValueError, KeyError, TypeError) as error:
                # pyarrow's own errors are ValueErrors and OSErrors.
                raise ReadError(
                    f"{wanted.topic} {wanted.partition} offsets {first} to {last}: {path} is "
                    f"damaged or no archive ({type(error).__name__})"
                ) from None
            at = last
            if at >= wanted.end:
                return
        raise self._hole(wanted.topic, wanted.partition, at, wanted.end)

    def _partitions(self, topic: str) -> list[int]:
        folder = f"{self._root}/{topic}"
        if not self._store.isdir(folder):
            raise TopicError(f"{self._url}: holds no topic {topic}")
        names = (path.rstrip("/").rpartition("/")[2] for path in self._store.ls(folder, False))
        return sorted(int(name) for name in names if name.isdecimal())

    def _files(self, topic: str, partition: int) -> list[tuple[int, int, str]]:
        folder = f"{self._root}/{topic}/{partition}"
        found = []
        if self._store.isdir(folder):
            for path in self._store.ls(folder, False):
                if match := _NAME.fullmatch(path.rpartition("/")[2]):
                    found.append((int(match[1]), int(match[2]), path))
        if not found:
            raise TopicError(f"{self._url}: holds nothing of {topic} {partition}")
        return sorted(found)

    def _hole(self, topic: str, partition: int, start: int, end: int) -> ReadError:
        return ReadError(
            f"{topic} {partition}: offsets {start} to {end} are not in the archive {self._url}"
        )


def _check_place(file: Any, named: OffsetRange) -> None:
    """Raises ReadError for a file of other offsets than its name says."""
    place = (file.schema_arrow.metadata or {}).get(_PLACE)
    if place is not None and place != _place(named):
        raise ReadError(
            f"{named.topic} {named.partition} offsets {named.start} to {named.end}: the archive's "
            "file of this name is of other offsets or of another topic; it was exchanged or renamed"
        )


def _record(wanted: OffsetRange, row: dict[str, Any]) -> InboundRecord:
    return InboundRecord(
        topic=wanted.topic,
        partition=wanted.partition,
        offset=row["offset"],
        timestamp_ms=row["timestamp_ms"],
        key=row["key"],
        value=row["value"],
        headers=tuple((item["name"], item["value"]) for item in row["headers"]),
    )


async def restore(
    reader: RangeReader,
    ranges: Sequence[OffsetRange],
    connection: KafkaConnection,
    rename: Callable[[str], str],
    progress: Callable[[int], None] = lambda records: None,
) -> int:
    """Publish archived records to topics that `rename` names; the number of records.

    Keys, values, headers and times are as they were; offsets are the topic's own, and the
    partition is that of the key. Raises as the reader and Publisher do.
    """
    total = 0
    async with Publisher(connection) as publisher:
        for item in ranges:
            batch: list[OutboundRecord] = []
            async for record in reader.read([item]):
                batch.append(
                    OutboundRecord(
                        rename(record.topic), record.key, record.value, record.headers,
                        record.timestamp_ms if record.timestamp_ms >= 0 else None,
                    )
                )  # fmt: skip
                if len(batch) == BATCH:
                    await publisher.publish(batch)
                    progress(len(batch))
                    total += len(batch)
                    batch = []
            if batch:
                await publisher.publish(batch)
                progress(len(batch))
                total += len(batch)
    return total
