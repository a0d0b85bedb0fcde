"""Records of a transaction as batches, one partition's at a time. Pure.

aiokafka's `send` takes a record: two awaits, a future and a look at the metadata for each, and a
hash of its key in Python. Here each partition's records become batches first.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from aiokafka import TopicPartition
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from ares_stream.streaming.records import OutboundRecord

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_WORD: Final = 0xFFFFFFFF
_MAGIC: Final = 2
_NO_COMPRESSION: Final = 0
_UNKNOWN: Final = -1


def murmur2(key: bytes) -> int:
    """Kafka's hash of a key, 32 bits: org.apache.kafka.common.utils.Utils.murmur2, without sign."""
    size = len(key)
    value = _SEED ^ size
    for word in _words(size >> 2).unpack_from(key):
        mixed = (word * _MULTIPLIER) & _WORD
        mixed = ((mixed ^ (mixed >> 24)) * _MULTIPLIER) & _WORD
        value = ((value * _MULTIPLIER) & _WORD) ^ mixed
    if rest := size & 3:
        value = ((value ^ int.from_bytes(key[-rest:], "little")) * _MULTIPLIER) & _WORD
    value = ((value ^ (value >> 13)) * _MULTIPLIER) & _WORD
    return value ^ (value >> 15)


@lru_cache(maxsize=256)
def _words(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def partition_of(key: bytes | None, partitions: int) -> int:
    """Where every Kafka client puts a key; without one, anywhere."""
    if key is None:
        return random.randrange(partitions)  # noqa: S311 - nothing is kept secret by it
    return (murmur2(key) & 0x7FFFFFFF) % partitions


@dataclass(slots=True)
class Batch:
    """Records of one partition that travel together; `places` are theirs among all."""

    builder: DefaultRecordBatchBuilder
    shares: bool
    places: list[int] = field(default_factory=list)
    _encoded: bytes | None = None

    def append(self, record: OutboundRecord, place: int) -> bool:
        """Whether there was room; the first record is taken whatever its size."""
        found = self.builder.append(
            len(self.places),
            record.timestamp_ms,
            key=record.key,
            value=record.value,
            headers=list(record.headers),
        )
        if found is None:
            return False
        self.places.append(place)
        return True

    def encoded(self, producer_id: int, epoch: int, sequence: int) -> bytes:
        """Its bytes; who asks again is given the same ones, whatever the arguments."""
        if self._encoded is None:
            self.builder.set_producer_state(producer_id, epoch, sequence)
            self._encoded = bytes(self.builder.build())
        return self._encoded


@dataclass(frozen=True, slots=True)
class Unsent:
    """Why a record was not written, and whether other records were in its batch: then the error
    may be theirs."""

    error: BaseException
    shared: bool


def batches_of(
    records: Sequence[OutboundRecord],
    partitions: Mapping[str, int],
    *,
    size: int,
    alone: Container[int] = frozenset(),
) -> dict[TopicPartition, list[Batch]]:
    """The batches of each partition, of up to `size` bytes where several records share one, in the
    order of the records; those at the places `alone` share none. `partitions` says how many each
    topic has."""
    batches: dict[tuple[str, int], list[Batch]] = {}
    for place, record in enumerate(records):
        topic, number = record.topic, record.partition
        if number is None:
            number = partition_of(record.key, partitions[topic])
        several = batches.setdefault((topic, number), [])
        last = several[-1] if several else None
        shares = place not in alone
        if last is None or not (shares and last.shares and last.append(record, place)):
            last = Batch(_builder(size), shares)
            last.append(record, place)
            several.append(last)
    return {TopicPartition(*partition): several for partition, several in batches.items()}


def _builder(size: int) -> DefaultRecordBatchBuilder:
    return DefaultRecordBatchBuilder(
        _MAGIC,
        _NO_COMPRESSION,
        is_transactional=True,
        producer_id=_UNKNOWN,
        producer_epoch=_UNKNOWN,
        base_sequence=0,
        batch_size=size,
    )
