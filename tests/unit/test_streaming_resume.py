"""Where reading goes on, and what escapes from a client."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest
from aiokafka.errors import KafkaError
from aiokafka.protocol.types import Int32
from hypothesis import assume, given
from hypothesis import strategies as st

from ares_stream.errors import ReadError
from ares_stream.streaming.faults import client_faults
from ares_stream.streaming.log_identity import LastRecord, LogChange, LogIdentity
from ares_stream.streaming.records import Damage, InboundRecord
from ares_stream.streaming.resume import OffsetReset, resume

OFFSETS = st.integers(0, 1000)
RESETS: st.SearchStrategy[OffsetReset] = st.sampled_from(["earliest", "latest", "stop"])


@given(OFFSETS, OFFSETS, OFFSETS, RESETS)
def test_an_offset_that_the_log_holds_is_gone_on_from_whatever_the_policy(
    first: int, second: int, third: int, reset: OffsetReset
) -> None:
    beginning, committed, end = sorted((first, second, third))
    assert resume("in", 0, committed, beginning, end, reset) == (committed, None)
    assert resume("in", 0, None, beginning, end, reset) == (beginning, None)


@given(OFFSETS, OFFSETS, OFFSETS, RESETS)
def test_every_other_offset_is_a_loss_that_is_counted_and_told(
    first: int, second: int, committed: int, reset: OffsetReset
) -> None:
    beginning, end = sorted((first, second))
    assume(not beginning <= committed <= end)
    if reset == "stop":
        with pytest.raises(ReadError, match=f"in-3: committed offset {committed}, but the log"):
            resume("in", 3, committed, beginning, end, reset)
        return
    offset, loss = resume("in", 3, committed, beginning, end, reset)
    assert offset == (beginning if reset == "earliest" else end)
    assert loss is not None
    assert loss.records > 0
    assert f"{loss.records} offsets are lost" in str(loss)


def test_what_a_client_lets_through_is_a_kafka_error_and_what_we_raise_stays() -> None:
    with pytest.raises(KafkaError, match="inside the client"), client_faults():
        Int32.encode("not a number")


async def test_a_cancellation_that_nobody_asked_for_is_a_kafka_error() -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    with pytest.raises(KafkaError, match="gave the request up"), client_faults():
        await cancelled


async def test_a_cancellation_that_somebody_asked_for_goes_through() -> None:
    async def work() -> None:
        with client_faults():
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_our_own_defect_is_not_taken_for_the_clients() -> None:
    ours: dict[str, int] = {}
    with pytest.raises(KeyError), client_faults():
        ours["missing"]


@given(
    OFFSETS,
    OFFSETS,
    OFFSETS,
    st.sampled_from(["earliest", "latest", "stop"]),
    st.sampled_from(["anew", "rewritten"]),
)
def test_an_offset_of_a_log_that_is_gone_is_never_gone_on_from(
    first: int, second: int, third: int, reset: OffsetReset, change: LogChange
) -> None:
    beginning, committed, end = sorted((first, second, third))
    if reset == "stop":
        with pytest.raises(ReadError, match=f"committed offset {committed}, but the log.* holds"):
            resume("in", 3, committed, beginning, end, reset, change=change)
        return
    offset, loss = resume("in", 3, committed, beginning, end, reset, change=change)
    assert offset == (beginning if reset == "earliest" else end)
    assert loss is not None
    assert loss.records == offset - beginning
    assert "that is gone" in str(loss) or "that are gone" in str(loss)


RECORDS = st.builds(
    InboundRecord,
    st.just("in"),
    st.just(3),
    OFFSETS,
    st.integers(-1, 2**41),
    st.none() | st.binary(max_size=20),
    st.none() | st.binary(max_size=20),
)


@given(st.uuids(), st.none() | RECORDS)
def test_what_is_known_of_a_log_stands_beside_its_offset(
    topic_id: uuid.UUID, record: InboundRecord | None
) -> None:
    known = LogIdentity(str(topic_id), None if record is None else LastRecord.of(record))
    assert LogIdentity.parse(str(known)) == known
    assert known.change(str(topic_id), record) is None


@pytest.mark.parametrize(
    "text", [None, "", "of another tool", "last-record=1.2;topic-id", "last-record=a.b.c"]
)
def test_metadata_of_others_says_nothing_of_a_log(text: str | None) -> None:
    known = LogIdentity.parse(text)
    assert known == LogIdentity()
    assert known.change("4f6b", record(7, b"value")) is None


def test_commits_of_versions_that_knew_topics_alone_are_read_and_theirs_pass_over_ours() -> None:
    assert LogIdentity.parse("topic-id=4f6b") == LogIdentity("4f6b")
    # They take metadata that begins otherwise for none.
    ours = str(LogIdentity("4f6b", LastRecord.of(record(7, b"value"))))
    assert not ours.startswith("topic-id=")


@given(RECORDS, RECORDS)
def test_a_log_was_rewritten_exactly_where_another_record_stands_at_the_offset(
    before: InboundRecord, now: InboundRecord
) -> None:
    known = LogIdentity("", LastRecord.of(before))
    is_other = LastRecord.of(before) != LastRecord.of(now)
    expected = "rewritten" if before.offset == now.offset and is_other else None
    assert known.change("", now) == expected
    # Retention and compaction leave nothing at an offset, or what follows it.
    assert known.change("", None) is None


def test_a_record_that_cannot_be_read_proves_nothing() -> None:
    damaged = replace(record(7, None), damage=Damage("torn", 3, "0" * 64, "record"))
    assert LastRecord.of(damaged) is None
    assert LogIdentity("", LastRecord.of(record(7, b"value"))).change("", damaged) is None


def test_another_topic_of_the_name_is_told_before_its_records_are_looked_at() -> None:
    known = LogIdentity("4f6b", LastRecord.of(record(7, b"value")))
    assert known.change("9c01", record(7, b"value")) == "anew"
    # A broker that gives no ids.
    assert known.change("", record(7, b"value")) is None


def record(offset: int, value: bytes | None) -> InboundRecord:
    return InboundRecord("in", 3, offset, 1_700_000_000_000, b"key", value)
