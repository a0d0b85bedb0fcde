"""Limits of a broker that what is asked for lies beyond, and topics that go away: told at once, by
the name of what a person must change; what can go on goes on, and nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from confluent_kafka.admin import AdminClient

from ares_stream.errors import BrokerError, InputError, LimitError, TopicError
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.topics import TopicSpec, specs
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection
from tests.support.raw_batches import RawRecord, batch, produce
from tests.support.service_process import MonitorProcess
from tests.support.sessions import Copy, Copying, Seen, running, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

LONGEST_SESSION = 8
TRANSACTIONS = "refuses transactions .* transaction.max.timeout.ms"
SESSIONS = "scorer.processing.session_seconds.* group.max.session.timeout.ms"
COUNT = 30
STALL_SECONDS = 1.5
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def strict() -> Iterator[str]:
    limits = {
        "transaction.max.timeout.ms": "5000",
        "group.max.session.timeout.ms": f"{LONGEST_SESSION}000",
        "group.max.size": "1",
    }
    with EmbeddedBroker(properties=limits) as broker:
        yield broker.bootstrap


@pytest.mark.parametrize(
    ("seconds", "said"), [(LONGEST_SESSION - 2, TRANSACTIONS), (LONGEST_SESSION + 2, SESSIONS)]
)
async def test_a_processor_ends_with_the_limit_that_its_broker_sets_too_low(
    strict: str, prefix: str, seconds: float, said: str
) -> None:
    copying = Copying(strict, prefix)
    await copying.create()
    processor = copying.processor(Seen(), session_seconds=float(seconds))
    with pytest.raises(LimitError, match=said) as refused:
        async with asyncio.timeout(150):
            await processor.run()
    assert refused.value.exit_code == 2


async def asks_for_ever(queue: Queue) -> None:
    async with asyncio.timeout(150):
        while True:
            await queue.waiting()
            await asyncio.sleep(0.1)


async def test_a_journal_and_a_queue_name_the_limit_as_well(strict: str, prefix: str) -> None:
    copying = Copying(strict, prefix)
    await copying.create()
    with pytest.raises(LimitError, match=TRANSACTIONS):
        async with Journal(copying.direct, f"{prefix}journal"):
            pass
    queue = Queue(copying.direct, copying.input, copying.group)
    await queue.start()
    try:
        with pytest.raises(LimitError, match=SESSIONS):
            await asks_for_ever(queue)
    finally:
        await queue.stop()


async def test_a_service_ends_with_exit_code_2_and_one_line(
    strict: str, prefix: str, tmp_path: Path
) -> None:
    connection = KafkaConnection(bootstrap=strict)
    await create_topics(connection, specs(prefix, partitions=1, replication=1))
    with MonitorProcess(strict, prefix, tmp_path) as monitor:
        assert await asyncio.to_thread(monitor.process.wait, 60) == 2
        last = monitor.log.strip().splitlines()[-1]
    assert last.startswith("ares: Kafka at")
    assert "Traceback" not in monitor.log


async def test_who_stands_by_for_a_topic_that_is_gone_is_told(kafka: str, prefix: str) -> None:
    """Monitor, notary and repairer lead where they own a partition of a topic of their own."""
    connection = KafkaConnection(bootstrap=kafka)
    own = f"{prefix}own"
    await create_topics(connection, [TopicSpec(own, 1, 1)])
    await asyncio.to_thread(delete, kafka, own)
    queue = Queue(connection, own, f"{prefix}group")
    await queue.start()
    try:
        with pytest.raises(TopicError, match=f"missing on .*: {own}; create"):
            await asks_for_ever(queue)
    finally:
        await queue.stop()


async def test_a_group_that_is_full_is_told_by_its_name_and_joined_when_there_is_room(
    strict: str, prefix: str
) -> None:
    member: dict[str, Any] = {"transaction_seconds": 4.0}
    copying = Copying(strict, prefix)
    await copying.create()
    first, second = copying.processor(Seen(), **member), copying.processor(Seen(), **member)
    async with running(first):
        await until(lambda: first.missing() is None)
        waiting = asyncio.create_task(second.run())
        await until(lambda: "GroupMaxSizeReached" in (second.missing() or ""))
    await until(lambda: second.missing() is None)
    second.stop()
    await waiting


async def committed_copies(copying: Copying) -> list[int]:
    ranges = await snapshot(copying.direct, [copying.output])
    return sorted([int(record.key or b"-1") async for record in read(copying.direct, ranges)])


def delete(bootstrap: str, topic: str) -> None:
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.delete_topics([topic])[topic].result(20)


@pytest.mark.parametrize("which", ["output", "dead"])
async def test_a_topic_that_is_deleted_under_its_writer_is_named_until_it_is_made_anew(
    kafka: str, prefix: str, which: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    processor = copying.processor(seen, stall_seconds=STALL_SECONDS)
    topic = getattr(copying, which)
    async with running(processor):
        await copying.send(COUNT)
        await until(lambda: seen.records == COUNT)
        await asyncio.to_thread(delete, kafka, topic)
        unreadable = RawRecord(headers=((b"\xff", b"no text"),))
        await produce(kafka, copying.input, [batch([unreadable])])
        await copying.send(COUNT)
        await until(lambda: f"missing on {kafka}: {topic};" in (processor.missing() or ""))
        if which == "output":
            # It is no reason to begin anew again and again, each time as if nothing were missing.
            seen.restarts.clear()
            await asyncio.sleep(2 * STALL_SECONDS + 1)
            assert seen.restarts == []
            assert f"{topic};" in (processor.missing() or "")
        await create_topics(copying.direct, [TopicSpec(topic, 3, 1)])
        await until(lambda: seen.records == 2 * COUNT + 1)
        await until(lambda: processor.missing() is None)
    times = 1 if which == "output" else 2
    assert await committed_copies(copying) == sorted([*range(COUNT)] * times)


async def test_a_dead_letter_topic_that_takes_nothing_is_an_error_that_names_it(
    kafka: str, prefix: str
) -> None:
    copying = Copying(kafka, prefix)
    await create_topics(
        copying.direct,
        [
            TopicSpec(copying.input, 1, 1),
            TopicSpec(copying.output, 1, 1),
            TopicSpec(copying.dead, 1, 1, {"max.message.bytes": "100"}),
        ],
    )
    await produce(kafka, copying.input, [batch([RawRecord(headers=((b"\xff", b""),))])])
    with pytest.raises(LimitError, match=r"dead does not even take .* raise its max.message.bytes"):
        async with asyncio.timeout(150):
            await copying.processor(Seen()).run()


async def test_work_after_a_pause_is_no_standstill(kafka: str, prefix: str) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    processor = copying.processor(seen, stall_seconds=STALL_SECONDS)
    told: set[str | None] = set()

    def look(until_: Callable[[], bool]) -> bool:
        told.add(processor.missing())
        return until_()

    async with running(processor):
        await copying.send(1)
        await until(lambda: seen.records == 1 and processor.missing() is None)
        await asyncio.sleep(2 * STALL_SECONDS)
        await copying.send(200)
        await until(lambda: look(lambda: seen.records == 201))
    assert told == {None}


async def test_a_journal_whose_topic_is_gone_fails_in_time_and_is_entered_again(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ares_stream.streaming.journal.TRANSACTION_SECONDS", 3.0)
    monkeypatch.setattr("ares_stream.streaming.journal.ABORT_SECONDS", 1.0)
    copying = Copying(kafka, prefix)
    await copying.create()
    record = OutboundRecord(copying.output, b"1", b"value")
    async with Journal(copying.direct, f"{prefix}journal") as journal:
        await journal.append([record])
        await asyncio.to_thread(delete, kafka, copying.output)
        with pytest.raises(BrokerError):
            async with asyncio.timeout(150):
                await journal.append([record])
    await create_topics(copying.direct, [TopicSpec(copying.output, 2, 1)])
    async with Journal(copying.direct, f"{prefix}journal") as journal:
        await journal.append([record])
    assert await committed_copies(copying) == [1]


class CopyOfAnotherHour(Copy):
    """As a machine whose clock is two hours ahead."""

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        ahead = int(time.time() * 1000) + 2 * HOUR_MS
        found = await super().handle(records)
        return [
            tuple(replace(item, timestamp_ms=ahead) for item in outcome)
            for outcome in found
            if not isinstance(outcome, Rejection)
        ]


async def widen(bootstrap: str, topic: str) -> None:
    limit = {"message.timestamp.after.max.ms": str(3 * HOUR_MS)}
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, limit)])
    await admin.close()


async def test_times_that_a_broker_refuses_are_told_and_waited_for(kafka: str, prefix: str) -> None:
    """An hour ahead is what a broker takes by default: a clock may be set right, or the limit."""
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    processor = copying.processor(seen, handler=CopyOfAnotherHour(copying.output))
    async with running(processor):
        await copying.send(COUNT)
        await until(lambda: "refuses the time of a record" in (processor.missing() or ""))
        await widen(kafka, copying.output)
        await until(lambda: seen.records == COUNT)
        await until(lambda: processor.missing() is None)
    assert await committed_copies(copying) == [*range(COUNT)]
    late = OutboundRecord(copying.input, b"1", b"", timestamp_ms=int(time.time() * 1000) * 2)
    async with Publisher(copying.direct) as publisher:
        with pytest.raises(InputError, match="refuses the time of a record"):
            await publisher.publish([late])
