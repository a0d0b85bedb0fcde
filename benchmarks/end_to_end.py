"""From topic to visible verdict: the real `ares scorer` on a real Kafka, as a process of its own.

Its CPU time and the clock are read from before the first record is sent, once some others went
through, until the last verdict is visible to a read_committed reader. Broker, sender and reader
share the machine's cores with it: by the clock they cost it something, by CPU time they do not.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from ares_stream.models.bundles import Bundle
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.service import Service, free_port, service_process, until_ready
from ares_stream.records.base import OffsetRange
from ares_stream.records.interaction import Interaction
from ares_stream.records.topics import PRODUCTION, VERDICTS, specs, topic_name
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord

PREFIX: Final = "bench."
PARTITIONS: Final = 4
WARM_UP: Final = 64
"""Conversations that go through before the clock starts."""
LOOK_SECONDS: Final = 0.1
STALL_SECONDS: Final = 120.0
"""Without a new verdict for this long, the run is over."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """What the scorer's process did: conversations per second of the clock and of its CPU time, its
    seconds until ready, and its resident MiB before the first record."""

    rate: float
    cpu_rate: float
    ready_seconds: float
    idle_mebibytes: float


async def through_kafka(
    judge: Bundle, reward: Bundle, interactions: Sequence[Interaction]
) -> Throughput:
    """Score them all. Raises RuntimeError when verdicts stop coming, and what the broker and the
    scorer raise."""
    with tempfile.TemporaryDirectory(prefix="ares-bench-") as scratch, EmbeddedBroker() as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        await create_topics(connection, specs(PREFIX, partitions=PARTITIONS, replication=1))
        port = free_port()
        settings = {
            "kafka": {"bootstrap": broker.bootstrap},
            "topic_prefix": PREFIX,
            "http": {"port": port},
            "scorer": {
                "harm": [str(judge.path.absolute())],
                "reward": str(reward.path.absolute()),
                "allow_shared_lineage": True,
            },
        }
        topic = topic_name(PREFIX, PRODUCTION)
        records = [OutboundRecord(topic, item.id.encode(), item.encode()) for item in interactions]
        started = time.perf_counter()
        async with service_process("scorer", settings, Path(scratch)) as scorer:
            await until_ready(scorer, port)
            ready = time.perf_counter() - started
            process = psutil.Process(scorer.pid)
            idle = process.memory_info().rss / 2**20
            visible = _Visible(connection, scorer)
            async with Publisher(connection) as publisher:
                await publisher.publish(records[:WARM_UP])
                warm = await visible.until(WARM_UP)
                wall, cpu = time.perf_counter(), _cpu(process)
                await publisher.publish(records)
            ended = await visible.until(warm + len(records))
            wall, cpu = time.perf_counter() - wall, _cpu(process) - cpu
            await scorer.stop()
    return Throughput((ended - warm) / wall, (ended - warm) / cpu, ready, idle)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Visible:
    """How many verdicts a read_committed reader has seen."""

    def __init__(self, connection: KafkaConnection, scorer: Service) -> None:
        self._connection, self._scorer = connection, scorer
        self._next: dict[int, int] = {}
        self._seen = 0

    async def until(self, wanted: int) -> int:
        """Wait until at least so many are visible; returns how many."""
        deadline = time.monotonic() + STALL_SECONDS
        while self._seen < wanted:
            self._scorer.check()
            fresh = await self._look()
            if fresh:
                deadline = time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self._seen} of {wanted} verdicts, and none for {STALL_SECONDS:.0f} s"
                )
            else:
                await asyncio.sleep(LOOK_SECONDS)
        return self._seen

    async def _look(self) -> int:
        ranges: list[OffsetRange] = []
        for item in await snapshot(self._connection, [topic_name(PREFIX, VERDICTS)]):
            start = self._next.get(item.partition, item.start)
            self._next[item.partition] = item.end
            ranges.append(item.model_copy(update={"start": start}))
        fresh = 0
        async for _ in read(self._connection, ranges):
            fresh += 1
        self._seen += fresh
        return fresh
