"""A copying processor with what a test of its session looks at."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from aiokafka.admin import AIOKafkaAdminClient

from ares_stream.errors import BrokerError, TopicError
from ares_stream.lab.experiments.chaos.proxy import Proxy
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import Handler, ProcessorObserver, ProcessorPolicy
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome
from ares_stream.streaming.resume import OffsetLoss

QUICK = ProcessorPolicy(
    commit_seconds=0.02, session_seconds=6.0, rebalance_seconds=8.0, stall_seconds=2.0
)


class Seen(ProcessorObserver):
    """What happened."""

    def __init__(self) -> None:
        self.records = 0
        self.by_topic: Counter[str] = Counter()
        self.lags: dict[int, int] = {}
        self.losses: list[OffsetLoss] = []
        self.restarts: list[str] = []
        self.held: set[int] = set()

    def committed(self, topic: str, partition: int, records: int, seconds: float) -> None:
        self.records += records
        self.by_topic[topic] += records

    def lag(self, topic: str, partition: int, records: int) -> None:
        self.lags[partition] = records

    def lost(self, loss: OffsetLoss) -> None:
        self.losses.append(loss)

    def restarted(self, error: str) -> None:
        self.restarts.append(error)

    def assigned(self, topic: str, partition: int) -> None:
        self.held.add(partition)

    def revoked(self, topic: str, partition: int) -> None:
        self.held.discard(partition)


class Copy:
    def __init__(self, topic: str) -> None:
        self._topic = topic

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        return [(OutboundRecord(self._topic, record.key, record.value),) for record in records]


class Copying:
    """Topics PREFIXin, PREFIXout and PREFIXdead, and a processor between them. `direct` is how
    the test itself reaches the broker, `connection` how the processor does."""

    def __init__(
        self, bootstrap: str, prefix: str, *, through: str | None = None, partitions: int = 1
    ) -> None:
        self.direct = KafkaConnection(bootstrap=bootstrap)
        self.connection = KafkaConnection(bootstrap=through or bootstrap)
        self.prefix = prefix
        self.input, self.output, self.dead = (f"{prefix}{n}" for n in ("in", "out", "dead"))
        self.group = f"{prefix}group"
        self._partitions = partitions

    async def create(self) -> None:
        await create_topics(
            self.direct,
            [
                TopicSpec(self.input, self._partitions, 1),
                TopicSpec(self.output, 1, 1),
                TopicSpec(self.dead, 1, 1),
            ],
        )

    async def make_input_anew(self) -> None:
        """Delete the input topic, and make another of its name."""
        await make_anew(self.direct, [TopicSpec(self.input, self._partitions, 1)])

    async def send(self, count: int) -> None:
        async with Publisher(self.direct) as publisher:
            await publisher.publish(
                [OutboundRecord(self.input, b"%d" % n, b"value") for n in range(count)]
            )

    def processor(
        self,
        seen: Seen,
        patience: Patience | None = None,
        *,
        handler: Handler | None = None,
        **policy: object,
    ) -> Processor:
        return Processor(
            self.connection,
            service="copier",
            group=self.group,
            topics=[self.input],
            handler=handler or Copy(self.output),
            deadletter_topic=self.dead,
            output_topics=[self.output],
            id_prefix=self.prefix,
            policy=replace(QUICK, **policy),  # type: ignore[arg-type]
            observer=seen,
            patience=patience,
        )


@contextmanager
def rerouted(kafka: str, proxy: Proxy) -> Iterator[None]:
    """Clients that came through the proxy stay behind it: the broker tells its own address."""
    from aiokafka import client

    original = client.create_conn
    behind = int(kafka.rpartition(":")[2])

    async def create_conn(host: str, port: int, **more: object) -> object:
        return await original(host, proxy.port if port == behind else port, **more)

    client.create_conn = create_conn
    try:
        yield
    finally:
        client.create_conn = original


async def make_anew(connection: KafkaConnection, specs: Sequence[TopicSpec]) -> None:
    """Delete topics, and make others of their names."""
    admin = AIOKafkaAdminClient(bootstrap_servers=connection.bootstrap)
    await admin.start()
    await admin.delete_topics([spec.name for spec in specs])
    await admin.close()
    async with asyncio.timeout(150):
        while True:
            try:
                # A topic that is still being deleted is taken for one that is there.
                if len(await create_topics(connection, specs)) == len(specs):
                    return
            except (TopicError, BrokerError):
                pass
            await asyncio.sleep(0.2)


@asynccontextmanager
async def running(processor: Processor) -> AsyncIterator[asyncio.Task[None]]:
    """The processor at work; stopped, and its end awaited, when the block ends."""
    task = asyncio.create_task(processor.run())
    try:
        yield task
        processor.stop()
        async with asyncio.timeout(150):
            await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def let_go() -> None:
    """Have what nobody holds any more closed, while the loop that closes it still runs."""
    gc.collect()
    await asyncio.sleep(0.05)


async def until(condition: Callable[[], object], seconds: float = 150.0) -> None:
    """Return once it holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in Kafka
            await asyncio.sleep(0.02)
