"""The records of a transaction, encoded a batch of a partition at a time.

aiokafka's `send` takes a record: two awaits, a future and a look at the metadata for each, and a
hash of its key in Python. Here each partition's records become batches first, and a batch is one
call.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalOperation

from ares_stream.streaming.faults import first_refusal
from ares_stream.streaming.publisher import retrieve
from ares_stream.streaming.records import OutboundRecord

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_WORD: Final = 0xFFFFFFFF


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


class BatchProducer(AIOKafkaProducer):  # type: ignore[misc]
    """A transactional producer that takes batches at the cost of one look-up."""

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """See AIOKafkaProducer. `partition` is one of those that `partitions_for` gave: aiokafka
        makes a set of all of the topic's, twice, to look for it."""
        if not self._txn_manager.is_in_transaction():
            raise IllegalOperation("no transaction is open that takes batches")
        future: asyncio.Future[Any] = await self._message_accumulator.add_batch(
            batch, TopicPartition(topic, partition), self._request_timeout_ms / 1000
        )
        return future


@dataclass(slots=True)
class _Batch:
    """Records of one partition that travel together; `places` are theirs among all."""

    builder: Any
    shares: bool
    places: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Unsent:
    """Why a record was not written, and whether other records were in its batch: then the error
    may be theirs."""

    error: BaseException
    shared: bool


async def send(
    producer: AIOKafkaProducer,
    records: Sequence[OutboundRecord],
    alone: Container[int] = frozenset(),
) -> list[Unsent | None]:
    """Send all and wait for all: a commit after a failed send would succeed without it. Returns
    what became of each record, None where it was written. The order of a partition's records is
    kept; those at the places `alone` share no batch."""
    results: list[Unsent | None] = [None] * len(records)
    batches = await _batches(producer, records, alone)
    waiting: list[tuple[_Batch, asyncio.Future[Any]]] = []
    # The first batch of each partition, then the second: a partition takes one at a time.
    rounds = max((len(several) for several in batches.values()), default=0)
    failure: Exception | None = None
    try:
        for number in range(rounds):
            for (topic, partition), several in batches.items():
                if number < len(several):
                    batch = several[number]
                    future = await producer.send_batch(batch.builder, topic, partition=partition)
                    future.add_done_callback(retrieve)
                    waiting.append((batch, future))
    except Exception as error:
        failure = error
    ended = await asyncio.gather(*(future for _, future in waiting), return_exceptions=True)
    if failure is not None:
        # A batch that is refused while others are sent ends their transaction.
        raise first_refusal(e for e in ended if isinstance(e, BaseException)) or failure
    for (batch, _), result in zip(waiting, ended, strict=True):
        if isinstance(result, BaseException):
            for place in batch.places:
                results[place] = Unsent(result, len(batch.places) > 1)
    return results


async def _batches(
    producer: AIOKafkaProducer, records: Sequence[OutboundRecord], alone: Container[int]
) -> dict[tuple[str, int], list[_Batch]]:
    counts: dict[str, int] = {}
    batches: dict[tuple[str, int], list[_Batch]] = {}
    for place, record in enumerate(records):
        topic = record.topic
        count = counts.get(topic)
        if count is None:
            count = counts[topic] = len(await producer.partitions_for(topic))
        several = batches.setdefault((topic, partition_of(record.key, count)), [])
        last = several[-1] if several else None
        shares = place not in alone
        if last is None or not (shares and last.shares) or not _appended(last, record):
            last = _Batch(producer.create_batch(), shares)
            several.append(last)
            # The first record of a batch is taken whatever its size.
            _appended(last, record)
        last.places.append(place)
    return batches


def _appended(batch: _Batch, record: OutboundRecord) -> bool:
    found = batch.builder.append(
        timestamp=record.timestamp_ms,
        key=record.key,
        value=record.value,
        headers=list(record.headers),
    )
    return found is not None
