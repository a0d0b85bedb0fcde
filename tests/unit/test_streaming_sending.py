"""Encoding a transaction: keys go where every Kafka client puts them, sizes are known before."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.streaming.deadletters import batch_size, fits
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.sending import Batch, batches_of, murmur2, partition_of

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


SIZE = 1 << 17


def record(topic: str, key: bytes, value: bytes) -> OutboundRecord:
    return OutboundRecord(topic, key, value)


def values(batch: Batch) -> list[bytes | None]:
    """As a reader finds them."""
    found = MemoryRecords(batch.encoded(producer_id=7, epoch=1, sequence=0)).next_batch()
    assert found is not None
    return [item.value for item in found]


def test_records_of_a_partition_keep_their_order_over_several_batches() -> None:
    records = [record("one", b"%d" % number, b"%d" % number * 60) for number in range(5)]
    batches = batches_of(records, {"one": 1}, size=250)
    several = batches[TopicPartition("one", 0)]
    assert len(several) > 1
    assert [place for batch in several for place in batch.places] == [0, 1, 2, 3, 4]
    assert [value for batch in several for value in values(batch)] == [r.value for r in records]


@given(st.lists(st.tuples(KEYS, st.binary(max_size=50)), max_size=40), st.integers(1, 7))
def test_each_record_stands_once_in_a_batch_of_the_partition_of_its_key(
    pairs: list[tuple[bytes, bytes]], partitions: int
) -> None:
    records = [record("out", key, value) for key, value in pairs]
    batches = batches_of(records, {"out": partitions}, size=200)
    places = [place for several in batches.values() for batch in several for place in batch.places]
    assert sorted(places) == list(range(len(records)))
    for partition, several in batches.items():
        found = [place for batch in several for place in batch.places]
        assert found == sorted(found)
        keys = [pairs[place][0] for place in found]
        assert {partition_of(key, partitions) for key in keys} == {partition.partition}
        assert [value for b in several for value in values(b)] == [pairs[p][1] for p in found]


def test_a_record_that_names_its_partition_goes_there_whatever_its_key() -> None:
    records = [OutboundRecord("out", b"%d" % n, b"", partition=n % 2 or None) for n in range(9)]
    batches = batches_of(records, {"out": 3}, size=1000)
    placed = {place: tp.partition for tp, several in batches.items()
              for batch in several for place in batch.places}  # fmt: skip
    named = {place: partition_of(record.key, 3) for place, record in enumerate(records)}
    assert placed == named | dict.fromkeys(range(1, 9, 2), 1)


def test_a_record_larger_than_a_batch_is_one_of_its_own() -> None:
    records = [record("one", b"k", b"a"), record("one", b"k", b"b" * 900), record("one", b"k", b"")]
    (several,) = batches_of(records, {"one": 1}, size=200).values()
    assert [batch.places for batch in several] == [[0], [1], [2]]


def test_a_record_that_is_sent_alone_shares_no_batch_and_keeps_its_place() -> None:
    records = [record("one", b"k", b"%d" % number) for number in range(4)]
    (several,) = batches_of(records, {"one": 1}, size=SIZE, alone={1}).values()
    assert [batch.places for batch in several] == [[0], [1], [2, 3]]


def test_a_batch_says_who_sent_it_and_is_the_same_when_it_is_sent_again() -> None:
    (several,) = batches_of([record("one", b"k", b"v")], {"one": 1}, size=SIZE).values()
    first = several[0].encoded(producer_id=7, epoch=3, sequence=11)
    assert several[0].encoded(producer_id=8, epoch=0, sequence=0) == first
    found = MemoryRecords(first).next_batch()
    assert found is not None
    assert found.is_transactional
    assert found.producer_id == 7


def test_nothing_to_send_is_nothing_sent() -> None:
    assert batches_of([], {}, size=SIZE) == {}
