"""The monitor as it is deployed: processes, a real broker, kills, two replicas, a replay."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from ares_stream.detection.ledger import Ledger
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
from ares_stream.records.interaction import Anchor, Lane
from ares_stream.records.label import Label
from ares_stream.records.observation import read_observation
from ares_stream.records.rates import MonitorState, Rates, SampledVerdict
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.services.monitor import ledger_policy
from ares_stream.services.settings import Settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, read_latest, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.service_process import MonitorProcess, ares, settings_of
from tests.support.verdicts import verdict

pytestmark = pytest.mark.kafka

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 60.0
PARTITIONS: Final = 3
NOW: Final = datetime.now(UTC)


async def create(bootstrap: str, prefix: str) -> KafkaConnection:
    connection = KafkaConnection(bootstrap=bootstrap)
    await create_topics(connection, specs(prefix, partitions=PARTITIONS, replication=1))
    return connection


async def publish(connection: KafkaConnection, records: Sequence[OutboundRecord]) -> None:
    async with Publisher(connection) as publisher:
        await publisher.publish(records)


def made(
    prefix: str,
    numbers: Sequence[int],
    *,
    version: str = "1",
    rate: float = 0.1,
    lane: Lane = "production",
    minutes: float = 0.0,
    anchor: Anchor | None = None,
) -> list[OutboundRecord]:
    rng = random.Random(numbers[0])
    records = []
    for number in numbers:
        failure = FailureClass.COUPLED_FAILURE if rng.random() < rate else FailureClass.CLEAN
        item = verdict(number, failure, version=version, lane=lane, liked=rng.random() < 0.5,
                       locale=rng.choice(("de", "en", "fr")), anchor=anchor)  # fmt: skip
        stamp = NOW + timedelta(minutes=minutes, seconds=(number % 1000) * 0.05)
        records.append(
            OutboundRecord(
                topic_name(prefix, topics.VERDICTS),
                item.interaction_id.encode(),
                item.encode(),
                timestamp_ms=int(stamp.timestamp() * 1000),
            )
        )
    return records


def labels(prefix: str, numbers: Sequence[int]) -> list[OutboundRecord]:
    found = [
        Label(interaction_id=f"interaction-{n}", harmful=n % 4 == 0, reviewer="ada", decided_at=NOW)
        for n in numbers
    ]
    topic = topic_name(prefix, topics.LABELS)
    return [OutboundRecord(topic, item.key, item.encode()) for item in found]


async def state_of(connection: KafkaConnection, prefix: str) -> dict[bytes, InboundRecord]:
    return await read_latest(connection, topic_name(prefix, topics.RATES))


async def until(
    connection: KafkaConnection, prefix: str, verdicts: int, *processes: MonitorProcess
) -> dict[bytes, InboundRecord]:
    """The state once it counts so many verdicts."""
    deadline = time.monotonic() + SECONDS
    while True:
        state = await state_of(connection, prefix)
        if counted(state) >= verdicts:
            return state
        assert time.monotonic() < deadline, f"{counted(state)} of {verdicts}"
        await asyncio.sleep(0.2)


def rates(state: Mapping[bytes, InboundRecord]) -> list[Rates]:
    return [
        Rates.decode(item.value or b"")
        for item in state.values()
        if b'"ares.rates/1"' in (item.value or b"")[:64]
    ]


def counted(state: Mapping[bytes, InboundRecord]) -> int:
    return sum(item.figures.total for item in rates(state) if not item.slice.attribute)


async def replayed(connection: KafkaConnection, settings: Mapping[str, Any]) -> dict[bytes, bytes]:
    """The figures from the topics alone: whole partitions one after the other, labels last."""
    parsed = Settings(**settings)
    ledger = Ledger(ledger_policy(parsed))
    prefix = parsed.topic_prefix
    for span in reversed(await snapshot(connection, [topic_name(prefix, topics.VERDICTS)])):
        async for record in read(connection, [span]):
            seen = read_observation(record.value or b"", "either")
            ledger.add(seen, record.timestamp_ms, (record.partition, record.offset))
    labelled = topic_name(prefix, topics.LABELS)
    async for record in read(connection, await snapshot(connection, [labelled])):
        ledger.add_label(record.key or b"", Label.decode(record.value or b""))
    return {
        key: item.encode()
        for key, item in ledger.changes(NOW, 0.01)
        if isinstance(item, (Rates, SampledVerdict))
    }


def comparable(state: Mapping[bytes, bytes]) -> dict[bytes, Any]:
    """Records without the evidence of watches, which a replay in one step has not evaluated."""
    found = {}
    for key, raw in state.items():
        item = json.loads(raw)
        item.pop("watches", None)
        found[key] = item
    return found


async def test_kills_anywhere_two_replicas_and_a_replay_give_the_same_figures(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    rng = random.Random(7)
    total = 0
    running: list[MonitorProcess] = []

    def start() -> None:
        # Each in a group of its own, so that each leads at once and fences whoever led before:
        # members of one group would wait for the killed one's session time-out.
        group = f"{prefix}{len(running)}"
        running.append(MonitorProcess(kafka, prefix, tmp_path / group, group=group))

    try:
        for step in range(4):
            start()
            numbers = range(total, total + 400)
            total += 400
            version = "1" if step < 2 else "2"
            await publish(connection, made(prefix, numbers, version=version, minutes=step * 11))
            await publish(connection, labels(prefix, numbers[::7]))
            await running[-1].said("leading")
            await asyncio.sleep(rng.uniform(0.0, 0.8))
            if step % 2:
                running[-1].kill()
        # Two that survived fight for the lead; what the loser had in flight is never seen.
        await until(connection, prefix, total)
        await asyncio.sleep(3.0)
        for process in running:
            if process.process.poll() is None:
                assert process.stop() == 0
        state = await state_of(connection, prefix)
    finally:
        for process in running:
            process.kill()
    kept = {
        key: record.value or b""
        for key, record in state.items()
        if json.loads(key)[0] in ("rates", "sampled")
    }
    assert counted(state) == total
    assert comparable(kept) == comparable(await replayed(connection, settings_of(kafka, prefix)))
    assert any(item.figures.correction.labels > 10 for item in rates(state))


async def test_bad_records_are_counted_named_and_passed_over_and_a_gap_is_shown(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    good = made(prefix, range(50))
    topic = topic_name(prefix, topics.VERDICTS)
    canary = b'{"schema": "ares.verdict/1", "id": "xylocanary"}'
    bad = [b"xylocanary", canary, b'{"schema": "ares.verdict/2"}', None, b"", b"\xff\xfe"]
    await publish(connection, [*good, *(OutboundRecord(topic, b"k", value) for value in bad)])
    await publish(
        connection,
        [
            OutboundRecord(topic_name(prefix, topics.LABELS), b"x", b"not a label"),
            *labels(prefix, [10**6]),
        ],
    )
    with MonitorProcess(kafka, prefix, tmp_path / "m") as monitor:
        state = await until(connection, prefix, 50)
        deadline = time.monotonic() + SECONDS
        while True:
            (whole,) = [
                MonitorState.decode(item.value or b"")
                for key, item in (await state_of(connection, prefix)).items()
                if json.loads(key) == ["state"]
            ]
            if whole.unreadable.get(topic) == len(bad):
                break
            assert time.monotonic() < deadline, whole.unreadable
            await asyncio.sleep(0.2)
        assert whole.unreadable[topic_name(prefix, topics.LABELS)] == 1
        assert whole.unmatched == 1
        told = monitor.events("record passed over")
        assert len(told) == len(bad) + 1
        assert all({"topic", "partition", "offset", "error"} <= item.keys() for item in told)
        assert monitor.stop() == 0
        assert "xylocanary" not in monitor.log_file.read_text()
    assert counted(state) == 50
    # What is deleted while nobody reads is a gap in the figures, and says so.
    await publish(connection, made(prefix, range(50, 100)))
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
    from aiokafka.structs import TopicPartition

    client = AIOKafkaAdminClient(**connection.client_arguments())
    await client.start()
    ends = await snapshot(connection, [topic])
    await client.delete_records(
        {TopicPartition(i.topic, i.partition): RecordsToDelete(before_offset=i.end) for i in ends}
    )
    await client.close()
    await publish(connection, made(prefix, range(100, 120)))
    with MonitorProcess(kafka, prefix, tmp_path / "m"):
        state = await until(connection, prefix, 70)
    raw = next(item.value for key, item in state.items() if json.loads(key) == ["state"])
    gaps = MonitorState.decode(raw or b"").gaps
    assert sum(gap.end - gap.start for gap in gaps) >= 50
    assert counted(state) == 70


async def test_an_alarm_is_a_record_with_offsets_and_is_acknowledged_by_one(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    anchor = Anchor(set="s", id="a", harmful=False, judged=False)
    await publish(connection, made(prefix, range(2000), rate=0.02, minutes=-300))
    await publish(
        connection,
        [
            item
            for start in range(4)
            for item in made(prefix, range(10**6 + start * 500, 10**6 + start * 500 + 500),
                             rate=0.0, lane="anchor", anchor=anchor)
        ],
    )  # fmt: skip
    await publish(connection, made(prefix, range(2000, 4000), rate=0.3))
    alarms_topic = topic_name(prefix, topics.ALARMS)
    with MonitorProcess(
        kafka, prefix, tmp_path / "m", alarms={"coupled": 0.05}, slices=[]
    ) as monitor:
        said = await monitor.said("alarm")
        assert said["kind"] == "coupled_failures_rose"
        assert said["attribution"] == "system"
        latest = await read_latest(connection, alarms_topic)
        alarm = Alarm.decode(latest[said["alarm"].encode()].value or b"")
        places = {(item.partition, item.offset) for item in alarm.evidence}
        assert places
        found = 0
        spans = await snapshot(connection, [topic_name(prefix, topics.VERDICTS)])
        async for record in read(connection, spans):
            if (record.partition, record.offset) in places:
                found += 1
                assert b'"coupled_failure"' in (record.value or b"")
        assert found == len(places)
        listed = await ares("alarms", "list", "--json", "--settings", str(monitor.file))
        assert [item["id"] for item in json.loads(listed)["alarms"]] == [alarm.id]
        await ares(
            "alarms", "acknowledge", alarm.id, "--by", "ada", "--settings", str(monitor.file)
        )
        await monitor.said("alarm acknowledged")
        assert "no open alarms" in await ares("alarms", "list", "--settings", str(monitor.file))
        assert "chat 1" in await ares("rates", "--settings", str(monitor.file))
        split = await ares("rates", "--sampling", "--settings", str(monitor.file))
        assert yaml.safe_load(split)["scorer"]["review_split"].keys() >= {"flagged,liked"}
        assert monitor.stop() == 0
    latest = await read_latest(connection, alarms_topic)
    last = AlarmAcknowledgement.decode(latest[alarm.id.encode()].value or b"")
    assert last.by == "ada"
