"""What a group has committed, read by who goes on from there: an answer that says nothing is not
taken for nothing, nor an offset that a transaction is about to move for the last one."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.streaming.fetching import BatchConsumer
from ares_stream.streaming.log_identity import LogIdentity
from ares_stream.streaming.reader import read, snapshot
from tests.support.sessions import Copying, Seen, running, until

pytestmark = pytest.mark.kafka

COUNT = 40


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    with EmbeddedBroker(nodes=2) as broker:
        yield broker.bootstrap


@asynccontextmanager
async def open_transaction(
    copying: Copying, *, identity: str, offset: int
) -> AsyncIterator[AIOKafkaProducer]:
    """One that copies the records before `offset`, and is about to commit it."""
    producer = AIOKafkaProducer(
        bootstrap_servers=copying.direct.bootstrap, transactional_id=identity
    )
    await producer.start()
    try:
        await producer.begin_transaction()
        for number in range(offset):
            await producer.send_and_wait(copying.output, key=b"%d" % number, value=b"value")
        partition = TopicPartition(copying.input, 0)
        await producer.send_offsets_to_transaction({partition: offset}, copying.group)
        yield producer
    finally:
        await producer.stop()


async def copies(copying: Copying) -> Counter[bytes | None]:
    ranges = await snapshot(copying.direct, [copying.output])
    return Counter([record.key async for record in read(copying.direct, ranges)])


async def filled(bootstrap: str, prefix: str) -> Copying:
    """Topics with records that nobody has read."""
    copying = Copying(bootstrap, prefix)
    await copying.create()
    await copying.send(COUNT)
    return copying


async def test_a_coordinator_that_has_moved_is_not_a_group_without_commits(
    two_nodes: str, prefix: str
) -> None:
    copying = await filled(two_nodes, prefix)
    seen = Seen()
    async with running(copying.processor(seen)):
        await until(lambda: seen.records == COUNT)
    partition = TopicPartition(copying.input, 0)
    arguments = {**copying.direct.client_arguments(), "group_id": copying.group}
    for kind in (AIOKafkaConsumer, BatchConsumer):
        consumer = kind(**arguments, enable_auto_commit=False)
        await consumer.start()
        try:
            await consumer._coordinator.ensure_coordinator_known()
            right = consumer._coordinator.coordinator_id
            consumer._coordinator.coordinator_id = 3 - right
            async with asyncio.timeout(150):
                if isinstance(consumer, BatchConsumer):
                    found, log = await consumer.committed_of_log(partition, lambda error: None)
                    assert log != LogIdentity()
                else:
                    found = await consumer.committed(partition)
            assert found == COUNT
            assert consumer._coordinator.coordinator_id == right
        finally:
            await consumer.stop()


async def test_an_offset_that_another_transaction_is_about_to_move_is_waited_for(
    kafka: str, prefix: str
) -> None:
    """A service that was given another `id_prefix` does not fence the one before it."""
    copying = await filled(kafka, prefix)
    seen = Seen()
    processor = copying.processor(seen)
    async with (
        open_transaction(copying, identity=f"{prefix}other", offset=COUNT // 2) as other,
        running(processor),
    ):
        await until(lambda: "UnstableOffsetCommit" in (processor.missing() or ""))
        assert seen.records == 0
        await other.commit_transaction()
        await until(lambda: seen.records == COUNT // 2)
    assert await copies(copying) == {b"%d" % number: 1 for number in range(COUNT)}


@pytest.mark.parametrize("ends", [False, True], ids=["left open", "about to commit"])
async def test_the_start_of_a_producer_settles_what_the_owner_before_left(
    kafka: str, prefix: str, ends: bool
) -> None:
    copying = await filled(kafka, prefix)
    seen = Seen()
    identity = f"{prefix}copier.{copying.input}.0"
    async with open_transaction(copying, identity=identity, offset=COUNT // 2) as before:
        commit = asyncio.ensure_future(before.commit_transaction() if ends else asyncio.sleep(0))
        async with running(copying.processor(seen)):
            await until(lambda: seen.records >= COUNT // 2)
            await asyncio.gather(commit, return_exceptions=True)
            await until(lambda: seen.records in (COUNT // 2, COUNT) and not seen.lags[0])
    assert await copies(copying) == {b"%d" % number: 1 for number in range(COUNT)}


async def test_an_offset_that_somebody_else_committed_is_told_and_gone_on_from(
    kafka: str, prefix: str
) -> None:
    """Another consumer that uses the group, or an operator who resets its offsets: records that
    were never scored would be passed over, and others scored twice, without a word."""
    copying = await filled(kafka, prefix)
    partition = TopicPartition(copying.input, 0)
    seen = Seen()

    async def commit(offset: int) -> None:
        consumer = AIOKafkaConsumer(
            **copying.direct.client_arguments(), group_id=copying.group, enable_auto_commit=False
        )
        await consumer.start()
        consumer.assign([partition])
        await consumer.commit({partition: offset})
        await consumer.stop()

    async def process(records: int) -> tuple[str, ...]:
        """The notes of a processor that goes on, once it has copied so many."""
        processor = copying.processor(seen)
        seen.records = 0
        async with running(processor):
            await until(lambda: seen.records == records and processor.missing() is None)
            return processor.notes()

    await commit(COUNT // 2)
    (told,) = await process(COUNT // 2)
    assert (
        f"offset {COUNT // 2} of the group {copying.group} was committed by somebody else" in told
    )
    assert await process(0) == (), "its own commits say whose they are"
    await commit(COUNT // 4)
    (told,) = await process(COUNT - COUNT // 4)
    assert f"offset {COUNT // 4} of the group" in told
