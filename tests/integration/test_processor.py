"""Exactly once on a real broker: nothing lost or doubled, order per key, poison set aside."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from ares_stream.errors import BreakerOpen, BrokerError, ResourceError, TopicError
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.breaker import BreakerPolicy
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorObserver, ProcessorPolicy
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection

pytestmark = pytest.mark.kafka

KEYS = 7
DEADLINE = 60.0


class Copier:
    """Copies each record; `poison` values raise, `bad` values are rejected, and the machine has no
    memory for `huge` ones."""

    def __init__(self) -> None:
        self.largest = 0

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        self.largest = max(self.largest, len(records))
        if any(record.value == b"poison" for record in records):
            raise ValueError("cannot chew this")
        if any(record.value == b"huge" for record in records):
            raise ResourceError("the GPU has no memory left")
        return [self._one(record) for record in records]

    @staticmethod
    def _one(record: InboundRecord) -> Outcome:
        if record.value == b"bad":
            return Rejection.of("decode", ValueError("not good"))
        out = record.topic.removesuffix("in") + "out"
        value = (record.value or b"") * (30_000 if record.value == b"grow" else 1)
        return (OutboundRecord(out, record.key, value, record.headers),)


class Counting(ProcessorObserver):
    """Counts what was committed, and wakes whoever waits for a number of records."""

    def __init__(self) -> None:
        self.records = 0
        self.outcomes: Counter[str] = Counter()
        self.changed = asyncio.Event()

    def committed(self, topic: str, partition: int, records: int, seconds: float) -> None:
        self.records += records
        self.changed.set()

    def transaction(self, outcome: str) -> None:
        self.outcomes[outcome] += 1

    def assigned(self, topic: str, partition: int) -> None:
        self.changed.set()


class Stage:
    """Topics of one test, and processors that run on them."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.connection = KafkaConnection(bootstrap=bootstrap)
        self.input, self.output, self.dead = (prefix + name for name in ("in", "out", "dead"))
        self.prefix = prefix

    async def prepare(self, *, partitions: int = 2, **config: str) -> None:
        await create_topics(
            self.connection,
            [
                TopicSpec(self.input, partitions, 1, {}),
                TopicSpec(self.output, partitions, 1, config),
                TopicSpec(self.dead, 1, 1, {}),
            ],
        )

    async def send(self, values: Sequence[bytes], *, start: int = 0) -> None:
        records = [
            OutboundRecord(self.input, b"key-%d" % (n % KEYS), value, (("n", b"%d" % n),))
            for n, value in enumerate(values, start)
        ]
        async with Publisher(self.connection) as publisher:
            await publisher.publish(records)

    def processor(
        self,
        observer: ProcessorObserver,
        policy: ProcessorPolicy | None = None,
        patience: Patience | None = None,
    ) -> Processor:
        return Processor(
            self.connection,
            service="copier",
            group=self.prefix + "group",
            topics=[self.input],
            handler=Copier(),
            deadletter_topic=self.dead,
            id_prefix=self.prefix,
            policy=policy,
            observer=observer,
            patience=patience,
        )

    async def read(self, topic: str) -> list[InboundRecord]:
        ranges = await snapshot(self.connection, [topic])
        return [record async for record in read(self.connection, ranges)]


@asynccontextmanager
async def running(processor: Processor) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(processor.run())
    try:
        yield task
        processor.stop()
        async with asyncio.timeout(DEADLINE):
            await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task


