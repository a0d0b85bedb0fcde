"""Three brokers that come and go, and partitions that move between them, under a processor, a
monitor and a notary: counted by a client that shares no code with them. And under the journal and
the queue that repairer and prober keep.

    pytest tests/chaos/test_several_brokers.py -s
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from ares_stream.audit.notes import NoteSigner
from ares_stream.errors import BrokerError
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.base import OffsetRange
from ares_stream.records.topics import TopicSpec, durable, specs
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.queue import Queue, Waiting
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.followers import counted, signed, verdicts
from tests.support.notarised import NAME
from tests.support.service_process import MonitorProcess, NotaryProcess
from tests.support.sessions import Copying, Seen, running, until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]

PREFIX = "x."
NODES = 3
PARTITIONS = 3
MEMORY = ("journal", "queue")
EVERY_SECONDS = 0.02
SECONDS = 180.0
"""For a partition to move on, on a machine that does much else."""


@dataclass
class Traffic:
    """Records to copy, and a verdict for every fifth, sent without a pause by a client of its own;
    `sent` is what it was told is written."""

    copying: Copying
    sent: Counter[bytes] = field(default_factory=Counter)
    verdicts: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until `stop`."""
        producer = Producer(
            {
                "bootstrap.servers": self.copying.direct.bootstrap,
                "enable.idempotence": True,
                "delivery.timeout.ms": int(1000 * SECONDS),
                "log_level": 0,
            }
        )
        number = 0
        while not self._stop.wait(EVERY_SECONDS):
            key = b"%d" % number
            producer.produce(self.copying.input, key=key, value=b"v", on_delivery=self._written)
            if number % 5 == 0:
                (record,) = verdicts(PREFIX, [number])
                producer.produce(record.topic, record.value, record.key, on_delivery=self._written)
            number += 1
            producer.poll(0)
        assert producer.flush(SECONDS) == 0

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    def _written(self, error: object, message: Message) -> None:
        assert error is None, error
        if message.topic() == self.copying.input:
            self.sent[message.key() or b""] += 1
        else:
            self.verdicts += 1


