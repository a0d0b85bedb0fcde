"""Logs that were cut back and filled again: their offsets name other records than were read."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata
from confluent_kafka import Producer

from ares_stream.errors import ReadError, TopicError
from ares_stream.lab.experiments.chaos.aside import truncate
from ares_stream.lab.experiments.chaos.proxy import Proxy
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.log_identity import LogIdentity
from ares_stream.streaming.reader import follow, read, snapshot
from tests.support.sessions import Copying, Seen, rerouted, running, until

pytestmark = pytest.mark.kafka


@dataclass(frozen=True)
class Stage:
    """A broker with its files. It ends with the thread that started it, and a test's own threads
    end with the test: so it has one of its own."""

    broker: EmbeddedBroker
    data: Path
    thread: Executor

    async def restart(self, truncated: str = "") -> None:
        """Kill it and start it again, without the records of a topic."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self.thread, self.broker.kill)
        if truncated:
            truncate(self.data, truncated)
        await loop.run_in_executor(self.thread, self.broker.restart)

    async def refill(self, topic: str, count: int) -> None:
        """What a restored or truncated log looks like after a while."""
        await self.restart(topic)
        await asyncio.to_thread(send, self.broker.bootstrap, topic, count)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    data = tmp_path_factory.mktemp("kafka")
    with ThreadPoolExecutor(1) as thread, EmbeddedBroker(data_dir=data) as broker:
        yield Stage(broker, data, thread)


async def create(copying: Copying) -> None:
    """Its topics, once a broker that was killed lets anyone make some: it may still be fenced."""
    async with asyncio.timeout(150):
        while True:
            try:
                return await copying.create()
            except TopicError:
                await asyncio.sleep(0.2)


def send(bootstrap: str, topic: str, count: int) -> None:
    """By a client that goes through no proxy."""
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    for number in range(count):
        producer.produce(topic, key=b"%d" % number, value=b"value")
    assert producer.flush(30) == 0


async def copies(copying: Copying) -> Counter[bytes | None]:
    ranges = await snapshot(copying.direct, [copying.output])
    return Counter([record.key async for record in read(copying.direct, ranges)])


async def test_a_log_filled_again_while_nobody_read_is_read_from_its_beginning(
    stage: Stage, prefix: str
) -> None:
    copying = Copying(stage.broker.bootstrap, prefix)
    await create(copying)
    await copying.send(3)
    first, second, third = Seen(), Seen(), Seen()
    async with running(copying.processor(first)):
        await until(lambda: first.records == 3)
    await stage.refill(copying.input, 8)
    processor = copying.processor(second)
    async with running(processor):
        await until(lambda: second.records == 8)
        await until(lambda: second.losses)
        assert any("truncated or restored and filled again" in note for note in processor.notes())
        assert processor.missing() is None
    [loss] = second.losses
    assert (loss.committed, loss.change, loss.resumed) == (3, "rewritten", 0)
    assert await copies(copying) == {b"%d" % n: 1 + (n < 3) for n in range(8)}
    # What is committed from now on is of this log.
    async with running(copying.processor(third)):
        await copying.send(1)
        await until(lambda: third.records == 1)
    assert third.losses == []


async def test_a_log_filled_again_while_its_reader_was_cut_off_is_known_by_its_new_leader(
    stage: Stage, prefix: str
) -> None:
    copying = Copying(stage.broker.bootstrap, prefix)
    await create(copying)
    host, _, port = stage.broker.bootstrap.partition(":")
    seen = Seen()
    async with Proxy(host, int(port)) as proxy:
        copying.connection = KafkaConnection(bootstrap=f"127.0.0.1:{proxy.port}")
        with rerouted(stage.broker.bootstrap, proxy):
            async with running(copying.processor(seen)):
                await copying.send(3)
                await until(lambda: seen.records == 3)
                proxy.cut()
                await stage.refill(copying.input, 8)
                proxy.heal()
                await until(lambda: seen.losses)
                await until(lambda: seen.records >= 11)
    assert [(loss.change, loss.resumed) for loss in seen.losses] == [("rewritten", 0)]
    found = await copies(copying)
    assert all(found[b"%d" % n] >= 1 for n in range(8))


async def test_a_broker_that_was_killed_has_the_same_log(stage: Stage, prefix: str) -> None:
    copying = Copying(stage.broker.bootstrap, prefix)
    await create(copying)
    seen = Seen()
    async with running(copying.processor(seen)):
        await copying.send(3)
        await until(lambda: seen.records == 3)
        await stage.restart()
        await copying.send(5)
        await until(lambda: seen.records == 8)
    assert seen.losses == []
    assert (await copies(copying)).total() == 8


