"""How long partitions stand still after a kill or a broker's restart; the figures of
docs/reliability.md. Run with `-s` to see every round:

    pytest tests/chaos/test_recovery.py -s
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.exactly_once import PARTITIONS, Copier, create

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

PREFIX = "recovery."
ROUNDS = 10
KILL_SECONDS = 10.0
RESTART_SECONDS = 12.0


@pytest.fixture(autouse=True)
def session_of_a_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPIER_SESSION_SECONDS", "9")


@pytest.fixture
def kafka() -> Iterator[str]:
    with EmbeddedBroker() as broker:
        yield broker.bootstrap


class Probes:
    """Sends a record to every partition and waits until all came out, committed."""

    def __init__(self, bootstrap: str, prefix: str, consumer: AIOKafkaConsumer) -> None:
        self._connection = KafkaConnection(bootstrap=bootstrap)
        self._prefix = prefix
        self._consumer = consumer
        self._round = 0

    async def pass_through(self, since: float) -> float:
        """Seconds from `since` until the slowest partition has moved."""
        self._round += 1
        missing = set(range(PARTITIONS))
        async with Publisher(self._connection, publish_seconds=60) as publisher:
            # Keys that fall onto every partition; a few more do no harm.
            await publisher.publish(
                [
                    OutboundRecord(f"{self._prefix}in", b"%d" % key, b"%d" % self._round)
                    for key in range(40)
                ]
            )
        async with asyncio.timeout(90):
            while missing:
                batches = await self._consumer.getmany(timeout_ms=100)
                for records in batches.values():
                    for record in records:
                        if record.value == b"%d" % self._round:
                            _, partition, _ = dict(record.headers)["source"].decode().rsplit(":", 2)
                            missing.discard(int(partition))
        return time.monotonic() - since


@asynccontextmanager
async def probes(bootstrap: str, prefix: str) -> AsyncIterator[Probes]:
    consumer = AIOKafkaConsumer(
        f"{prefix}out",
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        yield Probes(bootstrap, prefix, consumer)
    finally:
        await consumer.stop()


def told(name: str, seconds: list[float], limit: float) -> None:
    shown = " ".join(f"{value:.1f}" for value in sorted(seconds))
    print(f"{name}: median {statistics.median(seconds):.1f} s of {len(seconds)}: {shown}")
    assert statistics.median(seconds) <= limit


async def test_partitions_of_a_killed_dynamic_member_move_on(kafka: str, tmp_path: Path) -> None:
    await create(kafka, PREFIX)
    seconds: list[float] = []
    async with probes(kafka, PREFIX) as probe:
        with Copier(kafka, PREFIX, tmp_path / "keeper") as keeper:
            await keeper.assigned()
            for number in range(ROUNDS):
                with Copier(kafka, PREFIX, tmp_path / str(number)) as victim:
                    await victim.assigned()
                    await probe.pass_through(time.monotonic())
                    victim.send(signal.SIGKILL)
                    seconds.append(await probe.pass_through(time.monotonic()))
    told("kill -9, dynamic member", seconds, KILL_SECONDS)


async def test_partitions_of_a_killed_static_member_move_on_when_it_is_restarted(
    kafka: str, tmp_path: Path
) -> None:
    await create(kafka, PREFIX)
    seconds: list[float] = []
    async with probes(kafka, PREFIX) as probe:
        with Copier(kafka, PREFIX, tmp_path / "keeper", instance="keeper") as keeper:
            await keeper.assigned()
            victim = Copier(kafka, PREFIX, tmp_path / "0", instance="victim")
            await victim.assigned()
            for number in range(ROUNDS):
                await probe.pass_through(time.monotonic())
                victim.send(signal.SIGKILL)
                killed = time.monotonic()
                await victim.ended()
                victim = Copier(kafka, PREFIX, tmp_path / str(number + 1), instance="victim")
                seconds.append(await probe.pass_through(killed))
            await victim.drained()
    told("kill -9, static member, restarted at once", seconds, KILL_SECONDS)


async def test_partitions_move_on_after_a_broker_was_killed_and_restarted(
    tmp_path: Path,
) -> None:
    seconds: list[float] = []
    up: list[float] = []
    with EmbeddedBroker() as broker:
        await create(broker.bootstrap, PREFIX)
        async with probes(broker.bootstrap, PREFIX) as probe:
            with Copier(broker.bootstrap, PREFIX, tmp_path / "copier") as copier:
                await copier.assigned()
                for _ in range(ROUNDS):
                    await probe.pass_through(time.monotonic())
                    broker.kill()
                    killed = time.monotonic()
                    await asyncio.to_thread(broker.restart)
                    up.append(time.monotonic() - killed)
                    seconds.append(await probe.pass_through(killed))
                await copier.drained()
    print(f"the broker itself: median {statistics.median(up):.1f} s until its port is open")
    told("broker killed and restarted", seconds, RESTART_SECONDS)
