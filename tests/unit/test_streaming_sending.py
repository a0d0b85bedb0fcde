"""Encoding a transaction: keys go where every Kafka client puts them, sizes are known before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.errors import IllegalOperation, InvalidTxnState, TopicAuthorizationFailedError
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.streaming.deadletters import batch_size, fits
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.sending import murmur2, partition_of, send

KEYS = st.binary(max_size=70)
HEADERS = st.lists(st.tuples(st.text(max_size=9), st.none() | st.binary(max_size=40)), max_size=6)


@given(KEYS)
def test_the_hash_of_a_key_is_that_of_the_client_library(key: bytes) -> None:
    assert murmur2(key) == murmur2_of_aiokafka(key)


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"abc", 479470107),
    ],
)
def test_the_hash_of_a_key_is_that_of_kafkas_own_client(key: bytes, signed: int) -> None:
    """The values are those that Apache Kafka tests its Java client with (UtilsTest)."""
    assert murmur2(key) == signed & 0xFFFFFFFF
    assert partition_of(key, 12) == (signed & 0x7FFFFFFF) % 12


def test_a_record_without_a_key_goes_to_one_of_the_partitions() -> None:
    assert {partition_of(None, 3) for _ in range(200)} == {0, 1, 2}


@given(
    st.none() | st.binary(max_size=300),
    st.none() | st.binary(max_size=300),
    HEADERS,
    st.integers(0, 800),
)
def test_a_record_fits_where_its_batch_does(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], limit: int
) -> None:
    record = OutboundRecord("out", key, value, tuple(headers))
    assert fits(record, limit) == (batch_size(record) <= limit)
    assert fits(record, batch_size(record))
    assert not fits(record, batch_size(record) - 1)
    assert fits(record, None)


class Builder:
    """Takes two records."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def append(self, *, timestamp: object, key: object, value: bytes, headers: object) -> object:
        if len(self.values) == 2:
            return None
        self.values.append(value)
        return self


class Producer:
    """Keeps what it is given; `refused` is a value whose batch fails."""

    def __init__(self, refused: bytes = b"") -> None:
        self.sent: list[tuple[str, int, list[bytes]]] = []
        self._refused = refused

    async def partitions_for(self, topic: str) -> set[int]:
        return {0, 1} if topic == "two" else {0}

    def create_batch(self) -> Builder:
        return Builder()

    async def send_batch(
        self, builder: Builder, topic: str, *, partition: int
    ) -> asyncio.Future[Any]:
        self.sent.append((topic, partition, builder.values))
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._refused in builder.values:
            future.set_exception(ConnectionError("gone"))
        else:
            future.set_result(None)
        return future


def record(topic: str, key: bytes, value: bytes) -> OutboundRecord:
    return OutboundRecord(topic, key, value)


async def test_records_of_a_partition_keep_their_order_over_several_batches() -> None:
    producer = Producer()
    records = [record("one", b"%d" % number, b"%d" % number) for number in range(5)]
    assert await send(producer, records) == [None] * 5
    assert producer.sent == [
        ("one", 0, [b"0", b"1"]),
        ("one", 0, [b"2", b"3"]),
        ("one", 0, [b"4"]),
    ]


async def test_partitions_take_turns_so_that_none_waits_for_all_of_another() -> None:
    producer = Producer()
    keys = [
        next(key for key in (b"a", b"b", b"c", b"d") if partition_of(key, 2) == n) for n in (0, 1)
    ]
    records = [record("two", keys[number % 2], b"%d" % number) for number in range(6)]
    await send(producer, records)
    assert [partition for _, partition, _ in producer.sent] == [0, 1, 0, 1]


async def test_a_failed_batch_is_told_for_each_of_its_records_and_no_other() -> None:
    producer = Producer(refused=b"2")
    records = [record("one", b"k", b"%d" % number) for number in range(5)]
    results = await send(producer, records)
    assert [result and (str(result.error), result.shared) for result in results] == [
        None,
        None,
        ("gone", True),
        ("gone", True),
        None,
    ]


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (TopicAuthorizationFailedError({"one"}), "{'one'}"),
        (InvalidTxnState(), "not in transaction"),
    ],
)
async def test_a_batch_that_was_refused_is_told_and_not_that_the_next_cannot_be_sent(
    first: Exception, told: str
) -> None:
    class Ended(Producer):
        async def send_batch(
            self, builder: Builder, topic: str, *, partition: int
        ) -> asyncio.Future[Any]:
            if topic == "two":
                raise IllegalOperation("not in transaction")
            future = await super().send_batch(builder, topic, partition=partition)
            refused: asyncio.Future[Any] = future.get_loop().create_future()
            future.get_loop().call_soon(refused.set_exception, first)
            return refused

    with pytest.raises((TopicAuthorizationFailedError, IllegalOperation), match=told):
        await send(Ended(), [record("one", b"k", b"1"), record("two", b"k", b"2")])


async def test_a_record_that_is_sent_alone_shares_no_batch_and_keeps_its_place() -> None:
    producer = Producer(refused=b"1")
    records = [record("one", b"k", b"%d" % number) for number in range(4)]
    results = await send(producer, records, {1})
    assert [values for _, _, values in producer.sent] == [[b"0"], [b"1"], [b"2", b"3"]]
    assert [result and result.shared for result in results] == [None, False, None, None]


async def test_nothing_to_send_is_nothing_sent() -> None:
    producer = Producer()
    assert await send(producer, []) == []
    assert producer.sent == []