async def change_what_was_read(copying: Copying) -> None:
    """Have the group's offset say that another record stood before it."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=copying.direct.bootstrap, group_id=copying.group, enable_auto_commit=False
    )
    place = TopicPartition(copying.input, 0)
    await consumer.start()
    try:
        consumer.assign([place])
        found = (await consumer._coordinator.fetch_committed_offsets([place]))[place]
        known = LogIdentity.parse(found.metadata)
        assert known.topic_id
        assert known.last is not None
        assert known.last.offset == found.offset - 1
        head, _, tail = found.metadata.partition(";")
        other = f"{head[:-8]}{known.last.checksum ^ 1:08x};{tail}"
        await consumer.commit({place: OffsetAndMetadata(found.offset, other)})
    finally:
        await consumer.stop()


@pytest.mark.parametrize("reset", ["latest", "stop"])
async def test_the_policy_of_lost_offsets_holds_for_a_log_that_was_filled_again(
    kafka: str, prefix: str, reset: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(4)
    first, second = Seen(), Seen()
    async with running(copying.processor(first)):
        await until(lambda: first.records == 4)
    await change_what_was_read(copying)
    processor = copying.processor(second, offset_reset=reset)
    if reset == "stop":
        said = "committed offset 4, but the log, truncated or restored and filled again, holds 0"
        with pytest.raises(ReadError, match=said):
            async with asyncio.timeout(150):
                await processor.run()
        return
    async with running(processor):
        await until(lambda: second.losses)
        await copying.send(1)
        await until(lambda: second.records == 1)
    assert [(loss.change, loss.resumed) for loss in second.losses] == [("rewritten", 4)]


async def poll(follower: Follower, count: int) -> list[bytes | None]:
    found: list[bytes | None] = []
    async with asyncio.timeout(150):
        while len(found) < count:
            found += [record.key for record in await follower.poll()]
    return found


async def test_a_follower_knows_a_log_that_was_filled_again_before_it_came_back(
    stage: Stage, prefix: str
) -> None:
    copying = Copying(stage.broker.bootstrap, prefix)
    await create(copying)
    await copying.send(3)
    async with Follower(copying.direct, [copying.input], {}) as first:
        assert await poll(first, 3) == [b"0", b"1", b"2"]
        assert first.take_losses() == []
        positions, logs = first.positions, first.logs
    # The same log: nothing is told.
    async with Follower(copying.direct, [copying.input], positions, logs=logs) as second:
        assert second.take_losses() == []
    await stage.refill(copying.input, 8)
    async with Follower(copying.direct, [copying.input], positions, logs=logs) as third:
        [loss] = third.take_losses()
        assert (loss.change, loss.gap.start, loss.gap.end) == ("rewritten", 0, 3)
        assert await poll(third, 8) == [b"%d" % n for n in range(8)]
        now = third.logs
    assert now.keys() == logs.keys()
    assert now != logs


async def test_a_follower_that_was_cut_off_knows_a_log_that_was_filled_again(
    stage: Stage, prefix: str
) -> None:
    copying = Copying(stage.broker.bootstrap, prefix)
    await create(copying)
    await copying.send(3)
    host, _, port = stage.broker.bootstrap.partition(":")
    async with Proxy(host, int(port)) as proxy:
        with rerouted(stage.broker.bootstrap, proxy):
            through = KafkaConnection(bootstrap=f"127.0.0.1:{proxy.port}")
            async with Follower(through, [copying.input], {}) as follower:
                await poll(follower, 3)
                proxy.cut()
                await stage.refill(copying.input, 8)
                proxy.heal()
                found = await poll(follower, 8)
                [loss] = follower.take_losses()
    assert loss.change == "rewritten"
    assert found == [b"%d" % n for n in range(8)]


@pytest.mark.parametrize("count", [2, 8], ids=["shorter", "longer than what was read"])
async def test_a_follower_knows_a_topic_that_is_made_anew_under_it(
    kafka: str, prefix: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ares_stream.streaming.follower.PARTITIONS_SECONDS", 0.5)
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(3)
    async with Follower(copying.direct, [copying.input], {}) as follower:
        await poll(follower, 3)
        await copying.make_input_anew()
        await copying.send(count)
        found: set[bytes | None] = set()
        async with asyncio.timeout(150):
            while found != {b"%d" % n for n in range(count)}:
                with contextlib.suppress(TopicError):
                    found |= {record.key for record in await follower.poll()}
        assert [loss.change for loss in follower.take_losses()][-1:] == ["anew"]


async def test_who_follows_a_topic_that_is_made_anew_is_told_to_begin_again(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ares_stream.streaming.reader.IDS_SECONDS", 0.5)
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(2)
    ranges = await snapshot(copying.direct, [copying.input])

    async def read_on() -> None:
        async with aclosing(follow(copying.direct, ranges)) as records:
            async for _ in records:
                pass

    reading = asyncio.create_task(read_on())
    await copying.make_input_anew()
    await copying.send(8)
    with pytest.raises(ReadError, match=f"{copying.input}: made anew|truncated while"):
        async with asyncio.timeout(150):
            await reading
