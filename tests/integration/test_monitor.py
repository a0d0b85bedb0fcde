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

import httpx
import pytest
import yaml

from ares_stream.detection.ledger import Ledger
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
from ares_stream.records.interaction import Anchor, Interaction, Lane, Message, Policy
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.observation import read_observation
from ares_stream.records.rates import (
    STATE_KEY,
    MonitorState,
    Rates,
    SampledVerdict,
    decode_held,
)
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.services.monitor import ledger_policy, read_anchors
from ares_stream.services.settings import Settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.compacted import read_latest, read_latest_as
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.forecasts import forecast_of, place
from tests.support.service_process import MonitorProcess, ares, settings_of
from tests.support.verdicts import verdict

pytestmark = pytest.mark.kafka

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 150.0
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
        own = anchor and anchor.model_copy(update={"id": f"{anchor.id}-{number}"})
        item = verdict(number, failure, version=version, lane=lane, liked=rng.random() < 0.5,
                       locale=rng.choice(("de", "en", "fr")), anchor=own)  # fmt: skip
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
    """What can be read of the rates topic, by key."""
    return await read_latest_as(connection, topic_name(prefix, topics.RATES), readable)


def readable(record: InboundRecord) -> InboundRecord:
    decode_held(record.key, record.value)
    return record


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
    # Its own topic, bent: under its keys, under others, and under the key of something else.
    rates_topic = topic_name(prefix, topics.RATES)
    bent = [b"xylocanary", b"{}", b'{"schema": "ares.rates/1"}', b'{"schema": "ares.rates/9"}',
            b"\xff", b'{"schema": "ares.monitor-state/1", "positions": 5}']  # fmt: skip
    states = {key: item.value for key, item in state.items()}
    await publish(
        connection,
        [
            *(OutboundRecord(rates_topic, key, value) for key in states for value in bent),
            *(OutboundRecord(rates_topic, key, value) for key in (b"k", b"") for value in bent),
            *(OutboundRecord(rates_topic, b"k", value) for value in states.values()),
        ],
    )
    with MonitorProcess(kafka, prefix, tmp_path / "m") as monitor:
        state = await until(connection, prefix, 70)
        assert monitor.events("started anew") == []
        assert monitor.stop() == 0
        assert "xylocanary" not in monitor.log_file.read_text()
    assert "interval" not in await ares("rates", "--settings", str(monitor.file))
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


def review_item(number: int) -> ReviewItem:
    """A sampled conversation; every second one was flagged, every fifth of those wrongly."""
    kind = FailureClass.COUPLED_FAILURE if number % 2 else FailureClass.CLEAN
    said = verdict(number, kind, liked=True, score=float(number % 7))
    interaction = Interaction(
        id=said.interaction_id,
        occurred_at=NOW,
        messages=(Message(role="user", content=f"question {number}"),),
        response=f"answer {number}",
        policy=said.policy,
        attributes=said.attributes,
    )
    return ReviewItem(
        cause="sampled", sampling_probability=0.5, verdict=said, interaction=interaction
    )


