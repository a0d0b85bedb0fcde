"""Record batches as they stand in a topic, cut apart and read with bounded memory. Pure.

Kafka's client libraries hand out records and raise for a batch that they cannot read: one
record then ends its reader, and again after every restart. Here whatever stands at an offset
becomes an InboundRecord: the record itself, or its coordinates with size, digest and reason
(`InboundRecord.damage`), and the offsets behind it go on.

Layout: https://kafka.apache.org/documentation/#recordbatch. Format 0 and 1, which brokers
before 4.0 may still hold, are read by aiokafka once it is known how much they hold.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Final

from aiokafka.errors import KafkaError
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import calc_crc32c

from ares_stream.streaming import codecs
from ares_stream.streaming.codecs import Bytes, DamagedBytes, TooLarge
from ares_stream.streaming.intact import REFUSALS, intact, joined
from ares_stream.streaming.records import Damage, Headers, InboundRecord, ReadLimits

_PREFIX: Final = struct.Struct(">qi")
_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_EPOCH: Final = struct.Struct(">i")
_CRC_FROM: Final = 21
_MAGIC_AT: Final = 16
_LEGACY_HEADER: Final = struct.Struct(">qiIbb")
_ATTRIBUTES: Final = 5
"""Place among the header's fields."""
_CODEC: Final = 0x07
_LOG_APPEND_TIME: Final = 0x08
_CONTROL: Final = 0x20
_LONG: Final = 1 << 63
_UNSIGNED: Final = 2 * _LONG - 1
MAX_HEADERS: Final = 10_000
"""Of one record: each takes two bytes in a topic and a hundred times as much here."""
MAX_LETTERS: Final = 1_000_000
"""A batch that cannot be read and claims more records than this gets one entry, not one each."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """One batch as it was fetched. Offsets below `start` are not wanted."""

    topic: str
    partition: int
    start: int
    next_offset: int
    data: memoryview
    damage: str | None = None
    """Why its bytes are not looked at."""

    @property
    def leader_epoch(self) -> int:
        """Which leader of the partition wrote it (KIP-101); -1 where that is not known."""
        if self.damage is not None or self.data[_MAGIC_AT] < 2:
            return -1
        return int(_EPOCH.unpack_from(self.data, _PREFIX.size)[0])


class Batches:
    """Cuts what a fetch returned of one partition into batches; leaves out what transactions
    wrote that were aborted, and their markers.

    `next_fetch_offset` is the offset behind what was handed out or left out. `aborted` are
    (producer id, first offset) pairs, None under read_uncommitted.
    """

    def __init__(
        self,
        topic: str,
        partition: int,
        data: bytes,
        *,
        position: int,
        highwater: int,
        aborted: list[tuple[int, int]] | None,
    ) -> None:
        self._topic = topic
        self._partition = partition
        self._data = memoryview(data)
        self._at = 0
        self._highwater = highwater
        self._waiting = sorted(aborted or (), key=lambda pair: pair[1])
        self._committed_only = aborted is not None
        self._aborted: set[int] = set()
        self.next_fetch_offset = position

    def __iter__(self) -> Iterator[RawBatch]:
        return self

    def __next__(self) -> RawBatch:
        while self._at < len(self._data):
            size = self._whole()
            if size is None:
                # A fetch may end in the middle of a batch, behind whole ones.
                first, self._at = self._at == 0, len(self._data)
                if not first:
                    break
                return self._batch(self._data, self.next_fetch_offset + 1, "its length is wrong")
            data = self._data[self._at : self._at + size]
            self._at += size
            if data[_MAGIC_AT] < 2:
                return self._batch(data, _PREFIX.unpack_from(data)[0] + 1, None)
            if (batch := self._current(data)) is not None:
                return batch
        raise StopIteration

    def _whole(self) -> int | None:
        """Size of the batch here, None where it does not lie here as a whole."""
        left = len(self._data) - self._at
        if left < _LEGACY_HEADER.size:
            return None
        size = _PREFIX.size + int(_PREFIX.unpack_from(self._data, self._at)[1])
        least = _HEADER.size if self._data[self._at + _MAGIC_AT] >= 2 else _LEGACY_HEADER.size
        return size if least <= size <= left else None

    def _current(self, data: memoryview) -> RawBatch | None:
        base, _, _, magic, crc, attributes, last, _, _, producer, _, _, count = _HEADER.unpack_from(
            data
        )
        behind = base + last + 1
        if magic > 2:
            return self._batch(data, self._behind_damage(base, behind, count), "unknown format")
        if calc_crc32c(bytes(data[_CRC_FROM:])) != crc:
            return self._batch(
                data, self._behind_damage(base, behind, count), "its checksum is wrong"
            )
        if self._committed_only and producer >= 0:
            while self._waiting and self._waiting[0][1] <= base:
                self._aborted.add(self._waiting.pop(0)[0])
            if attributes & _CONTROL:
                # Transactions of one producer follow each other: whatever its marker says, the
                # one that was aborted is over.
                self._aborted.discard(producer)
            elif producer in self._aborted:
                self.next_fetch_offset = behind
                return None
        if attributes & _CONTROL:
            self.next_fetch_offset = behind
            return None
        return self._batch(data, behind, None)

    def _behind_damage(self, base: int, behind: int, count: int) -> int:
        """The offset behind a batch whose header may be damaged too."""
        if count == behind - base and self.next_fetch_offset < behind <= self._highwater:
            return behind
        if self._at + _PREFIX.size <= len(self._data):
            following = int(_PREFIX.unpack_from(self._data, self._at)[0])
            if self.next_fetch_offset < following <= self._highwater:
                return following
        return self.next_fetch_offset + 1

    def _batch(self, data: memoryview, behind: int, damage: str | None) -> RawBatch:
        start = self.next_fetch_offset
        self.next_fetch_offset = max(behind, start)
        return RawBatch(self._topic, self._partition, start, self.next_fetch_offset, data, damage)


class BatchReader:
    """Reads the records of one batch, one after another. Never raises for what stands there."""

    def __init__(self, batch: RawBatch, limits: ReadLimits) -> None:
        self._batch = batch
        self._limits = limits
        self._bytes: Bytes | None = None
        self._joined = self._window = 0
        self._expected = batch.start
        self._dense = True
        self._records = self._read()

    def __iter__(self) -> Iterator[InboundRecord]:
        return self._records

    @property
    def is_compressed(self) -> bool:
        """Whether the next record may take a while."""
        data = self._batch.data
        if self._batch.damage is not None:
            return False
        return bool(data[22 if data[_MAGIC_AT] >= 2 else 17] & _CODEC)

    @property
    def held(self) -> int:
        """Bytes that decompression keeps now: a piece, and what it looks back to."""
        if self._bytes is None or not self.is_compressed:
            return self._joined
        return self._bytes.held + min(self._window, self._bytes.produced)

    def _read(self) -> Iterator[InboundRecord]:
        reason = self._batch.damage
        if reason is None:
            legacy = self._batch.data[_MAGIC_AT] < 2
            try:
                yield from self._read_legacy() if legacy else self._read_current()
            except TooLarge:
                limit = self._limits.batch_bytes
                reason = f"its batch holds more than {limit} bytes when decompressed"
            except DamagedBytes as error:
                reason = str(error)
            self._bytes, self._joined = None, 0
        if reason is not None:
            yield from self._damaged_rest(reason)

    def _read_current(self) -> Iterator[InboundRecord]:
        data = self._batch.data
        header = _HEADER.unpack_from(data)
        base, _, _, _, _, attributes, last, first, newest, _, _, _, count = header
        codec, payload = attributes & _CODEC, data[_HEADER.size :]
        # Bytes that lie in memory already are not bounded once more.
        limit = self._limits.batch_bytes if codec else len(payload)
        self._window = codecs.held_bytes(codec, payload)
        self._expected = base
        self._dense = count == last + 1
        whole, pieces = joined(codecs.decompress(codec, payload, limit), bounded=bool(codec))
        if whole is not None and len(whole) <= limit and count <= last + 1:
            self._joined = len(whole) if codec else 0
            if (yield from self._read_intact(header, whole)):
                return
        stream = self._bytes = Bytes(pieces, limit)
        # What was handed out is passed over.
        wanted, self._expected = max(self._batch.start, self._expected), base
        for _ in range(count):
            if self._expected >= self._batch.next_offset:
                raise DamagedBytes("more records than offsets")
            size = stream.varint()
            if size < 0:
                raise DamagedBytes("a record has a negative size")
            if size > self._limits.record_bytes:
                record = self._pass_over(stream, size, base)
            else:
                record = self._parse(stream.take(size), base, first)
            if attributes & _LOG_APPEND_TIME:
                record = replace(record, timestamp_ms=newest)
            self._expected = record.offset + 1
            if record.offset >= wanted:
                yield record

    def _read_intact(
        self, header: tuple[int, ...], records: bytes
    ) -> Generator[InboundRecord, None, bool]:
        """What the compiled reader makes of the batch; whether that is all of it."""
        batch, count = self._batch, header[-1]
        plain = _HEADER.pack(*header[:_ATTRIBUTES], header[_ATTRIBUTES] & ~_CODEC,
                             *header[_ATTRIBUTES + 1 :])  # fmt: skip
        found = intact(plain, records, count, self._limits.record_bytes)
        if found is None:
            return False
        try:
            for item in found:
                offset, headers = self._checked(item.offset), item.headers
                if len(headers) > MAX_HEADERS:
                    return False
                self._expected = offset + 1
                if offset >= batch.start:
                    yield InboundRecord(
                        batch.topic, batch.partition, offset, item.timestamp, item.key, item.value,
                        tuple(headers),
                    )  # fmt: skip
        except (*REFUSALS, DamagedBytes):
            return False
        return True

    def _parse(self, body: bytes, base: int, first: int) -> InboundRecord:
        """A record, or its coordinates where its fields are wrong. The size in front of a record
        says where the next one starts, so that its neighbours do not suffer."""
        timestamp = -1
        offset = self._expected
        try:
            delta, at = _varint(body, 1)
            timestamp = _long(first + delta)
            delta, at = _varint(body, at)
            offset = self._checked(base + delta)
            key, at = _field(body, at)
            value, at = _field(body, at)
            headers, at = _headers(body, at)
            if at != len(body):
                raise DamagedBytes("its size is not that of its fields")
        except IndexError:
            reason = "it ends in the middle of a field"
        except DamagedBytes as error:
            reason = str(error)
        else:
            return InboundRecord(
                self._batch.topic, self._batch.partition, offset, timestamp, key, value, headers
            )
        damage = Damage(reason, len(body), codecs.sha256(body), "record")
        return self._coordinates(offset, timestamp, damage)

    def _pass_over(self, stream: Bytes, size: int, base: int) -> InboundRecord:
        """The coordinates of a record that is too large to be kept, from a digest of its bytes
        as they go by."""
        digest = hashlib.sha256()
        # Attributes, two numbers: at most 21 bytes, and the size says that there are more.
        head = stream.take(21)
        digest.update(head)
        stream.skip(size - len(head), digest)
        offset = self._expected
        try:
            _, at = _varint(head, 1)
            delta, _ = _varint(head, at)
            offset = self._checked(base + delta)
        except (DamagedBytes, IndexError):
            pass
        reason = f"it has {size} bytes; up to {self._limits.record_bytes} are read"
        return self._coordinates(offset, -1, Damage(reason, size, digest.hexdigest(), "record"))

    def _read_legacy(self) -> Iterator[InboundRecord]:
        data = self._batch.data
        _, _, _, magic, attributes = _LEGACY_HEADER.unpack_from(data)
        at = _LEGACY_HEADER.size + (8 if magic else 0)
        try:
            if attributes & _CODEC:
                _measure(attributes & _CODEC, data[at:], self._limits.batch_bytes)
            batch = LegacyRecordBatch(data, magic)
            if not batch.validate_crc():
                raise DamagedBytes("its checksum is wrong")
            for record in batch:
                if record.offset >= self._batch.start:
                    yield InboundRecord(
                        self._batch.topic,
                        self._batch.partition,
                        record.offset,
                        -1 if record.timestamp is None else record.timestamp,
                        record.key,
                        record.value,
                    )
                    self._expected = record.offset + 1
        except (KafkaError, struct.error, ValueError, IndexError, OSError, RuntimeError) as error:
            raise DamagedBytes(f"message format {magic}: {type(error).__name__}") from None

    def _checked(self, offset: int) -> int:
        # Only compaction leaves offsets out.
        latest = self._expected if self._dense else self._batch.next_offset - 1
        if not self._expected <= offset <= latest:
            raise DamagedBytes("its offset is out of order")
        return offset

    def _damaged_rest(self, reason: str) -> Iterator[InboundRecord]:
        """The offsets of the batch that were not read: one by one, or, where the batch claims
        more than can be, all as its last."""
        data, behind = self._batch.data, self._batch.next_offset
        first = max(self._expected, self._batch.start)
        damage = Damage(reason, len(data), codecs.sha256(data), "batch")
        if behind - first > MAX_LETTERS:
            first = behind - 1
        for offset in range(first, behind):
            yield self._coordinates(offset, -1, damage)

    def _coordinates(self, offset: int, timestamp: int, damage: Damage) -> InboundRecord:
        return InboundRecord(
            self._batch.topic, self._batch.partition, offset, timestamp, None, None, damage=damage
        )


def _varint(body: bytes, at: int) -> tuple[int, int]:
    byte = body[at]
    if byte < 0x80:
        return (byte >> 1) ^ -(byte & 1), at + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = body[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise DamagedBytes("a number of more than 64 bits")
    value &= _UNSIGNED
    return (value >> 1) ^ -(value & 1), at + 1


def _long(number: int) -> int:
    """As the 64 bits of a long hold it: what is too large begins at the other end, as everywhere
    where a record is read."""
    return number if -_LONG <= number < _LONG else (number + _LONG) % (2 * _LONG) - _LONG


def _field(body: bytes, at: int) -> tuple[bytes | None, int]:
    size, at = _varint(body, at)
    if size < 0:
        return None, at
    end = at + size
    if end > len(body):
        raise DamagedBytes("it ends in the middle of a field")
    return body[at:end], end


def _headers(body: bytes, at: int) -> tuple[Headers, int]:
    count, at = _varint(body, at)
    if count == 0:
        return (), at
    if not 0 < count <= MAX_HEADERS:
        raise DamagedBytes(f"it has {count} headers; up to {MAX_HEADERS} are read")
    headers: list[tuple[str, bytes | None]] = []
    end = len(body)
    for _ in range(count):
        # Sizes below 64 take one byte: those of nearly every header, and headers are half of the
        # fields that are read.
        size = body[at]
        if size < 0x80 and not size & 1:
            name: bytes | None = body[at + 1 : (at := at + 1 + (size >> 1))]
        else:
            name, at = _field(body, at)
        size = body[at]
        if size < 0x80 and not size & 1:
            value: bytes | None = body[at + 1 : (at := at + 1 + (size >> 1))]
        else:
            value, at = _field(body, at)
        if at > end:
            raise DamagedBytes("it ends in the middle of a field")
        if name is None:
            raise DamagedBytes("a header has no name")
        try:
            headers.append((name.decode(), value))
        except UnicodeDecodeError:
            raise DamagedBytes("a header's name is not UTF-8") from None
    return tuple(headers), at


def _measure(codec: int, message: memoryview, limit: int) -> None:
    """Raise TooLarge where the value of a compressed message of format 0 or 1 is."""
    (key,) = struct.unpack_from(">i", message)
    at = 4 + max(key, 0)
    (size,) = struct.unpack_from(">i", message, at)
    value = message[at + 4 : at + 4 + size]
    seen = 0
    for piece in codecs.decompress(codec, value, limit):
        seen += len(piece)
        if seen > limit:
            raise TooLarge
