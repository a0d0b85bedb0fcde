"""Topics that are given more partitions under their readers and writers: nothing is left unread,
what stood under a key is not taken for its present value, and one of several processes leads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from ares_stream.audit.notes import NoteSigner
from ares_stream.records import topics
from ares_stream.records.checkpoint import Checkpoint
from ares_stream.records.rates import Rates, decode_held
from ares_stream.records.topics import TopicSpec, specs, topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import follow_compacted, read_latest, read_latest_as
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import follow, read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.notarised import NAME
from tests.support.service_process import MonitorProcess, NotaryProcess, ServiceProcess
from tests.support.verdicts import verdict

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

MORE = 3
KEYS = 12
"""Of which two thirds, nearly, belong to another partition once there are three."""


async def grow(connection: KafkaConnection, names: Sequence[str]) -> None:
    admin = AIOKafkaAdminClient(**connection.client_arguments())
    await admin.start()
    await admin.create_partitions({name: NewPartitions(MORE) for name in names})
    await admin.close()


async def publish(connection: KafkaConnection, records: Sequence[OutboundRecord]) -> None:
    async with Publisher(connection) as publisher:
        await publisher.publish(records)


def valued(name: str, value: bytes | None, keys: Sequence[int]) -> list[OutboundRecord]:
    return [OutboundRecord(name, b"%d" % number, value) for number in keys]


async def test_the_last_word_on_a_key_counts_in_whatever_partition_it_stands(
    kafka: str, prefix: str
) -> None:
    connection = KafkaConnection(bootstrap=kafka)
    name = f"{prefix}topic"
    await create_topics(connection, [TopicSpec(name, 1, 1, {"cleanup.policy": "compact"})])
    await publish(connection, valued(name, b"old", range(KEYS)))
    await grow(connection, [name])
    await publish(connection, valued(name, b"new", range(0, KEYS, 2)))
    await publish(connection, valued(name, None, range(1, KEYS, 4)))
    wanted = {b"%d" % n: b"new" if n % 2 == 0 else b"old" for n in range(KEYS) if n % 4 != 1}

    latest = await read_latest(connection, name)

    assert {key: record.value for key, record in latest.items()} == wanted
    assert {record.partition for record in latest.values()} == set(range(MORE))
    followed: dict[bytes | None, bytes | None] = {}
    async with aclosing(follow_compacted(connection, name)) as records:  # type: ignore[type-var]
        async for record in records:
            followed[record.key] = record.value
            if len(followed) == len(wanted):
                break
    assert followed == wanted


async def test_who_follows_reads_partitions_that_are_added(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prober waits for verdicts, the scorer for releases: for ever, of partitions that nobody
    reads."""
    monkeypatch.setattr("ares_stream.streaming.reader.IDS_SECONDS", 0.2)
    connection = KafkaConnection(bootstrap=kafka)
    name = f"{prefix}topic"
    await create_topics(connection, [TopicSpec(name, 1, 1)])
    await publish(connection, valued(name, b"before", range(KEYS)))
    seen: list[tuple[bytes | None, bytes | None]] = []

    ranges = await snapshot(connection, [name])

    async def listen() -> None:
        async with aclosing(follow(connection, ranges)) as records:
            async for record in records:
                seen.append((record.key, record.value))
                if len(seen) == 2 * KEYS:
                    return

    listening = asyncio.create_task(listen())
    await grow(connection, [name])
    await publish(connection, valued(name, b"one", range(KEYS)))
    await publish(connection, valued(name, b"two", range(KEYS)))
    async with asyncio.timeout(30):
        await listening
    assert sorted(seen) == sorted(
        (b"%d" % number, value) for number in range(KEYS) for value in (b"one", b"two")
    )


def verdicts(prefix: str, numbers: Sequence[int]) -> list[OutboundRecord]:
    made = [verdict(number, FailureClass.CLEAN) for number in numbers]
    topic = topic_name(prefix, topics.VERDICTS)
    return [OutboundRecord(topic, item.interaction_id.encode(), item.encode()) for item in made]


