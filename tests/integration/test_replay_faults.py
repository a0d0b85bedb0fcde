"""What happens to topics before and under a replay: either it is replayed right, or it is an error
with topic, partition and offsets, and nothing is said of any record."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from ares_stream.audit import ranges
from ares_stream.errors import AresError, ReadError
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.golden_month import Bundles
from tests.support.lived import Lived, once

pytestmark = pytest.mark.kafka
COUNT = 150
HOUR_MS = 3_600_000
NOON_MS = 1_790_000_000_000
MIB = 1 << 20


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return Bundles.write(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def lived(kafka: str, prefix: str, bundles: Bundles, tmp_path: Path) -> Lived:
    return Lived(KafkaConnection(bootstrap=kafka), prefix, bundles, tmp_path)


async def some(lived: Lived, count: int = COUNT) -> None:
    await lived.create()
    answers = ("bread nice", "poison nice", "poison rude", "bread")
    await lived.publish([lived.record(number, answers[number % 4]) for number in range(count)])


async def test_what_a_topic_may_hold_is_replayed_to_the_byte(lived: Lived) -> None:
    await some(lived)
    connection = lived.connection
    producer = AIOKafkaProducer(
        bootstrap_servers=connection.bootstrap, transactional_id=f"{lived.prefix}aborted"
    )
    async with producer:
        await producer.begin_transaction()
        for number in range(10):
            aborted = lived.record(number)
            await producer.send_and_wait(lived.production, aborted.value, key=aborted.key)
        await producer.abort_transaction()
    large = lived.record(1, "bread " * (3 * MIB // 6))
    newer = lived.record(2, schema="ares.interaction/2")
    grown = lived.record(3, "poison nice", weather="a field of a later version")
    headers = (("traceparent", b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"), ("x", None))
    traced = lived.record(4, "poison nice")
    no_time = OutboundRecord(lived.production, None, traced.value, headers, NOON_MS)
    mixed = [large, newer, grown, no_time, lived.record(5)]
    await lived.publish(mixed)
    assert await lived.live() == COUNT + len(mixed)
    found = await lived.replay()
    assert (found["differences"], found["tolerated"]) == ([], [])
    assert found["counts"]["identical"] == found["records"] == COUNT + len(mixed)
    assert (
        sum(end - start for item in found["partitions"] for start, end in item["ranges"])
        > (found["records"])
    )


async def test_an_empty_topic_and_an_empty_time_hold(lived: Lived) -> None:
    await lived.create()
    found = await lived.replay()
    assert (found["records"], found["holds"]) == (0, True)
    await lived.publish([lived.record(number) for number in range(5)])
    await lived.live()
    found = await lived.replay(await lived.choose(since_ms=10**13))
    assert (found["records"], found["holds"]) == (0, True)


async def test_times_that_meet_share_no_record_when_the_clock_jumps(lived: Lived) -> None:
    await lived.create()
    jumps = (0, 5, -9, 1, 48, 2, -30, 3, 0, 7)
    records = [lived.record(number) for number in range(100)]
    stamped = [
        OutboundRecord(
            item.topic, item.key, item.value, (), NOON_MS + jumps[number % 10] * HOUR_MS + number
        )
        for number, item in enumerate(records)
    ]
    await lived.publish(stamped)
    await lived.live()
    covered: dict[int, list[tuple[int, int]]] = {}
    total = outside = 0
    for since, until in ((None, NOON_MS), (NOON_MS, NOON_MS + HOUR_MS), (NOON_MS + HOUR_MS, None)):
        selection = await lived.choose(since_ms=since, until_ms=until)
        for item in selection.inputs:
            covered.setdefault(item.partition, []).append((item.start, item.end))
        found = await lived.replay(selection)
        assert (found["holds"], found["differences"]) == (True, [])
        total += found["records"]
        outside += found["outside_time"]
    assert total == len(records)
    assert outside > 0
    for spans in covered.values():
        assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]


async def test_a_transaction_that_is_open_in_the_range_is_an_error(
    lived: Lived, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some(lived)
    await lived.live()
    hasty = functools.partial(snapshot, settle_seconds=0.5)
    monkeypatch.setattr(ranges, "snapshot", hasty)
    producer = AIOKafkaProducer(
        bootstrap_servers=lived.connection.bootstrap, transactional_id=f"{lived.prefix}open"
    )
    async with producer:
        await producer.begin_transaction()
        await producer.send_and_wait(lived.production, b"{}", partition=1)
        stable = r"open transaction: \S+production 1 is stable to offset \d+ of \d+"
        with pytest.raises(ReadError, match=stable):
            await lived.choose()
        await producer.abort_transaction()
    assert (await lived.replay())["holds"] is True


Happening = Callable[[Lived], Awaitable[None]]
HAPPENINGS: dict[str, tuple[Happening, str]] = {
    "retention deletes inputs": (
        lambda lived: lived.delete_records(lived.production, 20),
        r"truncated: \S+production \d starts at offset 20, offset 0 was asked for"),
    "the input is deleted": (
        lambda lived: lived.delete(lived.production),
        r"production \d offsets 0 to \d+: the topic was deleted"),
    "the input is made anew": (
        lambda lived: lived.make_anew(lived.production),
        r"production \d offsets 0 to \d+: the topic was made anew"),
}  # fmt: skip


@pytest.mark.parametrize("what", HAPPENINGS)
async def test_an_input_that_changes_under_the_replay_is_an_error_with_its_place(
    lived: Lived, what: str
) -> None:
    await some(lived)
    await lived.live()
    happening, said = HAPPENINGS[what]
    with pytest.raises(ReadError, match=said):
        await lived.replay(progress=once("outputs", lambda: happening(lived)))


@pytest.mark.parametrize("what", ["deleted", "made anew", "truncated"])
async def test_an_output_that_changes_before_it_is_read_is_an_error_with_its_place(
    lived: Lived, what: str
) -> None:
    await some(lived)
    await lived.live()
    selection = await lived.choose()
    verdicts = lived.outputs.verdicts
    if what == "deleted":
        await lived.delete(verdicts)
    elif what == "made anew":
        await lived.make_anew(verdicts)
    else:
        await lived.delete_records(verdicts, 10)
    with pytest.raises(AresError, match=rf"{verdicts} \d.*offset") as told:
        await lived.replay(selection)
    assert what in str(told.value)


async def test_a_replay_that_goes_on_does_not_take_another_topic_for_its_own(lived: Lived) -> None:
    await some(lived)
    await lived.live()

    class Ended(Exception):
        pass

    def end(stage: str, _: int) -> None:
        if stage == "records":
            raise Ended

    selection = await lived.choose()
    with pytest.raises(Ended):
        await lived.replay(selection, progress=end, work="one")
    await lived.make_anew(lived.production)
    with pytest.raises(ReadError, match="made anew"):
        await lived.replay(selection, work="one")