async def until(condition: Callable[[], bool], *observers: Counting) -> None:
    """Wait for what observers count."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            for observer in observers:
                observer.changed.clear()
            if condition():
                return
            waits = [asyncio.create_task(observer.changed.wait()) for observer in observers]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()


def assert_exactly_once(copies: Sequence[InboundRecord], expected: Sequence[int]) -> None:
    numbers = [int(record.header_map["n"]) for record in copies]
    assert Counter(numbers) == Counter(expected)
    for key in range(KEYS):
        mine = [number for number in numbers if number % KEYS == key]
        assert mine == sorted(mine)


async def test_two_thousand_records_good_and_bad(kafka: str, prefix: str) -> None:
    stage, seen = Stage(kafka, prefix), Counting()
    await stage.prepare()
    kinds = {3: b"bad", 400: b"poison", 401: b"poison", 1500: b"bad"}
    values = [kinds.get(number, b"fine-%d" % number) for number in range(2000)]
    await stage.send(values)
    async with running(stage.processor(seen)):
        await until(lambda: seen.records >= 2000, seen)
    copies, dead = await stage.read(stage.output), await stage.read(stage.dead)
    assert_exactly_once(copies, [n for n in range(2000) if n not in kinds])
    assert Counter(record.value for record in dead) == Counter(kinds.values())
    stages = Counter(record.header_map["__connect.errors.stage"] for record in dead)
    assert stages == {b"decode": 2, b"handle": 2}
    assert set(seen.outcomes) == {"committed"}


async def test_a_dead_letter_is_the_record_byte_for_byte_with_its_reason(
    kafka: str, prefix: str
) -> None:
    stage, seen = Stage(kafka, prefix), Counting()
    await stage.prepare(partitions=1)
    await stage.send([b"fine", b"bad"])
    async with running(stage.processor(seen)):
        await until(lambda: seen.records >= 2, seen)
    (letter,) = await stage.read(stage.dead)
    headers = letter.header_map
    assert (letter.key, letter.value, headers["n"]) == (b"key-1", b"bad", b"1")
    assert headers["__connect.errors.topic"] == stage.input.encode()
    assert headers["__connect.errors.offset"] == b"1"
    assert headers["__connect.errors.exception.class.name"] == b"builtins.ValueError"
    assert headers["__connect.errors.exception.message"] == b"not good"


async def test_a_restart_goes_on_where_the_last_commit_ended(kafka: str, prefix: str) -> None:
    stage = Stage(kafka, prefix)
    await stage.prepare()
    for part in range(3):
        seen = Counting()
        await stage.send([b"x"] * 100, start=part * 100)
        async with running(stage.processor(seen)):
            await until(lambda seen=seen: seen.records >= 100, seen)  # type: ignore[misc]
        assert seen.records == 100
    assert_exactly_once(await stage.read(stage.output), range(300))


async def test_an_output_too_large_for_its_topic_is_a_dead_letter_alone(
    kafka: str, prefix: str
) -> None:
    stage, seen = Stage(kafka, prefix), Counting()
    await stage.prepare(partitions=1, **{"max.message.bytes": "50000"})
    values = [b"fine"] * 60
    values[17] = b"grow"
    await stage.send(values)
    async with running(stage.processor(seen)):
        await until(lambda: seen.records >= 60, seen)
    assert_exactly_once(await stage.read(stage.output), [n for n in range(60) if n != 17])
    (letter,) = await stage.read(stage.dead)
    assert letter.value == b"grow"
    assert letter.header_map["__connect.errors.stage"] == b"publish"


async def test_two_processors_share_and_hand_over(kafka: str, prefix: str) -> None:
    stage, first, second = Stage(kafka, prefix), Counting(), Counting()
    await stage.prepare(partitions=4)
    await stage.send([b"a"] * 500)
    one, two = stage.processor(first), stage.processor(second)
    async with running(one):
        await until(lambda: first.records >= 100, first)
        async with running(two):
            await until(
                lambda: len(one.partitions) == 2 and len(two.partitions) == 2, first, second
            )
            await stage.send([b"b"] * 500, start=500)
            await until(lambda: first.records + second.records >= 1000, first, second)
        await until(lambda: len(one.partitions) == 4, first)
    assert_exactly_once(await stage.read(stage.output), range(1000))


async def test_a_second_owner_fences_the_first(kafka: str, prefix: str) -> None:
    """As after a pause longer than the session: the partition has a new owner, and the old one
    commits nothing any more."""
    stage, seen = Stage(kafka, prefix), Counting()
    await stage.prepare(partitions=1)
    await stage.send([b"a"] * 50)
    async with running(stage.processor(seen)):
        await until(lambda: seen.records >= 50, seen)
        other = Processor(
            stage.connection,
            service="copier",
            group=prefix + "another-group",
            topics=[stage.input],
            handler=Copier(),
            deadletter_topic=stage.dead,
            id_prefix=prefix,
            observer=(theirs := Counting()),
        )
        async with running(other):
            await until(lambda: theirs.records >= 50, theirs)
        await stage.send([b"b"] * 30, start=50)
        await until(lambda: seen.records >= 80, seen)
    assert seen.outcomes["fenced"] >= 1
    numbers = Counter(int(r.header_map["n"]) for r in await stage.read(stage.output))
    assert numbers == Counter({n: 2 if n < 50 else 1 for n in range(80)})


async def test_too_many_dead_letters_open_the_breaker(kafka: str, prefix: str) -> None:
    stage, seen = Stage(kafka, prefix), Counting()
    await stage.prepare(partitions=1)
    await stage.send([b"bad"] * 300)
    policy = ProcessorPolicy(commit_records=10, breaker=BreakerPolicy(consecutive=40))
    with pytest.raises(BreakerOpen, match=r"40 records in a row were refused \(40 x not good\)"):
        async with asyncio.timeout(DEADLINE):
            await stage.processor(seen, policy).run()
    assert len(await stage.read(stage.dead)) >= 40


async def test_a_missing_topic_is_named(kafka: str, prefix: str) -> None:
    with pytest.raises(TopicError, match=prefix + "in"):
        await Stage(kafka, prefix).processor(Counting()).run()


async def test_an_unreachable_broker_is_named() -> None:
    stage = Stage("127.0.0.1:1", "nowhere-")
    with pytest.raises(BrokerError, match=r"127\.0\.0\.1:1: .*no progress for 1 s"):
        await stage.processor(Counting(), patience=Patience(1.0)).run()


async def test_a_machine_without_memory_refuses_no_record_and_ends_the_processor(
    kafka: str, prefix: str
) -> None:
    stage = Stage(kafka, prefix)
    await stage.prepare(partitions=1)
    await stage.send([b"good", b"huge", b"good"])
    counting = Counting()
    processor = stage.processor(counting, ProcessorPolicy(window_records=1))
    with pytest.raises(ResourceError, match="the GPU has no memory left"):
        async with asyncio.timeout(DEADLINE):
            await processor.run()
    assert len(await stage.read(stage.output)) == counting.records <= 1
    assert not await stage.read(stage.dead)
