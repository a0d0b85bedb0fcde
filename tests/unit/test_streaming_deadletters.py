"""Dead letters carry the record as it was, or its coordinates, and say why."""

import hashlib

import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import DecodeError, remember_secret
from ares_stream.streaming.deadletters import (
    MAX_REASON,
    batch_size,
    dead_letter,
    kept_whole,
    parted,
)
from ares_stream.streaming.records import Damage, InboundRecord, OutboundRecord, Rejection

BYTES = st.none() | st.binary(max_size=200)


HEADERS = st.lists(st.tuples(st.text(max_size=9), BYTES), max_size=4).map(tuple)


def letter(
    record: InboundRecord, error: Exception, stage: str = "decode", limit: int | None = None
) -> OutboundRecord:
    return dead_letter(
        record,
        Rejection.of(stage, error),
        "x.deadletters",
        service="scorer",
        failed_at_ms=7,
        limit=limit,
    )


def headers_of(made: OutboundRecord) -> dict[str, bytes]:
    return {name: value or b"" for name, value in made.headers}


@given(key=BYTES, value=st.binary(max_size=200), headers=HEADERS)
def test_key_value_and_headers_are_kept_byte_for_byte_and_null_stays_null(
    key: bytes | None, value: bytes, headers: tuple[tuple[str, bytes | None], ...]
) -> None:
    record = InboundRecord("in", 3, 41, 1_700_000_000_000, key, value, headers)

    got = letter(record, ValueError("no"))

    assert (got.topic, got.key, got.value) == ("x.deadletters", key, value)
    assert got.headers[: len(headers)] == headers
    assert kept_whole(got)


def test_a_record_without_key_and_value_is_kept_by_coordinates() -> None:
    got = letter(InboundRecord("in", 3, 41, 5, None, None, (("h", b"x"),)), ValueError("no"))
    headers = headers_of(got)
    assert (got.key, got.value) == (None, b"")
    assert headers["ares.errors.kept"] == b"coordinates"
    assert headers["ares.errors.why_not_whole"] == b"it has neither key nor value"
    assert headers["ares.errors.size"] == b"2"
    assert headers["__connect.errors.offset"] == b"41"
    assert not kept_whole(got)


def test_a_dead_letter_of_a_dead_letter_is_told_by_its_own_reasons() -> None:
    first = letter(InboundRecord("in", 3, 41, 5, None, None), ValueError("no"))
    record = InboundRecord("letters", 0, 7, 5, b"k", first.value, first.headers)
    again = letter(record, ValueError("again"))
    theirs, reasons = parted(again)
    assert (theirs, len(reasons)) == (first.headers, 11)
    assert (kept_whole(first), kept_whole(again)) == (False, True)
    assert parted(OutboundRecord("x", None, b"", (("h", b""),))) == ((("h", b""),), ())


def test_what_the_topic_does_not_take_is_kept_by_coordinates_with_the_digest_of_its_value() -> None:
    record = InboundRecord("in", 3, 41, 5, b"k", b"v" * 5000)
    got = letter(record, ValueError("no"), limit=5000)
    headers = headers_of(got)
    assert (got.key, got.value) == (b"k", b"")
    assert headers["ares.errors.sha256"] == hashlib.sha256(b"v" * 5000).hexdigest().encode()
    assert headers["ares.errors.sha256_of"] == b"value"
    assert headers["ares.errors.size"] == b"5001"
    assert batch_size(got) < 2000


@pytest.mark.parametrize("room", [0, 1])
def test_the_limit_is_exact_to_the_byte(room: int) -> None:
    record = InboundRecord("in", 3, 41, 5, b"k", b"v" * 5000)
    needed = batch_size(letter(record, ValueError("no")))
    assert kept_whole(letter(record, ValueError("no"), limit=needed - 1 + room)) == bool(room)


def test_a_long_key_is_not_kept_beside_coordinates() -> None:
    record = InboundRecord("in", 3, 41, 5, b"k" * 2000, b"v")
    assert letter(record, ValueError("no"), limit=100).key is None


def test_what_could_not_be_read_carries_the_digest_of_its_bytes() -> None:
    damage = Damage("its checksum is wrong", 99, "ab" * 32, "batch")
    record = InboundRecord("in", 3, 41, -1, None, None, damage=damage)
    headers = headers_of(letter(record, ValueError("no"), "fetch"))
    assert headers["ares.errors.why_not_whole"] == b"its checksum is wrong"
    assert headers["ares.errors.sha256"] == b"ab" * 32
    assert headers["ares.errors.sha256_of"] == b"batch"


@given(key=BYTES, value=BYTES, headers=HEADERS)
def test_the_size_of_a_batch_is_what_a_producer_makes_of_it(
    key: bytes | None, value: bytes | None, headers: tuple[tuple[str, bytes | None], ...]
) -> None:
    builder = DefaultRecordBatchBuilder(2, 0, 1, 7, 1, 0, 1 << 20)
    builder.append(0, timestamp=1_700_000_000_000, key=key, value=value, headers=list(headers))
    assert batch_size(OutboundRecord("t", key, value, headers)) == len(builder.build())


def test_the_reason_is_told_in_kafka_connects_headers() -> None:
    record = InboundRecord("in", 3, 41, 1_700_000_000_000, b"k", b"{", ())
    try:
        raise DecodeError("is not JSON", field="messages.0")
    except DecodeError as raised:
        headers = headers_of(letter(record, raised))

    stack = headers.pop("__connect.errors.exception.stacktrace").decode()
    assert headers == {
        "__connect.errors.topic": b"in",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"41",
        "__connect.errors.stage": b"decode",
        "__connect.errors.class.name": b"scorer",
        "__connect.errors.exception.class.name": b"ares_stream.errors.DecodeError",
        "__connect.errors.exception.message": b"messages.0: is not JSON",
        "ares.errors.attempt": b"1",
        "ares.errors.first_failed_at": b"7",
        "ares.errors.original_timestamp": b"1700000000000",
    }
    assert "test_streaming_deadletters.py" in stack
    assert "raise DecodeError" not in stack, "a source line may hold text of a conversation"


def test_a_long_reason_is_cut_and_a_strange_one_is_still_a_header() -> None:
    record = InboundRecord("in", 0, 0, -1, None, None, ())
    headers = headers_of(letter(record, ValueError("\ud800" + "x" * 10_000)))
    assert len(headers["__connect.errors.exception.message"]) <= 600


@pytest.mark.parametrize("kind", [DecodeError, ValueError])
def test_a_secret_is_not_in_the_reason_whoever_raised_it_and_wherever_it_is_cut(
    kind: type[Exception],
) -> None:
    remember_secret("open sesame")
    record = InboundRecord("in", 3, 41, 5, b"k", b"v")
    for before in (0, MAX_REASON - 12, MAX_REASON - 5):
        said = headers_of(letter(record, kind("x" * before + " open sesame")))
        reason = said["__connect.errors.exception.message"].decode()
        assert reason == ("x" * before + " ***")[:MAX_REASON]
