"""Sessions with a real broker: standby, lag, lost offsets, outages, readiness."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from confluent_kafka import Consumer as StockConsumer
from confluent_kafka import TopicPartition as StockPartition

from ares_stream.errors import BrokerError, ReadError, TopicError
from ares_stream.lab.experiments.chaos.proxy import Proxy
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.streaming.admin import count_partitions, describe_topics
from ares_stream.streaming.client import Connection, create_connection
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.fetching import BatchConsumer
from ares_stream.streaming.log_identity import LogIdentity
from ares_stream.streaming.partition import OPENINGS, PartitionWorker
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.topic_ids import KnownTopics
from ares_stream.streaming.transactions import TransactionalProducer
from tests.support.sessions import Copying, Seen, rerouted, running, until

pytestmark = pytest.mark.kafka

INIT_PRODUCER_ID = 22
ADD_PARTITIONS_TO_TXN = 24
FETCH = 1
NOT_ENOUGH_REPLICAS = 19
"""What a broker says for a question of its own that the next one took the place of."""


def stock_lag(copying: Copying, partition: int = 0) -> int:
    """What a stock tool sees: the group's offset and the log's end, by another client library."""
    consumer = StockConsumer(
        {"bootstrap.servers": copying.direct.bootstrap, "group.id": copying.group}
    )
    try:
        place = StockPartition(copying.input, partition)
        [committed] = consumer.committed([place], timeout=10)
        _, end = consumer.get_watermark_offsets(place, timeout=10)
        return int(end - max(0, committed.offset))
    finally:
        consumer.close()


@contextlib.asynccontextmanager
async def transactional(copying: Copying) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=copying.direct.bootstrap, transactional_id=f"{copying.prefix}producer"
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def test_a_member_without_partitions_stays_in_the_group_and_takes_over(
    kafka: str, prefix: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    first, second = Seen(), Seen()
    pair = [copying.processor(seen, poll_interval_seconds=4.0) for seen in (first, second)]
    async with running(pair[0]), running(pair[1]):
        await until(lambda: all(item.missing() is None for item in pair))
        await asyncio.sleep(6.0)  # Longer than the poll interval, in which a standby polls nothing.
        assert [item.missing() for item in pair] == [None, None]
        holder = 0 if first.held else 1
        pair[holder].stop()
        await until(lambda: not (first, second)[holder].held)
        await copying.send(3)
        await until(lambda: (first, second)[1 - holder].records == 3)
        assert pair[1 - holder].missing() is None


async def test_partitions_without_a_commit_end_no_session_however_slowly_they_open(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine that is too busy: each session that ended had the group balance again, in
    which the other one ended."""
    start = PartitionWorker._start_producer

    async def slowly(worker: PartitionWorker) -> None:
        await asyncio.sleep(1.0)
        await start(worker)

    monkeypatch.setattr(PartitionWorker, "_start_producer", slowly)
    copying = Copying(kafka, prefix, partitions=4)
    await copying.create()
    first, second = Seen(), Seen()
    pair = [copying.processor(seen) for seen in (first, second)]
    async with running(pair[0]):
        await until(lambda: len(first.held) == 4)
        async with running(pair[1]):
            await until(lambda: len(first.held) == len(second.held) == 2)
            await until(lambda: [item.missing() for item in pair] == [None, None])
    assert first.restarts == second.restarts == []