async def test_a_forecast_is_measured_by_what_came_after_the_release(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    forecast = forecast_of(place({"cfr": 300}, {"cfr": 200}))
    release = Release(
        model="chat", kind="policy", digest="d" * 64, uri="file:///registry/chat",
        state=ReleaseState.ACTIVE, changed_at=NOW, changed_by="ada", forecast=forecast,
    )  # fmt: skip
    topic = topic_name(prefix, topics.RELEASES)
    await publish(connection, [OutboundRecord(topic, b"chat", release.encode())])
    await publish(connection, made(prefix, range(2000), version="2", rate=0.1))
    for life in ("first", "second"):  # A restart reads the topic again.
        with MonitorProcess(kafka, prefix, tmp_path / life) as monitor:
            port = (await monitor.said("listening"))["port"]
            url = f"http://127.0.0.1:{port}/metrics"
            wanted = 'ares_monitor_forecast_error_ratio{figure="cfr",model="chat"} '
            deadline = time.monotonic() + SECONDS
            async with httpx.AsyncClient(trust_env=False) as client:
                while wanted not in (text := (await client.get(url)).text):
                    assert time.monotonic() < deadline, text
                    await asyncio.sleep(0.2)
            ratio = float(text.partition(wanted)[2].split()[0])
            assert 1.5 < ratio < 2.7
            assert monitor.stop() == 0


async def test_anchors_are_made_from_labels_and_sent_again_and_again(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    items = [review_item(number) for number in range(120)]
    review, labelled = (topic_name(prefix, name) for name in (topics.REVIEW, topics.LABELS))
    records = [OutboundRecord(review, item.verdict.id.encode(), item.encode()) for item in items]

    def said(number: int, harmful: bool, reviewer: str = "ada", hours: int = 0) -> Label:
        return Label(
            interaction_id=f"interaction-{number}", harmful=harmful, reviewer=reviewer,
            decided_at=NOW + timedelta(hours=hours),
        )  # fmt: skip

    for number in range(110):
        label = said(number, number % 2 == 1)
        # A third stands under the key of old labels, the interaction alone.
        key = label.interaction_id.encode() if number % 3 == 0 else label.key
        records.append(OutboundRecord(labelled, key, label.encode()))
    contradicted, changed, deleted = said(1, False, "bob"), said(2, True, hours=1), said(4, False)
    records += [
        OutboundRecord(labelled, contradicted.key, contradicted.encode()),
        OutboundRecord(labelled, changed.key, changed.encode()),
        OutboundRecord(labelled, deleted.key, None),
        OutboundRecord(labelled, b"x", b"no label"),
    ]
    await publish(connection, records)
    file = tmp_path / "ares.yaml"
    out = tmp_path / "anchors.jsonl"
    file.write_text(yaml.safe_dump(settings_of(kafka, prefix)))
    told = await ares("anchors", "make", "--set", "s1", "--out", str(out), "--settings", str(file))
    assert told.startswith("108 anchors")
    made_of = {item.id: item for item in read_anchors(out)}
    by_id = {item.verdict.id: number for number, item in enumerate(items)}
    numbers = {by_id[name]: item for name, item in made_of.items()}
    assert set(numbers) == set(range(110)) - {1, 4}
    for number, kept in numbers.items():
        assert kept.anchor is not None
        assert kept.anchor.harmful == (number % 2 == 1 or number == 2)
        assert kept.anchor.judged == (number % 2 == 1)
        assert kept.anchor.reward == number % 7
        assert kept.response == f"answer {number}"

    anchored = topic_name(prefix, topics.ANCHOR)

    async def sent() -> list[Interaction]:
        spans = await snapshot(connection, [anchored])
        return [Interaction.decode(item.value or b"") async for item in read(connection, spans)]

    async def many(count: int) -> list[Interaction]:
        deadline = time.monotonic() + SECONDS
        while len(found := await sent()) < count:
            assert time.monotonic() < deadline, len(found)
            await asyncio.sleep(0.2)
        return found

    asked = {"file": str(out), "per_minute": 600}
    with (
        MonitorProcess(kafka, prefix, tmp_path / "one", anchors=asked) as first,
        MonitorProcess(kafka, prefix, tmp_path / "two", anchors=asked),
    ):
        before = len(await many(10))
        first.kill()
        found = await many(before + 10)
    # However many replicas, one sends, and each turn is one anchor's.
    turns = [copy.id.rsplit("-", 1)[1] for copy in found]
    assert len(set(turns)) == len(turns)
    assert all(copy.anchor is not None and copy.anchor.set == "s1" for copy in found)
    for copy in found:
        origin = made_of[copy.id.rsplit("-", 1)[0]]
        assert (copy.messages, copy.response) == (origin.messages, origin.response)

    out.unlink()
    with MonitorProcess(kafka, prefix, tmp_path / "gone", anchors=asked) as monitor:
        assert await asyncio.to_thread(monitor.process.wait, SECONDS) == 2
        assert "anchors.jsonl" in monitor.log_file.read_text()


async def test_a_topic_that_was_made_anew_is_counted_on_and_the_figures_say_so(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    count = 400  # More than were read of the first: their offsets alone tell nothing.
    connection = await create(kafka, prefix)
    topic = topic_name(prefix, topics.VERDICTS)
    await publish(connection, made(prefix, range(300)))
    with MonitorProcess(kafka, prefix, tmp_path / "m") as monitor:
        await until(connection, prefix, 300)
        assert monitor.stop() == 0
    from aiokafka.admin import AIOKafkaAdminClient

    client = AIOKafkaAdminClient(**connection.client_arguments())
    await client.start()
    await client.delete_topics([topic])
    deadline = time.monotonic() + SECONDS
    while topic in await client.list_topics():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    await client.close()
    await create(kafka, prefix)
    await publish(connection, made(prefix, range(1000, 1000 + count)))
    with MonitorProcess(kafka, prefix, tmp_path / "m") as monitor:
        state = await until(connection, prefix, 300 + count)
        assert monitor.stop() == 0
    raw = next(item.value for key, item in state.items() if json.loads(key) == ["state"])
    gaps = MonitorState.decode(raw or b"").gaps
    assert {gap.topic for gap in gaps} == {topic}
    assert counted(state) == 300 + count


@pytest.mark.timeout(280)
async def test_a_state_whose_records_contradict_each_other_is_counted_anew_and_named(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    """Each record is well-formed, and decodes; together they are no state."""
    connection = await create(kafka, prefix)
    await publish(connection, made(prefix, range(100)))
    with MonitorProcess(kafka, prefix, tmp_path / "m") as monitor:
        state = await until(connection, prefix, 100)
        assert monitor.stop() == 0
    good = {key: item.value for key, item in state.items()}
    figures = rates(state)
    whole = next(item for item in figures if not item.slice.attribute)
    sliced = next(item for item in figures if item.slice.attribute)
    strange = whole.slice.model_copy(update={"policy": Policy(name="nobody", version="1")})
    other = whole.model_copy(update={"slice": strange})
    less = whole.tallies.model_copy(update={"outliers": 5})
    bent = whole.model_copy(update={"tallies": less})
    for name, key, value in (
        ("lost", sliced.key, None),
        ("one too many", other.key, other.encode()),
        ("bent", bent.key, bent.encode()),
    ):
        topic = topic_name(prefix, topics.RATES)
        await publish(connection, [OutboundRecord(topic, key, value)])
        with MonitorProcess(kafka, prefix, tmp_path / name) as monitor:
            await monitor.said("counting anew from the verdicts")
            state = await until(connection, prefix, 100)
            assert monitor.stop() == 0
        state = await state_of(connection, prefix)
        assert state.keys() == good.keys(), name
        assert counted(state) == 100
        held = MonitorState.decode(state[STATE_KEY].value or b"")
        assert held.unreadable[topic] == 1, name
    with MonitorProcess(kafka, prefix, tmp_path / "again") as monitor:
        await monitor.said("leading")
        assert monitor.stop() == 0
        assert "counting anew" not in monitor.log_file.read_text()


async def test_what_is_behind_is_known_before_the_first_fetch(kafka: str, prefix: str) -> None:
    connection = await create(kafka, prefix)
    topic = topic_name(prefix, topics.VERDICTS)
    await publish(connection, made(prefix, range(90)))
    async with Follower(connection, [topic], {}) as follower:
        assert follower.behind() == 90
        read_so_far = 0
        while read_so_far < 90:
            read_so_far += len(await follower.poll())
            assert follower.behind() == 90 - read_so_far
    async with Follower(connection, [topic], follower.positions) as follower:
        assert follower.behind() == 0