def copies(copying: Copying) -> Counter[bytes]:
    """Committed copies by their key."""
    consumer = Consumer(
        {
            "bootstrap.servers": copying.direct.bootstrap,
            "group.id": f"{copying.prefix}count",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    found: Counter[bytes] = Counter()
    left = set(range(PARTITIONS))
    consumer.assign([TopicPartition(copying.output, number, 0) for number in left])
    while left:
        message = consumer.poll(30)
        assert message is not None
        if message.error() is None:
            found[message.key() or b""] += 1
        else:
            left.discard(message.partition())
    consumer.close()
    return found


@pytest.fixture
def brokers() -> Iterator[tuple[EmbeddedBroker, Executor]]:
    """With the thread that started them, since they end with it."""
    forever = {"log.retention.ms": "-1"}
    with ThreadPoolExecutor(1) as thread:
        broker = EmbeddedBroker(nodes=NODES, properties=forever)
        thread.submit(broker.start).result()
        try:
            yield broker, thread
        finally:
            thread.submit(broker.stop).result()


MovesOn = Callable[[str], Awaitable[None]]


@asynccontextmanager
async def under_traffic(
    broker: EmbeddedBroker, folder: Path, replication: int
) -> AsyncIterator[tuple[MovesOn, Sequence[str]]]:
    """All at work; in the end every record was copied once, counted once and signed once. Gives a
    wait until what is sent now was copied, and the topics."""
    connection = KafkaConnection(bootstrap=broker.bootstrap)
    wanted = specs(PREFIX, partitions=PARTITIONS, replication=replication)
    copying = Copying(broker.bootstrap, f"{PREFIX}copying.")
    own = [
        TopicSpec(name, PARTITIONS, replication, durable(replication))
        for name in (copying.input, copying.output, copying.dead)
    ]
    await create_topics(connection, [*wanted, *own])
    signer = NoteSigner.generate(NAME)
    seen, traffic = Seen(), Traffic(copying)
    processor = copying.processor(seen, session_seconds=9.0, stall_seconds=60.0)

    async def moves_on(what: str) -> None:
        began, before = time.monotonic(), sum(traffic.sent.values())
        await until(lambda: seen.records > before, SECONDS)
        print(f"{what}: moved on after {time.monotonic() - began:.1f} s; {seen.records} records")

    with ExitStack() as stack:
        monitor = stack.enter_context(MonitorProcess(broker.bootstrap, PREFIX, folder / "monitor"))
        notary = stack.enter_context(
            NotaryProcess(broker.bootstrap, PREFIX, folder / "notary", [signer])
        )
        async with running(processor):
            sending = asyncio.create_task(asyncio.to_thread(traffic.run))
            try:
                await moves_on("start")
                yield moves_on, [spec.name for spec in (*wanted, *own)]
            finally:
                traffic.stop()
                await sending
            await until(lambda: seen.records >= sum(traffic.sent.values()), SECONDS)
        assert await asyncio.to_thread(copies, copying) == traffic.sent
        await counted(connection, PREFIX, traffic.verdicts)
        await signed(connection, PREFIX, traffic.verdicts)
        assert [monitor.stop(), notary.stop()] == [0, 0]
    print(
        f"{sum(traffic.sent.values())} records, {traffic.verdicts} verdicts, none lost, none twice"
    )


async def test_brokers_that_are_killed_and_stand_still_lose_and_double_nothing(
    brokers: tuple[EmbeddedBroker, Executor], tmp_path: Path
) -> None:
    """Each of three in turn, then two of them, after which nobody may write."""
    broker, thread = brokers
    loop = asyncio.get_running_loop()

    async def do(action: Callable[[int], None], *numbers: int) -> None:
        for number in numbers:
            await loop.run_in_executor(thread, action, number)

    async with under_traffic(broker, tmp_path, NODES) as (moves_on, _):
        for number in range(1, NODES + 1):
            await do(broker.kill, number)
            await moves_on(f"broker {number} killed")
            await do(broker.restart, number)
            await moves_on(f"broker {number} back")
        await do(broker.kill, 1, 2)
        await asyncio.sleep(10)
        await do(broker.restart, 1, 2)
        await moves_on("two killed and back")
        await do(broker.pause, 3)
        await moves_on("one paused")
        await do(broker.resume, 3)
        await moves_on("continued")


async def move(admin: AIOKafkaAdminClient, names: Sequence[str], step: int) -> None:
    """Give every partition to another broker."""
    plan: list[Any] = []
    for topic in await admin.describe_topics(list(names)):
        numbers = [item["partition"] for item in topic["partitions"]]
        partitions: list[Any] = [(number, [(number + step) % NODES + 1], {}) for number in numbers]
        plan.append((topic["topic"], partitions, {}))
    request = AlterPartitionReassignmentsRequest(timeout_ms=20_000, topics=plan, tags={})
    answer = await admin._send_to_controller(request)
    assert not answer.error_code


async def test_partitions_that_move_between_brokers_lose_and_double_nothing(
    brokers: tuple[EmbeddedBroker, Executor], tmp_path: Path
) -> None:
    """Every topic of ours, and those of Kafka's own that hold offsets and transactions."""
    broker, _ = brokers
    async with under_traffic(broker, tmp_path, 1) as (moves_on, names):
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        for step in range(1, 2 * NODES):
            await move(admin, names, step)
            await moves_on(f"moved {step}")
        await move(admin, ["__consumer_offsets", "__transaction_state"], 1)
        await moves_on("coordinators moved")
        await admin.close()


@dataclass
class Memory:
    """What a repairer and a prober keep: a journal that appends numbers to two topics at once, and
    a queue that settles what stands in one. Errors of Kafka are met as services meet them: the
    journal is entered again, and its last number read."""

    connection: KafkaConnection
    appended: int = 0
    settled: Counter[int] = field(default_factory=Counter)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def append(self) -> None:
        """Append until `stop`."""
        while not self._stop.is_set():
            with contextlib.suppress(BrokerError):
                async with Journal(self.connection, f"{PREFIX}owner") as journal:
                    number = max(await self.numbers("journal"), default=-1) + 1
                    while not self._stop.is_set():
                        value = b"%d" % number
                        await journal.append(
                            [OutboundRecord(f"{PREFIX}{name}", value, value) for name in MEMORY]
                        )
                        number += 1
                        self.appended += 1

    async def settle(self) -> None:
        """Take what waits until `stop` and nothing waits. A commit that went unanswered may have
        been made: what is read again counts once more, and the offset never goes back."""
        queue = Queue(self.connection, f"{PREFIX}queue", f"{PREFIX}group")
        await queue.start()
        committed: Counter[int] = Counter()
        while True:
            waiting: list[Waiting] = []
            with contextlib.suppress(BrokerError):
                waiting = await queue.waiting()
                for item in waiting:
                    assert item.committed >= committed[item.partition]
                    committed[item.partition] = item.committed
                    whole = OffsetRange(
                        topic=f"{PREFIX}queue",
                        partition=item.partition,
                        start=item.committed,
                        end=item.stable,
                    )
                    found = [
                        int(record.key or b"") async for record in read(self.connection, [whole])
                    ]
                    await queue.commit([whole])
                    self.settled.update(found)
            if self._stop.is_set() and waiting and all(i.committed == i.stable for i in waiting):
                return await queue.stop()
            await asyncio.sleep(0.1)

    def stop(self) -> None:
        """Append no more."""
        self._stop.set()

    async def numbers(self, name: str) -> list[int]:
        """All that stands in one of the topics."""
        ranges = await snapshot(self.connection, [f"{PREFIX}{name}"])
        return [int(record.key or b"") async for record in read(self.connection, ranges)]


async def test_a_journal_and_a_queue_lose_and_double_nothing_while_brokers_come_and_go(
    brokers: tuple[EmbeddedBroker, Executor],
) -> None:
    broker, thread = brokers
    loop = asyncio.get_running_loop()
    memory = Memory(KafkaConnection(bootstrap=broker.bootstrap))
    safe = durable(NODES)
    await create_topics(
        memory.connection,
        [TopicSpec(f"{PREFIX}{name}", PARTITIONS, NODES, safe) for name in MEMORY],
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(memory.append())
        tasks.create_task(memory.settle())
        for node in range(1, NODES + 1):
            for change in (broker.kill, broker.restart):
                await loop.run_in_executor(thread, change, node)
                wanted = memory.appended + 50
                await until(lambda wanted=wanted: memory.appended >= wanted, SECONDS)  # type: ignore[misc]
        memory.stop()
    numbers = await memory.numbers("journal")
    assert sorted(numbers) == list(range(len(numbers)))
    assert sorted(await memory.numbers("queue")) == sorted(numbers)
    assert set(memory.settled) == set(numbers)
    print(
        f"{len(numbers)} appended and settled, {memory.settled.total() - len(numbers)} read again"
    )
