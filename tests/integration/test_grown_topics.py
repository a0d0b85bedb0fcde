"""Topics that are given more partitions under their readers and writers: nothing is left unread,
what stood under a key is not taken for its present value, and one of several processes leads."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions

from ares_stream.audit.notes import NoteSigner
from ares_stream.records import topics
from ares_stream.records.topics import TopicSpec, specs, topic_name
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import follow_compacted, read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.reader import follow, read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.followers import counted, signed, verdicts
from tests.support.notarised import NAME
from tests.support.service_process import MonitorProcess, NotaryProcess, ServiceProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

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
    async with asyncio.timeout(150):
        await listening
    assert sorted(seen) == sorted(
        (b"%d" % number, value) for number in range(KEYS) for value in (b"one", b"two")
    )


async def test_of_two_members_the_owner_of_the_first_partition_leads(
    kafka: str, prefix: str
) -> None:
    """The owner of any partition led: of two there were two leaders, each fencing the other."""
    connection = KafkaConnection(bootstrap=kafka)
    name = f"{prefix}topic"
    await create_topics(connection, [TopicSpec(name, MORE, 1)])
    members = [Queue(connection, name, f"{prefix}group") for _ in range(2)]
    try:
        for member in members:
            await member.start()
        async with asyncio.timeout(120):
            while not all([await member.waiting() for member in members]):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert sorted([await member.leads() for member in members]) == [False, True]
        assert all(member.is_joined for member in members)
    finally:
        for member in members:
            await member.stop()


@pytest.mark.parametrize(
    ("name", "own"),
    [("monitor", [topics.RATES]), ("notary", [topics.NOTARY, topics.CHECKPOINTS])],
)
async def test_a_service_goes_on_where_it_was_though_its_topics_have_grown(
    kafka: str, prefix: str, tmp_path: Path, name: str, own: Sequence[str]
) -> None:
    """A notary ended with a defect, for want of one range of checkpoints; and what is written to
    other partitions would not be compacted with what stands in the first."""
    connection = KafkaConnection(bootstrap=kafka)
    wanted = specs(prefix, partitions=1, replication=1)
    await create_topics(connection, wanted)
    await publish(connection, verdicts(prefix, range(KEYS)))
    signer = NoteSigner.generate(NAME)
    settled = counted if name == "monitor" else signed

    def started(folder: str) -> ServiceProcess:
        if name == "monitor":
            return MonitorProcess(kafka, prefix, tmp_path / folder)
        return NotaryProcess(kafka, prefix, tmp_path / folder, [signer])

    with started("before") as service:
        await settled(connection, prefix, KEYS)
        assert service.stop() == 0
    await grow(connection, [spec.name for spec in wanted])
    await publish(connection, verdicts(prefix, range(KEYS, 2 * KEYS)))
    with started("after") as service:
        await settled(connection, prefix, 2 * KEYS)
        assert service.stop() == 0
    for topic in (topic_name(prefix, item) for item in own):
        ranges = await snapshot(connection, [topic])
        assert {record.partition async for record in read(connection, ranges)} == {0}