async def test_a_process_that_was_taken_for_dead_joins_again_without_ending_its_session(
    kafka: str, prefix: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    first, second = Seen(), Seen()
    pair = [copying.processor(seen) for seen in (first, second)]
    async with running(pair[0]):
        await copying.send(1)
        await until(lambda: first.records == 1)
        assert pair[0]._session is not None
        # Another owner, whatever the group says: as a process that was stopped past its session
        # finds it when it goes on.
        spec = pair[0]._session._spec
        owner = AIOKafkaProducer(
            bootstrap_servers=kafka, transactional_id=spec.transactional_id(copying.input, 0)
        )
        await owner.start()
        await owner.stop()
        await copying.send(1)
        await until(lambda: "another owner has fenced it" in (pair[0].missing() or ""))
        async with running(pair[1]):
            await until(lambda: first.records + second.records >= 2)
            await until(lambda: [item.missing() for item in pair] == [None, None])
    assert first.restarts == []


async def test_a_drained_partition_has_no_lag_behind_a_transactional_producer(
    kafka: str, prefix: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    async with transactional(copying) as producer, running(copying.processor(seen)):
        for _ in range(3):
            async with producer.transaction():
                await producer.send_and_wait(copying.input, b"value")
        await until(lambda: seen.records == 3)
        await until(lambda: seen.lags.get(0) == 0)
        assert await asyncio.to_thread(stock_lag, copying) == 0
        with contextlib.suppress(RuntimeError):
            async with producer.transaction():
                await producer.send_and_wait(copying.input, b"aborted")
                raise RuntimeError
        ends = await asyncio.to_thread(stock_lag, copying)
        await until(lambda: seen.lags.get(0) == 0)
        async with asyncio.timeout(150):
            while ends:
                ends = await asyncio.to_thread(stock_lag, copying)
    assert seen.records == 3


async def test_records_behind_an_open_transaction_count_as_lag_and_hold_up_nobody(
    kafka: str, prefix: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    processor = copying.processor(seen)
    async with transactional(copying) as producer, running(processor):
        await until(lambda: seen.held)
        await producer.begin_transaction()
        for _ in range(5):
            await producer.send_and_wait(copying.input, b"value")
        await copying.send(4)
        await until(lambda: seen.lags.get(0) == 9)
        await asyncio.sleep(3.0)  # Longer than a stall: it is the producer that waits, not we.
        assert processor.missing() is None
        await producer.commit_transaction()
        await until(lambda: seen.records == 9)
        await until(lambda: seen.lags.get(0) == 0)


async def test_new_partitions_are_read_within_the_metadata_age(kafka: str, prefix: str) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    async with running(copying.processor(seen, metadata_seconds=1.0)):
        await until(lambda: seen.held == {0})
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.create_partitions({copying.input: NewPartitions(3)})
        await admin.close()
        await until(lambda: seen.held == {0, 1, 2})


async def commit(copying: Copying, offset: int, metadata: str = "") -> None:
    """The group's offset as another run left it."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=copying.direct.bootstrap,
        group_id=copying.group,
        enable_auto_commit=False,
    )
    await consumer.start()
    place = TopicPartition(copying.input, 0)
    consumer.assign([place])
    await consumer.commit({place: (offset, metadata)})
    await consumer.stop()


async def delete_before(copying: Copying, offset: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=copying.direct.bootstrap)
    await admin.start()
    place = TopicPartition(copying.input, 0)
    await admin.delete_records({place: RecordsToDelete(offset)})
    await admin.close()


@pytest.mark.parametrize(
    ("committed", "reset", "lost", "read"),
    [
        (2, "earliest", 4, 4),  # Retention deleted 0 to 5; 6 to 9 are there.
        (2, "latest", 8, 0),
        (25, "earliest", 15, 4),  # The log ends before the group's offset.
        (25, "latest", 19, 0),
    ],
)
async def test_an_offset_that_the_log_does_not_hold_is_counted_told_and_passed_by_the_policy(
    kafka: str, prefix: str, committed: int, reset: str, lost: int, read: int
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(10)
    await delete_before(copying, 6)
    await commit(copying, committed)
    seen = Seen()
    processor = copying.processor(seen, offset_reset=reset)
    async with running(processor):
        await until(lambda: seen.losses)
        [loss] = seen.losses
        assert loss.records == lost
        foreign, note = processor.notes()
        assert "was committed by somebody else" in foreign
        assert f"committed offset {committed}, the log holds 6 to 10" in note
        await copying.send(2)
        await until(lambda: seen.records == read + 2)


async def test_a_loss_is_told_once_whoever_reads_next(kafka: str, prefix: str) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(3)
    await commit(copying, 25)
    first, second = Seen(), Seen()
    async with running(copying.processor(first, offset_reset="latest")):
        await until(lambda: first.losses)
    # No record came: the first reader committed where reading goes on.
    processor = copying.processor(second, offset_reset="latest")
    async with running(processor):
        await until(lambda: processor.missing() is None)
    assert (len(first.losses), second.losses) == (1, [])


async def test_the_policy_may_be_to_stop_and_ask_a_person(kafka: str, prefix: str) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(4)
    await commit(copying, 9)
    with pytest.raises(ReadError, match="committed offset 9, but the log holds 0 to 4"):
        async with asyncio.timeout(150):
            await copying.processor(Seen(), offset_reset="stop").run()


@pytest.mark.parametrize("count", [2, 8], ids=["shorter", "longer than what was read"])
async def test_a_topic_made_anew_under_a_reader_is_read_from_its_beginning(
    kafka: str, prefix: str, count: int
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    processor = copying.processor(seen)
    async with running(processor):
        await copying.send(3)
        await until(lambda: seen.records == 3)
        await copying.make_input_anew()
        await copying.send(count)
        await until(lambda: seen.losses)
        await until(lambda: seen.records >= 3 + count)
        [loss] = seen.losses
        assert (loss.committed, loss.change, loss.resumed) == (3, "anew", 0)
        assert any("is of a topic that is gone" in note for note in processor.notes())
    ranges = await snapshot(copying.direct, [copying.output])
    keys = Counter([record.key async for record in read(copying.direct, ranges)])
    assert all(keys[b"%d" % n] >= 1 + (n < 3) for n in range(count))


@pytest.mark.parametrize("reset", ["earliest", "latest", "stop"])
async def test_an_offset_of_another_topic_of_the_name_is_known_after_a_restart(
    kafka: str, prefix: str, reset: str
) -> None:
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(9)
    # As a restored cluster has it: the group's offset outlived the topic.
    await commit(copying, 4, str(LogIdentity(str(uuid.uuid4()))))
    seen = Seen()
    processor = copying.processor(seen, offset_reset=reset)
    if reset == "stop":
        with pytest.raises(ReadError, match="but the log of a topic that was made anew holds 0 to"):
            async with asyncio.timeout(150):
                await processor.run()
        return
    async with running(processor):
        await until(lambda: processor.missing() is None)
        await copying.send(1)
        await until(lambda: seen.records == (10 if reset == "earliest" else 1))
        assert [loss.change for loss in seen.losses] == ["anew"]
    # What is committed from now on is of this topic.
    again = Seen()
    async with running(copying.processor(again)):
        await copying.send(1)
        await until(lambda: again.records == 1)
        assert again.losses == []


async def test_many_partitions_open_a_few_at_a_time(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that a thousand producers ask at once answers none of them in time; and an answer
    that names every partition of a topic is not asked for by each of them."""
    starting, most = 0, 0
    start = TransactionalProducer.start
    asked: list[list[str]] = []
    known = BatchConsumer.known_topics

    async def told(self: BatchConsumer, topics: Collection[str]) -> KnownTopics:
        asked.append([*topics])
        return await known(self, topics)

    async def counted(self: TransactionalProducer) -> None:
        nonlocal starting, most
        starting += 1
        most = max(most, starting)
        try:
            await start(self)
        finally:
            starting -= 1

    monkeypatch.setattr(TransactionalProducer, "start", counted)
    monkeypatch.setattr(BatchConsumer, "known_topics", told)
    monkeypatch.setattr("ares_stream.streaming.session.ID_SECONDS", 1000.0)
    copying = Copying(kafka, prefix, partitions=3 * OPENINGS)
    await copying.create()
    seen = Seen()
    processor = copying.processor(seen, stall_seconds=30.0)
    async with running(processor):
        await until(lambda: len(processor.partitions) == 3 * OPENINGS)
        await copying.send(200)
        await until(lambda: seen.records == 200)
    assert 1 < most <= OPENINGS
    assert asked.count([copying.input]) == 1


async def test_a_brokers_own_questions_do_not_hinder_each_other(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records and offsets that were written at once were refused in one of seven transactions, and
    tried again a tenth of a second later."""
    answers: list[int] = []
    send = AIOKafkaClient.send

    async def noted(self: AIOKafkaClient, node: int, request: Any, **more: Any) -> Any:
        response = await send(self, node, request, **more)
        if isinstance(request, ProduceRequest):
            answers.extend(code for _, parts in response.topics for _, code, *_ in parts)
        return response

    monkeypatch.setattr(AIOKafkaClient, "send", noted)
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    async with running(copying.processor(seen, commit_records=1)):
        await copying.send(100)
        await until(lambda: seen.records == 100)
        await until(lambda: len(answers) >= 50)
    assert NOT_ENOUGH_REPLICAS not in answers


async def test_a_coordinator_that_cannot_be_reached_ends_readiness_and_then_the_patience(
    kafka: str, prefix: str
) -> None:
    host, _, port = kafka.partition(":")
    copying = Copying(kafka, prefix)
    await copying.create()
    await copying.send(5)
    seen = Seen()
    async with Proxy(host, int(port)) as proxy:
        # The group's coordinator answers, that of transactions does not.
        proxy.mute(INIT_PRODUCER_ID, ADD_PARTITIONS_TO_TXN)
        through = KafkaConnection(bootstrap=f"127.0.0.1:{proxy.port}")
        copying.connection = through
        processor = copying.processor(seen, Patience(8.0))
        with rerouted(kafka, proxy):
            task = asyncio.create_task(processor.run())
            await until(lambda: "does not open yet" in (processor.missing() or ""))
            with pytest.raises(BrokerError, match=r"does not open yet.*no progress for 8 s"):
                async with asyncio.timeout(150):
                    await task
    assert seen.records == 0


MEMBER = """
import sys
from confluent_kafka import Consumer

bootstrap, group, topic = sys.argv[1:]
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": group,
        "session.timeout.ms": 6000,
        "partition.assignment.strategy": "roundrobin",
        "enable.auto.commit": False,
    }
)
consumer.subscribe([topic])
while not consumer.assignment():
    consumer.poll(0.1)
print("joined", flush=True)
sys.stdin.read()
"""


async def test_a_session_waits_until_the_group_has_given_a_dead_member_up(
    kafka: str, prefix: str
) -> None:
    """Who leaves before that comes back as somebody else, and the group waits for that one too."""
    copying = Copying(kafka, prefix)
    await copying.create()
    pipe = asyncio.subprocess.PIPE
    member = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MEMBER, kafka, copying.group, copying.input, stdin=pipe, stdout=pipe
    )
    assert member.stdout is not None
    async with asyncio.timeout(150):
        assert await member.stdout.readline() == b"joined\n"
    member.kill()
    await member.wait()
    seen = Seen()
    async with running(copying.processor(seen, stall_seconds=0.5)):
        await until(lambda: seen.held)
    assert seen.restarts == []


async def test_a_black_hole_is_told_and_survived(kafka: str, prefix: str) -> None:
    host, _, port = kafka.partition(":")
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    async with Proxy(host, int(port)) as proxy:
        copying.connection = KafkaConnection(bootstrap=f"127.0.0.1:{proxy.port}")
        processor = copying.processor(seen)
        with rerouted(kafka, proxy):
            async with running(processor):
                await copying.send(3)
                await until(lambda: seen.records == 3)
                proxy.deaf = True
                await until(lambda: processor.missing() is not None)
                proxy.heal()
                await copying.send(3)
                await until(lambda: seen.records == 6)
                await until(lambda: processor.missing() is None)


async def test_a_reader_that_fetches_no_more_is_found_out_and_made_anew(
    kafka: str, prefix: str
) -> None:
    host, _, port = kafka.partition(":")
    copying = Copying(kafka, prefix)
    await copying.create()
    seen = Seen()
    async with Proxy(host, int(port)) as proxy:
        copying.connection = KafkaConnection(bootstrap=f"127.0.0.1:{proxy.port}")
        processor = copying.processor(seen)
        with rerouted(kafka, proxy):
            async with running(processor):
                await copying.send(1)
                await until(lambda: seen.records == 1)
                assert processor._session is not None
                stuck = processor._session._consumer
                stuck._fetcher._fetch_task.cancel()  # aiokafka#1154: nothing fetches any more.
                await asyncio.sleep(1.0)  # The last fetch on its way comes back empty.
                await copying.send(2)
                await until(lambda: "nothing was read" in (processor.missing() or ""))
                await until(lambda: seen.records == 3)
                assert seen.restarts


async def test_a_broker_that_makes_topics_by_itself_is_not_made_to() -> None:
    with EmbeddedBroker(properties={"auto.create.topics.enable": "true"}) as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        wanted = ["a.in", "a.out", "a.dead"]
        assert await describe_topics(connection, wanted) == {}
        with pytest.raises(TopicError, match="missing on"):
            await count_partitions(connection, wanted)
        with pytest.raises(TopicError, match="missing on"):
            await snapshot(connection, ["a.read"])
        copying = Copying(broker.bootstrap, "a.")
        with pytest.raises(TopicError, match="missing on"):
            await copying.processor(Seen()).run()
        with pytest.raises((TopicError, BrokerError)):
            async with Publisher(connection, publish_seconds=3) as publisher:
                await publisher.publish([OutboundRecord("a.sent", None, b"x")])
        admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
        await admin.start()
        made = await admin.list_topics()
        await admin.close()
        assert [name for name in made if name.startswith("a.")] == []


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_a_stop_that_meets_a_dead_broker_ends_in_peace_within_the_drain(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Connection] = []

    async def connected(host: str, port: int, **arguments: Any) -> Connection:
        connection = await create_connection(host, port, **arguments)
        made.append(connection)
        return connection

    monkeypatch.setattr("aiokafka.client.create_conn", connected)
    with EmbeddedBroker() as broker:
        copying = Copying(broker.bootstrap, "a.")
        await copying.create()
        seen = Seen()
        processor = copying.processor(seen, drain_seconds=3.0)
        task = asyncio.create_task(processor.run())
        await copying.send(3)
        await until(lambda: seen.records == 3)
        getattr(broker, fault)()
        await until(lambda: processor.missing() is not None)
        processor.stop()
        async with asyncio.timeout(60):
            await task
        assert made
        assert [connection for connection in made if connection._writer is not None] == []


async def test_a_broker_that_is_away_for_longer_than_a_session_is_waited_for() -> None:
    with EmbeddedBroker() as broker:
        copying = Copying(broker.bootstrap, "a.", partitions=3)
        await copying.create()
        seen = Seen()
        processor = copying.processor(seen, Patience(300.0))
        async with running(processor):
            await copying.send(30)
            await until(lambda: seen.records == 30)
            broker.kill()
            await until(lambda: processor.missing() is not None)
            await asyncio.sleep(10.0)  # Longer than the session's time-out.
            assert processor.missing() is not None
            await asyncio.to_thread(broker.restart)
            await copying.send(30)
            # What was in flight may be handled again.
            await until(lambda: seen.records >= 60)
            await until(lambda: processor.missing() is None)
