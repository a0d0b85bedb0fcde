"""Where reading goes on, and what escapes from a client."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from aiokafka.errors import KafkaError
from aiokafka.protocol.types import Int32
from hypothesis import assume, given
from hypothesis import strategies as st

from ares_stream.errors import ReadError
from ares_stream.streaming.faults import client_faults
from ares_stream.streaming.resume import OffsetReset, resume
from ares_stream.streaming.topic_ids import metadata_of, topic_id_of

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


@given(OFFSETS, OFFSETS, OFFSETS, st.sampled_from(["earliest", "latest"]))
def test_an_offset_of_a_topic_that_is_gone_is_never_gone_on_from(
    first: int, second: int, third: int, reset: OffsetReset
) -> None:
    beginning, committed, end = sorted((first, second, third))
    offset, loss = resume("in", 3, committed, beginning, end, reset, is_anew=True)
    assert offset == (beginning if reset == "earliest" else end)
    assert loss is not None
    assert loss.records == offset - beginning
    assert "is of a topic that is gone" in str(loss)


@given(st.uuids())
def test_the_id_of_a_topic_stands_beside_its_offset(topic_id: uuid.UUID) -> None:
    assert topic_id_of(metadata_of(str(topic_id))) == str(topic_id)
    assert topic_id_of(metadata_of("")) == topic_id_of(None) == topic_id_of("of another tool") == ""