async def counted(connection: KafkaConnection, prefix: str, verdicts: int) -> None:
    """Return once the state of the monitors counts so many."""
    name = topic_name(prefix, topics.RATES)
    async with asyncio.timeout(60):
        while True:
            held = await read_latest_as(
                connection, name, lambda record: decode_held(record.key, record.value)
            )
            found = [item for item in held.values() if isinstance(item, Rates)]
            total = sum(item.figures.total for item in found if not item.slice.attribute)
            if total >= verdicts:
                assert total == verdicts
                return
            await asyncio.sleep(0.2)


async def signed(connection: KafkaConnection, prefix: str, leaves: int) -> None:
    """Return once signed heads cover so many records."""
    name = topic_name(prefix, topics.CHECKPOINTS)
    async with asyncio.timeout(60):
        while True:
            sizes: dict[tuple[str, int], int] = {}
            async for record in read(connection, await snapshot(connection, [name])):
                item = Checkpoint.decode(record.value or b"")
                sizes[item.topic, item.partition] = item.size
            if sum(sizes.values()) >= leaves:
                assert sum(sizes.values()) == leaves
                return
            await asyncio.sleep(0.2)


async def led(services: Sequence[ServiceProcess]) -> ServiceProcess:
    """The one that leads, once one does."""
    async with asyncio.timeout(60):
        while not (leading := [item for item in services if item.events("leading")]):
            assert all(item.process.poll() is None for item in services)
            await asyncio.sleep(0.1)
    return leading[0]


async def test_of_two_monitors_and_notaries_one_leads_though_their_topics_have_grown(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """The owner of any partition of its own topic led: of two there were two leaders, each fencing
    the other; and a notary ended with a defect, for want of one range of checkpoints."""
    connection = KafkaConnection(bootstrap=kafka)
    wanted = specs(prefix, partitions=1, replication=1)
    await create_topics(connection, wanted)
    await publish(connection, verdicts(prefix, range(KEYS)))
    signer = NoteSigner.generate(NAME)

    def services(life: str, copies: int) -> tuple[list[MonitorProcess], list[NotaryProcess]]:
        folders = [tmp_path / life / str(number) for number in range(copies)]
        monitors = [stack.enter_context(MonitorProcess(kafka, prefix, it)) for it in folders]
        notaries = [
            stack.enter_context(NotaryProcess(kafka, prefix, it, [signer])) for it in folders
        ]
        return monitors, notaries

    with ExitStack() as stack:
        monitors, notaries = services("before", 1)
        await counted(connection, prefix, KEYS)
        await signed(connection, prefix, KEYS)
        assert [item.stop() for item in (*monitors, *notaries)] == [0, 0]

        await grow(connection, [spec.name for spec in wanted])
        await publish(connection, verdicts(prefix, range(KEYS, 2 * KEYS)))
        monitors, notaries = services("after", 2)
        assert (await (await led(monitors)).said("leading"))["verdicts"] == KEYS
        await led(notaries)
        await counted(connection, prefix, 2 * KEYS)
        await signed(connection, prefix, 2 * KEYS)
        standing = [item for item in (*monitors, *notaries) if not item.events("leading")]
        assert len(standing) == 2
        assert not [item for item in (*monitors, *notaries) if item.events("started anew")]
        assert [item.stop() for item in (*monitors, *notaries)] == [0, 0, 0, 0]

        monitors, notaries = services("last", 1)
        assert (await (await led(monitors)).said("leading"))["verdicts"] == 2 * KEYS
        await led(notaries)
        assert [item.stop() for item in (*monitors, *notaries)] == [0, 0]
    own = (topics.RATES, topics.NOTARY, topics.CHECKPOINTS)
    for name in (topic_name(prefix, item) for item in own):
        ranges = await snapshot(connection, [name])
        assert {record.partition async for record in read(connection, ranges)} == {0}
