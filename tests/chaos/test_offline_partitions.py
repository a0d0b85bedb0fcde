"""A broker that is down and holds some partitions alone: the others go on, and it is said which."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from ares_stream.errors import BrokerError
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.topics import TopicSpec, durable
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import group_lag
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.sessions import Copying, Seen, running, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

NODES = 3
PARTITIONS = 6
LOOKS = 3


@dataclass
class Cluster:
    """Three brokers, of which the last can be down. They end with the thread that started them."""

    broker: EmbeddedBroker
    thread: ThreadPoolExecutor

    def lost(self, topic: str) -> list[int]:
        """The partitions that only the last broker holds."""
        return sorted(k for k, item in self._of(topic).items() if item.replicas == [NODES])

    async def down(self, topic: str) -> None:
        """Kill the last, and wait until the others have noticed."""
        await asyncio.get_running_loop().run_in_executor(self.thread, self.broker.kill, NODES)
        await until(lambda: any(item.leader == -1 for item in self._of(topic).values()), 60)

    def _of(self, topic: str) -> dict[int, Any]:
        asking = AdminClient({"bootstrap.servers": self.broker.bootstrap, "log_level": 0})
        return asking.list_topics(topic, timeout=20).topics[topic].partitions

    async def up(self) -> None:
        """Start it again."""
        await asyncio.get_running_loop().run_in_executor(self.thread, self.broker.restart, NODES)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ThreadPoolExecutor(1) as thread:
        broker = EmbeddedBroker(nodes=NODES)
        thread.submit(broker.start).result()
        try:
            yield Cluster(broker, thread)
        finally:
            thread.submit(broker.stop).result()


async def make(copying: Copying) -> None:
    """An input that each broker holds a part of alone, outputs that all hold."""
    safe = durable(NODES)
    await create_topics(
        copying.direct,
        [
            TopicSpec(copying.input, PARTITIONS, 1),
            TopicSpec(copying.output, 1, NODES, safe),
            TopicSpec(copying.dead, 1, NODES, safe),
        ],
    )


def of(topic: str, partitions: list[int]) -> list[OutboundRecord]:
    return [OutboundRecord(topic, b"%d" % k, b"value", partition=k) for k in partitions]


async def test_the_other_partitions_go_on_in_the_same_session(
    cluster: Cluster, prefix: str
) -> None:
    copying, seen = Copying(cluster.broker.bootstrap, prefix), Seen()
    await make(copying)
    lost = cluster.lost(copying.input)
    assert lost
    others = [k for k in range(PARTITIONS) if k not in lost]
    processor = copying.processor(seen, session_seconds=30.0)
    async with running(processor), Publisher(copying.direct) as publisher:
        await until(lambda: len(seen.held) == PARTITIONS, 60)
        await publisher.publish(of(copying.input, list(range(PARTITIONS))))
        await until(lambda: seen.records == PARTITIONS, 60)
        await cluster.down(copying.input)
        names = ", ".join(f"{copying.input}-{k}" for k in lost)
        await until(lambda: f"no broker that holds {names} is up" in (processor.missing() or ""))
        before = len(seen.restarts)
        for turn in range(LOOKS):
            await publisher.publish(of(copying.input, others))
            wanted = PARTITIONS + len(others) * (turn + 1)
            await until(lambda wanted=wanted: seen.records == wanted, 60)  # type: ignore[misc]
        assert len(seen.restarts) == before
        await cluster.up()
        await publisher.publish(of(copying.input, lost))
        await until(lambda: seen.records == wanted + len(lost), 60)
        await until(lambda: processor.missing() is None, 60)


async def test_who_reads_or_writes_them_is_told_which(cluster: Cluster, prefix: str) -> None:
    copying = Copying(cluster.broker.bootstrap, prefix)
    await make(copying)
    first, *_ = lost = cluster.lost(copying.input)
    said = f"no broker that holds .*{copying.input}-{first}.* is up"
    await cluster.down(copying.input)
    try:
        with pytest.raises(BrokerError, match=said):
            await snapshot(copying.direct, [copying.input])
        with pytest.raises(BrokerError, match=said):
            async with Follower(copying.direct, [copying.input], {}):
                pass
        with pytest.raises(BrokerError, match=said):
            await group_lag(copying.direct, copying.group, [copying.input])
        with pytest.raises(BrokerError, match=said):
            async with Publisher(copying.direct, publish_seconds=5.0) as publisher:
                await publisher.publish(of(copying.input, lost))
    finally:
        await cluster.up()
