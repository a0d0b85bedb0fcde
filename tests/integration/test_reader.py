"""Bounded reads, compacted topics and the publisher against a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from ares_stream.errors import BrokerError, DecodeError, InputError, ReadError, TopicError
from ares_stream.records.base import OffsetRange
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import follow_compacted, read_latest, read_latest_as
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord

pytestmark = pytest.mark.kafka


@pytest.fixture
def connection(kafka: str) -> KafkaConnection:
    return KafkaConnection(bootstrap=kafka)


async def topic(
    connection: KafkaConnection, prefix: str, partitions: int = 1, **config: str
) -> str:
    name = f"{prefix}topic"
    named = {key.replace("_", "."): value for key, value in config.items()}
    await create_topics(connection, [TopicSpec(name, partitions, 1, named)])
    return name


def numbered(
    name: str, count: int, *, start: int = 0, timestamp_ms: int | None = None
) -> list[OutboundRecord]:
    return [
        OutboundRecord(
            name,
            b"k%d" % (number % 5),
            b"%d" % number,
            (("n", b"%d" % number),),
            None if timestamp_ms is None else timestamp_ms + number,
        )
        for number in range(start, start + count)
    ]


async def publish(connection: KafkaConnection, records: list[OutboundRecord]) -> None:
    async with Publisher(connection) as publisher:
        await publisher.publish(records)


async def everything(
    connection: KafkaConnection, name: str, *, since_ms: int | None = None
) -> list[InboundRecord]:
    ranges = await snapshot(connection, [name], since_ms=since_ms)
    return [record async for record in read(connection, ranges)]


@asynccontextmanager
async def transactional(connection: KafkaConnection, name: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(
        **connection.client_arguments(), transactional_id=f"{name}.writer"
    ) as producer:
        yield producer


async def test_a_read_gives_back_what_was_published_in_order_per_key(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix, partitions=3)
    sent = numbered(name, 500)
    await publish(connection, sent)

    got = await everything(connection, name)

    assert sorted(int(record.value or b"") for record in got) == list(range(500))
    for key in {record.key for record in sent}:
        values = [record.value for record in sent if record.key == key]
        assert [record.value for record in got if record.key == key] == values
    assert all(record.headers == (("n", record.value),) for record in got)


async def test_an_empty_topic_reads_as_nothing(connection: KafkaConnection, prefix: str) -> None:
    assert await everything(connection, await topic(connection, prefix)) == []


async def test_a_range_stops_where_it_says(connection: KafkaConnection, prefix: str) -> None:
    name = await topic(connection, prefix)
    await publish(connection, numbered(name, 20))

    part = OffsetRange(topic=name, partition=0, start=5, end=9)
    got = [record.offset async for record in read(connection, [part])]

    assert got == [5, 6, 7, 8]


async def test_a_read_from_a_time_leaves_out_what_is_older(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix)
    await publish(connection, numbered(name, 10, timestamp_ms=1_700_000_000_000))

    late = await everything(connection, name, since_ms=1_700_000_000_007)
    never = await everything(connection, name, since_ms=1_800_000_000_000)
    # Before 1970 all of them are younger.
    for early in (-1, -2, -(10**14)):
        whole = await everything(connection, name, since_ms=early)
        assert len(whole) == len(await everything(connection, name))

    assert [record.value for record in late] == [b"7", b"8", b"9"]
    assert never == []


async def test_an_aborted_transaction_is_never_seen_even_at_the_end(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix)
    async with transactional(connection, name) as producer:
        async with producer.transaction():
            await producer.send(name, b"kept")
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"aborted")
        await producer.abort_transaction()

    assert [record.value for record in await everything(connection, name)] == [b"kept"]


async def test_a_snapshot_waits_for_a_transaction_that_is_open_and_reads_it_whole(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix)
    async with transactional(connection, name) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"open")
        reading = asyncio.create_task(everything(connection, name))
        done, _ = await asyncio.wait({reading}, timeout=0.5)
        await producer.commit_transaction()
        got = await reading

    assert not done
    assert [record.value for record in got] == [b"open"]


async def test_a_transaction_that_stays_open_is_an_error_with_its_place(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix)
    async with transactional(connection, name) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(name, b"open")
        with pytest.raises(ReadError, match=rf"open transaction: {name} 0 is stable to offset 0"):
            await snapshot(connection, [name], settle_seconds=0.3)
        await producer.abort_transaction()


async def test_what_retention_deleted_is_an_error_not_a_shorter_answer(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix)
    await publish(connection, numbered(name, 10))
    (whole,) = await snapshot(connection, [name])
    admin = AIOKafkaAdminClient(**connection.client_arguments())
    await admin.start()
    await admin.delete_records({TopicPartition(name, 0): RecordsToDelete(before_offset=4)})
    await admin.close()

    with pytest.raises(ReadError, match=f"truncated: {name} 0 starts at offset 4, offset 0"):
        [record async for record in read(connection, [whole])]


async def test_a_range_past_the_end_is_an_error(connection: KafkaConnection, prefix: str) -> None:
    name = await topic(connection, prefix)
    await publish(connection, numbered(name, 3))
    ahead = OffsetRange(topic=name, partition=0, start=0, end=9)

    with pytest.raises(ReadError, match="stable to offset 3, offset 9 was asked for"):
        [record async for record in read(connection, [ahead])]


async def test_a_missing_topic_is_named(connection: KafkaConnection, prefix: str) -> None:
    with pytest.raises(TopicError, match=f"missing on .*: {prefix}none;"):
        await snapshot(connection, [f"{prefix}none"])


async def test_a_compacted_topic_reads_as_its_latest_values(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix, cleanup_policy="compact")
    await publish(connection, numbered(name, 12))
    await publish(connection, [OutboundRecord(name, b"k0", None)])

    latest = await read_latest(connection, name)

    assert {key: record.value for key, record in latest.items()} == {
        b"k1": b"11",
        b"k2": b"7",
        b"k3": b"8",
        b"k4": b"9",
    }


async def test_following_gives_the_latest_values_then_each_change(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix, cleanup_policy="compact")
    await publish(connection, numbered(name, 7))

    changes = follow_compacted(connection, name)
    first = [(await anext(changes)).value for _ in range(5)]
    await publish(connection, numbered(name, 1, start=50))
    await publish(connection, [OutboundRecord(name, b"k3", None)])
    later = [(await anext(changes)).value for _ in range(2)]
    await changes.aclose()  # type: ignore[attr-defined]

    assert sorted(value or b"" for value in first) == [b"2", b"3", b"4", b"5", b"6"]
    assert later == [b"50", None]


async def test_a_record_too_large_is_an_error_and_the_publisher_goes_on(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix, max_message_bytes="1000")
    async with Publisher(connection) as publisher:
        with pytest.raises(InputError, match=r"larger than its topic's max\.message\.bytes"):
            await publisher.publish([OutboundRecord(name, None, b"x" * 5000)])
        await publisher.publish(numbered(name, 3))

    assert len(await everything(connection, name)) == 3


async def test_publishing_without_a_broker_ends_within_its_deadline() -> None:
    async with Publisher(KafkaConnection(bootstrap="127.0.0.1:1"), publish_seconds=2) as publisher:
        with pytest.raises(BrokerError):
            await publisher.publish([OutboundRecord("t", None, b"x")])


async def test_a_record_that_cannot_be_decoded_leaves_what_stood_under_its_key(
    connection: KafkaConnection, prefix: str
) -> None:
    name = await topic(connection, prefix, cleanup_policy="compact")

    def number(record: InboundRecord) -> int:
        if not (record.value or b"").isdigit():
            raise DecodeError("expected digits")
        return int(record.value or b"")

    await publish(connection, numbered(name, 12))
    bent = [OutboundRecord(name, b"k%d" % (n % 3), b"x%d" % n) for n in range(60)]
    await publish(connection, bent)
    await publish(connection, [OutboundRecord(name, b"k1", None), *bent[1:2]])
    told: list[int] = []

    latest = await read_latest_as(
        connection, name, number, unreadable=lambda record, _: told.append(record.offset)
    )

    assert latest == {b"k0": 10, b"k2": 7, b"k3": 8, b"k4": 9}
    assert len(told) == len(set(told)) >= 20
