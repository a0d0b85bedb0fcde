"""Records that no client library can read do not stop the stream, on a real broker.

Sent by a second client library, or byte by byte; the count is taken with a reader of ours and by
offset: each record became one copy or one dead letter.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import confluent_kafka
import pytest
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from ares_stream.errors import BreakerOpen
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.breaker import BreakerPolicy
from ares_stream.streaming.compacted import read_latest
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorObserver, ProcessorPolicy
from ares_stream.streaming.deadletters import kept_whole, reason_of, source_of
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection
from ares_stream.streaming.unreadable import PassedOver, UnreadableRecord
from tests.support.mutations import BATCH, bent_batch, bent_record
from tests.support.raw_batches import RawRecord, batch, compressed, produce

pytestmark = pytest.mark.kafka

DEADLINE = 60.0
Sent: TypeAlias = tuple[bytes | None, bytes | None, list[tuple[str, str | bytes | None]]]
"""Key, value, headers."""
MIB = 1 << 20
ACCEPT = ProcessorPolicy(breaker=BreakerPolicy(accept=True))


class Copier:
    """Copies values; refuses those that begin with `bad`, grows those that begin with `grow`."""

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        return [self._one(record) for record in records]

    @staticmethod
    def _one(record: InboundRecord) -> Outcome:
        value = record.value or b""
        if not value or value.startswith(b"bad"):
            return Rejection("decode", "ValueError", value[:9].decode() or "empty")
        if value.startswith(b"grow"):
            value *= 20_000
        copy = (("offset", b"%d" % record.offset), ("partition", b"%d" % record.partition))
        output = record.topic.rpartition(".")[0] + ".out"
        return (OutboundRecord(output, record.key, value, copy),)


class Counting(ProcessorObserver):
    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.transactions: list[str] = []
        self.opened: dict[str, str] = {}

    def committed(self, topic: str, partition: int, records: int, seconds: float) -> None:
        self.of[topic] += records

    @property
    def records(self) -> int:
        return self.of.total()

    def transaction(self, outcome: str) -> None:
        self.transactions.append(outcome)

    def breaker(self, topic: str, reason: str) -> None:
        self.opened[topic] = reason


class Stage:
    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap = bootstrap
        self.connection = KafkaConnection(bootstrap=bootstrap)
        self.prefix = prefix
        self.input, self.output, self.dead = (prefix + name for name in ("in", "out", "dead"))
        self.counting = Counting()

    async def prepare(self, *more: str, limit: int = MIB, **inputs: str) -> None:
        names = (self.input, *more)
        await create_topics(
            self.connection,
            [TopicSpec(name, 1, 1, inputs) for name in names]
            + [
                TopicSpec(name, 1, 1, {"max.message.bytes": str(limit)})
                for name in (self.output, self.dead)
            ],
        )

    def processor(self, policy: ProcessorPolicy = ACCEPT, *more: str) -> Processor:
        return Processor(
            self.connection,
            service="copier",
            group=self.prefix + "group",
            topics=[self.input, *more],
            handler=Copier(),
            deadletter_topic=self.dead,
            output_topics=[self.output],
            id_prefix=self.prefix,
            policy=policy,
            observer=self.counting,
        )

    async def run_until(
        self, done: Callable[[], bool], policy: ProcessorPolicy = ACCEPT, *more: str
    ) -> None:
        processor = self.processor(policy, *more)
        task = asyncio.create_task(processor.run())
        try:
            async with asyncio.timeout(DEADLINE):
                while not done() and not task.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                processor.stop()
                await task
        finally:
            task.cancel()

    async def committed(self, records: int) -> None:
        """Run until so many records are committed, then once more: a restart reads none again."""
        await self.run_until(lambda: self.counting.records >= records)
        assert self.counting.records == records

    async def content(self, topic: str) -> list[InboundRecord]:
        ranges = await snapshot(self.connection, [topic])
        return [record async for record in read(self.connection, ranges)]

    async def letters(self) -> dict[int, InboundRecord]:
        """Dead letters by the offset that they stand for."""
        letters = await self.content(self.dead)
        by_offset = {source_of(letter)[2]: letter for letter in letters}
        assert len(by_offset) == len(letters), "a record has two dead letters"
        return by_offset

    async def copies(self) -> dict[int, InboundRecord]:
        copies = await self.content(self.output)
        by_offset = {int(copy.header_map["offset"]): copy for copy in copies}
        assert len(by_offset) == len(copies), "a record was copied twice"
        return by_offset


@pytest.fixture
def stage(kafka: str, prefix: str) -> Stage:
    return Stage(kafka, prefix)


def send(bootstrap: str, topic: str, values: Sequence[Sent], **config: object) -> None:
    """With librdkafka, as one batch where it fits."""
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 100, "message.max.bytes": 64 * MIB, **config}
    )
    for key, value, headers in values:
        producer.produce(topic, value=value, key=key, headers=headers)
    assert producer.flush(30) == 0


async def test_a_second_librarys_odd_records_are_copies_or_dead_letters(stage: Stage) -> None:
    """Neither key nor value, a null header, an empty value: among good records, after a restart
    too."""
    await stage.prepare()
    odd: list[Sent] = [
        (b"k", b"good", []),
        (None, None, []),
        (b"k", b"bad null header", [("h", None), ("e", b"")]),
        (b"k", None, []),
        (None, b"", []),
        (b"k", b"good", [("h", None)]),
    ]
    await asyncio.to_thread(send, stage.bootstrap, stage.input, odd)
    await stage.committed(6)
    copies, letters = await stage.copies(), await stage.letters()
    assert set(copies) == {0, 5}
    assert set(letters) == {1, 2, 3, 4}
    assert letters[2].headers[:2] == (("h", None), ("e", b""))
    assert (letters[3].key, letters[3].value) == (b"k", None)
    assert not kept_whole(letters[1])
    assert letters[1].header_map["ares.errors.why_not_whole"] == b"it has neither key nor value"


async def test_a_header_name_that_is_no_text_is_kept_by_coordinates_and_its_neighbours_go_on(
    stage: Stage,
) -> None:
    await stage.prepare()
    records = [RawRecord(), RawRecord(headers=((b"\xff\xfe", b"x"),)), RawRecord(value=b"after")]
    await produce(stage.bootstrap, stage.input, [batch(records), batch(records, "lz4")])
    await stage.committed(6)
    assert set(await stage.copies()) == {0, 2, 3, 5}
    letters = await stage.letters()
    assert set(letters) == {1, 4}
    assert reason_of(letters[1]) == ("fetch", "unreadable: a header's name is not UTF-8")
    assert letters[1].header_map["ares.errors.kept"] == b"coordinates"


@pytest.mark.parametrize("codec", ["gzip", "lz4"])
async def test_bytes_behind_a_compressed_frame_stop_nothing(stage: Stage, codec: str) -> None:
    await stage.prepare()
    records = [RawRecord(value=b"%d" % number) for number in range(3)]
    plain = b"".join(record.encoded(n) for n, record in enumerate(records))
    pill = batch(records, codec, payload=compressed(codec, plain) + b"trailing")
    await produce(stage.bootstrap, stage.input, [batch(records), pill, batch(records)])
    await stage.committed(9)
    assert set(await stage.copies()) == set(range(9))


async def test_records_that_their_dead_letter_would_outgrow_are_kept_by_coordinates(
    stage: Stage,
) -> None:
    """Near the limit of the topic; 6 MB of text that was small enough when compressed."""
    await stage.prepare()
    near: list[Sent] = [(b"k", b"bad" + bytes(MIB - 70 - near), []) for near in range(60, 260, 40)]
    await asyncio.to_thread(send, stage.bootstrap, stage.input, near)
    large: list[Sent] = [(b"k", b"bad " + b"some text. " * 600_000, []), (b"k", b"good", [])]
    await asyncio.to_thread(
        send, stage.bootstrap, stage.input, large, **{"compression.type": "zstd"}
    )
    await stage.committed(len(near) + 2)
    assert set(await stage.copies()) == {len(near) + 1}
    letters = await stage.letters()
    assert set(letters) == set(range(len(near) + 1))
    assert not any(map(kept_whole, letters.values()))
    assert int(letters[len(near)].header_map["ares.errors.size"]) > 6_000_000


async def test_outputs_too_large_for_their_topic_cost_their_neighbours_no_transaction(
    stage: Stage,
) -> None:
    await stage.prepare(limit=50_000)
    values = [b"grow" if number % 10 == 7 else b"fine" for number in range(400)]
    await produce(stage.bootstrap, stage.input, [batch([RawRecord(value=v) for v in values])])
    await stage.committed(400)
    letters = await stage.letters()
    assert set(letters) == set(range(7, 400, 10))
    assert {reason_of(letter)[0] for letter in letters.values()} == {"publish"}
    assert set(stage.counting.transactions) == {"committed"}


async def test_a_limit_that_is_lowered_while_it_runs_costs_one_transaction_each_way(
    stage: Stage,
) -> None:
    """The limits are read once: what the broker then refuses is learnt from its refusal."""
    await stage.prepare()
    processor = stage.processor()
    processor._size_limits = {}
    task = asyncio.create_task(processor.run())
    try:
        values = [b"grow" * 6 if number % 10 == 7 else b"fine" for number in range(100)]
        admin = AdminClient({"bootstrap.servers": stage.bootstrap})
        for topic in (stage.output, stage.dead):
            resource = ConfigResource("topic", topic)
            resource.add_incremental_config(
                ConfigEntry(
                    "max.message.bytes",
                    "50000",
                    incremental_operation=AlterConfigOpType.SET,
                )
            )
            for done in admin.incremental_alter_configs([resource]).values():
                await asyncio.to_thread(done.result, 20)
        await produce(stage.bootstrap, stage.input, [batch([RawRecord(value=v) for v in values])])
        async with asyncio.timeout(DEADLINE):
            while stage.counting.records < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            processor.stop()
            await task
    finally:
        task.cancel()
    assert set(await stage.letters()) == set(range(7, 100, 10))
    assert stage.counting.transactions.count("refused") <= 10


def bomb(codec: str, size: int) -> bytes:
    value = bytes(size)
    record = RawRecord(value=value).encoded(0)
    return batch([], codec, payload=compressed(codec, record), count=1)


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd", "snappy"])
async def test_a_bomb_is_a_dead_letter_by_coordinates_and_the_next_record_a_copy(
    stage: Stage, codec: str
) -> None:
    await stage.prepare()
    size = 20 * MIB if codec == "snappy" else 200 * MIB
    await produce(stage.bootstrap, stage.input, [bomb(codec, size), batch([RawRecord()])])
    await stage.committed(2)
    assert set(await stage.copies()) == {1}
    letters = await stage.letters()
    assert set(letters) == {0}
    assert not kept_whole(letters[0])


async def test_the_breaker_pauses_the_topic_that_is_refused_and_the_other_goes_on(
    stage: Stage,
) -> None:
    probe = stage.prefix + "probe"
    await stage.prepare(probe)
    good = [RawRecord(value=b"good")] * 50
    await produce(stage.bootstrap, probe, [batch([RawRecord(value=b"bad text")] * 400)])
    await produce(stage.bootstrap, stage.input, [batch(good)])
    policy = ProcessorPolicy(breaker=BreakerPolicy(consecutive=40), commit_records=20)

    async def after_it_opened() -> None:
        while not stage.counting.opened:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await produce(stage.bootstrap, stage.input, [batch(good)])

    sending = asyncio.create_task(after_it_opened())
    await stage.run_until(lambda: stage.counting.of[stage.input] == 100, policy, probe)
    await sending
    assert set(stage.counting.opened) == {probe}
    assert "x bad text" in stage.counting.opened[probe]
    assert len(await stage.copies()) == 100


async def test_the_breaker_writes_what_it_refused_and_a_restart_that_accepts_goes_on(
    stage: Stage,
) -> None:
    await stage.prepare()
    await produce(stage.bootstrap, stage.input, [batch([RawRecord(value=b"bad text")] * 300)])
    policy = ProcessorPolicy(
        commit_records=10, inflight_records=40, breaker=BreakerPolicy(consecutive=40)
    )
    with pytest.raises(BreakerOpen, match=r"40 records in a row were refused \(40 x bad text\)"):
        async with asyncio.timeout(DEADLINE):
            await stage.processor(policy).run()
    refused = len(await stage.letters())
    assert 40 <= refused < 300
    await stage.run_until(lambda: stage.counting.records >= 300)
    assert set(await stage.letters()) == set(range(300))


async def test_readers_pass_over_what_cannot_be_read_count_it_and_name_its_offset(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await stage.prepare()
    records = [RawRecord(key=b"a"), RawRecord(headers=((b"\xff", b"x"),)), RawRecord(key=b"b")]
    await produce(stage.bootstrap, stage.input, [batch(records), bomb("gzip", 100 * MIB)])
    told: list[UnreadableRecord] = []
    passed = PassedOver(told.append)
    ranges = await snapshot(stage.connection, [stage.input])
    async with asyncio.timeout(DEADLINE):
        found = [r async for r in read(stage.connection, ranges, unreadable=passed)]
        latest = await read_latest(stage.connection, stage.input, unreadable=passed)
    assert [record.offset for record in found] == [0, 2]
    assert set(latest) == {b"a", b"b"}
    assert [record.offset for record in told] == [1, 3]
    assert str(told[0]) == f"{stage.input} 0@1: a header's name is not UTF-8"
    async with asyncio.timeout(DEADLINE):
        await read_latest(stage.connection, stage.input)
    assert f"passed over {stage.input} 0@1: a header's name is not UTF-8" in caplog.text


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[tuple[str, Path]]:
    """A broker whose files are at hand."""
    broker = EmbeddedBroker(data_dir=tmp_path)
    await asyncio.to_thread(broker.start)
    try:
        yield broker.bootstrap, tmp_path
    finally:
        await asyncio.to_thread(broker.stop)


async def test_a_batch_that_was_damaged_on_the_disk_is_kept_by_coordinates(
    own: tuple[str, Path],
) -> None:
    bootstrap, folder = own
    stage = Stage(bootstrap, "disk.")
    await stage.prepare()
    records = [RawRecord(value=b"first"), RawRecord(value=b"second")]
    await produce(bootstrap, stage.input, [batch(records)] * 3)
    (log,) = folder.glob(f"node-1/data/{stage.input}-0/*.log")
    content = bytearray(log.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    with log.open("r+b") as file:
        file.write(content)
    await stage.committed(6)
    assert set(await stage.copies()) == {0, 1, 4, 5}
    letters = await stage.letters()
    assert set(letters) == {2, 3}
    assert reason_of(letters[2]) == ("fetch", "unreadable: its checksum is wrong")


def old_messages(magic: int, codec: int, first: int, values: Sequence[bytes]) -> bytes:
    """As Kafka before 0.11 wrote them on the disk: one after another, or as one that holds them."""
    builder = LegacyRecordBatchBuilder(magic=magic, compression_type=codec, batch_size=1 << 20)
    relative = magic == 1 and codec != 0
    for number, value in enumerate(values):
        offset = number if relative else first + number
        builder.append(offset, 1_700_000_000_000 if magic else None, b"k", value)
    data = bytes(builder.build())
    if codec:
        data = struct.pack(">q", first + len(values) - 1) + data[8:]
    return data


async def test_messages_of_old_formats_are_read_as_others_are(own: tuple[str, Path]) -> None:
    """Kafka takes none any more (KIP-724), and still hands out those that it has."""
    bootstrap, folder = own
    stage = Stage(bootstrap, "old.")
    await stage.prepare()
    # One batch, which gives the log its offsets and its size.
    await produce(bootstrap, stage.input, [batch([RawRecord(value=b"x" * 500)] * 24)])
    (log,) = folder.glob(f"node-1/data/{stage.input}-0/*.log")
    layouts = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (1, 3), (1, 1), (0, 0)]
    values = [b"%d-%d-%d" % (*layout, n) for layout in layouts for n in range(3)]
    content = b"".join(
        old_messages(*layout, 3 * place, values[3 * place : 3 * place + 3])
        for place, layout in enumerate(layouts)
    )
    values[-1] += b"." * (log.stat().st_size - len(content))
    parts = [
        old_messages(*layout, 3 * place, values[3 * place : 3 * place + 3])
        for place, layout in enumerate(layouts)
    ]
    damaged = bytearray(parts[-2])
    damaged[len(damaged) // 2] ^= 0xFF
    parts[-2] = bytes(damaged)
    with log.open("r+b") as file:
        file.write(b"".join(parts))
    await stage.committed(len(values))
    copies, letters = await stage.copies(), await stage.letters()
    whole = {offset: value for offset, value in enumerate(values) if offset // 3 != 6}
    assert {offset: copy.value for offset, copy in copies.items()} == whole
    assert set(letters) == {18, 19, 20}
    assert reason_of(letters[18])[0] == "fetch"


async def test_bent_records_through_a_broker_are_one_verdict_or_one_dead_letter_each(
    stage: Stage,
) -> None:
    """The short profile; tests/chaos/test_fuzz.py has the long one."""
    await stage.prepare()
    chance = random.Random(11)
    wanted = 3_000
    batches = [
        bent_batch([bent_record(base + n, chance) for n in range(BATCH)], chance)
        for base in range(0, wanted, BATCH)
    ]
    sent = 0
    for data in batches:
        try:
            await produce(stage.bootstrap, stage.input, [data])
        except AssertionError:
            continue  # The broker looks into batches too and refuses some.
        sent += BATCH
    assert sent > wanted // 2
    await stage.committed(sent)
    copies, letters = await stage.copies(), await stage.letters()
    assert set(copies) | set(letters) == set(range(sent))
    assert not set(copies) & set(letters)
