"""Each offset of a topic becomes a record or its coordinates, in bounded memory."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections.abc import Sequence
from unittest import mock

import lz4.frame
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.streaming import intact
from ares_stream.streaming.batches import MAX_HEADERS, Batches, BatchReader, RawBatch
from ares_stream.streaming.records import InboundRecord, ReadLimits
from tests.support.raw_batches import (
    CODECS,
    RawRecord,
    batch,
    compressed,
    field,
    varint,
    xerial,
)

MIB = 1 << 20
CONTROL, TRANSACTIONAL = 0x20, 0x10


def cut(
    data: bytes,
    *,
    position: int = 0,
    highwater: int = 10_000_000,
    aborted: list[tuple[int, int]] | None = None,
) -> list[RawBatch]:
    return list(Batches("t", 0, data, position=position, highwater=highwater, aborted=aborted))


def read(
    data: bytes,
    limits: ReadLimits | None = None,
    *,
    position: int = 0,
    highwater: int = 10_000_000,
    aborted: list[tuple[int, int]] | None = None,
) -> list[InboundRecord]:
    found = cut(data, position=position, highwater=highwater, aborted=aborted)
    return [record for raw in found for record in BatchReader(raw, limits or ReadLimits())]


def reasons(records: Sequence[InboundRecord]) -> list[str | None]:
    return [record.damage.reason if record.damage else None for record in records]


FIELDS = st.none() | st.binary(max_size=300)
RECORDS = st.lists(
    st.builds(
        RawRecord,
        FIELDS,
        FIELDS,
        st.lists(st.tuples(st.text(max_size=5).map(str.encode), FIELDS), max_size=3).map(tuple),
    ),
    min_size=1,
    max_size=20,
)


@given(records=RECORDS, codec=st.sampled_from(CODECS), base=st.integers(0, 1 << 40))
def test_records_are_read_byte_for_byte_whatever_the_codec(
    records: list[RawRecord], codec: str, base: int
) -> None:
    got = read(batch(records, codec, base=base), position=base, highwater=1 << 50)
    assert [(r.key, r.value, tuple((n.encode(), v) for n, v in r.headers)) for r in got] == [
        (r.key, r.value, r.headers) for r in records
    ]
    assert [record.offset for record in got] == [base + n for n in range(len(records))]
    assert {record.timestamp_ms for record in got} == {1_700_000_000_000}
    assert not any(record.damage for record in got)


@given(data=st.binary(max_size=400), position=st.integers(0, 1000))
def test_no_bytes_make_reading_raise_or_go_back(data: bytes, position: int) -> None:
    got = read(data, position=position)
    offsets = [record.offset for record in got]
    assert offsets == sorted(set(offsets))
    assert all(offset >= position for offset in offsets)


@given(
    codec=st.sampled_from(CODECS),
    places=st.lists(st.integers(61, 10_000), min_size=1, max_size=5),
    byte=st.integers(0, 255),
)
def test_however_a_payload_is_bent_every_offset_is_a_record_or_coordinates(
    codec: str, places: list[int], byte: int
) -> None:
    payload = bytearray(
        compressed(codec, b"".join(RawRecord(b"k", b"v" * 30).encoded(n) for n in range(9)))
    )
    for place in places:
        payload[place % len(payload)] = byte
    got = read(batch([], codec, payload=bytes(payload), count=9) + batch([RawRecord()], base=9))
    assert [record.offset for record in got] == list(range(10))
    assert got[-1].damage is None


def carefully(data: bytes, limits: ReadLimits | None = None) -> list[InboundRecord]:
    """As it is read where aiokafka was built without a compiler."""
    with mock.patch.object(intact, "_compiled", None):
        return read(data, limits)


BENT = st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=11)), max_size=4)


@given(records=RECORDS, codec=st.sampled_from(CODECS), bent=BENT, more=st.integers(-2, 2))
def test_the_compiled_reader_and_the_careful_one_find_the_same_in_bent_batches(
    records: list[RawRecord], codec: str, bent: list[tuple[int, bytes]], more: int
) -> None:
    raw = bytearray(b"".join(item.encoded(n) for n, item in enumerate(records)))
    for place, piece in bent:
        at = place % len(raw)
        raw[at : at + len(piece)] = piece
    count = max(1, len(records) + more)
    data = batch([], codec, payload=compressed(codec, bytes(raw)), count=count)
    assert read(data) == carefully(data)
    limits = ReadLimits(record_bytes=200, batch_bytes=500)
    assert read(data, limits) == carefully(data, limits)


NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)


@given(delta=NUMBERS, offset=NUMBERS, sizes=st.lists(NUMBERS, min_size=5, max_size=5))
def test_the_largest_numbers_are_read_alike_by_both(
    delta: int, offset: int, sizes: list[int]
) -> None:
    """Sizes near the end of 64 bits must not make the compiled one read behind its bytes."""
    bodies = [
        b"\0" + varint(delta) + varint(0) + field(b"k") + field(b"v") + varint(0),
        b"\0" + varint(0) + varint(offset) + field(b"k") + field(b"v") + varint(0),
        b"\0" + varint(0) + varint(2) + varint(sizes[0]) + b"k",
        b"\0" + varint(0) + varint(3) + field(b"k") + varint(sizes[1]) + b"v",
        b"\0" + varint(0) + varint(4) + field(b"k") + field(b"v") + varint(sizes[2]),
        b"\0" + varint(0) + varint(5) + field(b"k") + field(b"v") + varint(1) + varint(sizes[3]),
        b"\0" + varint(0) + varint(6) + field(b"k") + field(b"v") + varint(1) + field(b"h")
        + varint(sizes[4]),
    ]  # fmt: skip
    for order in (bodies, bodies[:1], *([item] for item in bodies[2:])):
        payload = b"".join(varint(len(item)) + item for item in order)
        data = batch([], "none", payload=payload, count=len(order))
        assert read(data) == carefully(data)


def test_a_time_that_no_long_holds_is_what_its_64_bits_say() -> None:
    body = b"\0" + varint((1 << 63) - 1) + varint(0) + field(b"k") + field(b"v") + varint(0)
    data = batch([], "none", payload=varint(len(body)) + body, count=1)
    (record,) = read(data)
    struct.pack(">q", record.timestamp_ms)
    assert record.timestamp_ms == 1_700_000_000_000 - (1 << 63) - 1
    assert [record] == carefully(data)


@pytest.mark.parametrize("codec", CODECS)
def test_usual_batches_are_read_by_the_compiled_reader(codec: str) -> None:
    data = batch([RawRecord(headers=((b"h", b"1"),)) for _ in range(9)], codec)
    with mock.patch.object(BatchReader, "_parse", side_effect=AssertionError):
        assert len(read(data)) == 9
        with pytest.raises(AssertionError):
            carefully(data)


def test_attributes_that_are_no_single_byte_to_the_compiled_reader_are_for_the_careful_one() -> (
    None
):
    body = b"\x80" + varint(0) + varint(0) + field(b"k") + field(b"v") + varint(0)
    data = batch([], "none", payload=varint(len(body)) + body, count=1)
    assert [(item.key, item.value) for item in read(data)] == [(b"k", b"v")]


def test_reading_begins_at_the_position_in_the_middle_of_a_batch() -> None:
    got = read(batch([RawRecord(value=b"%d" % n) for n in range(5)], "lz4", base=10), position=13)
    assert [(record.offset, record.value) for record in got] == [(13, b"3"), (14, b"4")]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_bytes_behind_a_compressed_frame_are_not_looked_at_as_in_kafkas_own_client(
    codec: str,
) -> None:
    records = [RawRecord(value=b"%d" % n) for n in range(3)]
    whole = compressed(codec, b"".join(r.encoded(n) for n, r in enumerate(records)))
    got = read(batch(records, codec, payload=whole + b"trailing"))
    assert [record.value for record in got] == [b"0", b"1", b"2"]


def test_gzip_members_and_zstd_frames_that_follow_each_other_are_one_stream() -> None:
    records = [RawRecord(value=b"x" * 1000), RawRecord(value=b"y" * 1000)]
    plain = b"".join(r.encoded(n) for n, r in enumerate(records))
    for codec, payload in (
        ("gzip", gzip.compress(plain[:700]) + gzip.compress(plain[700:])),
        ("zstd", compressed("zstd", plain[:700]) + compressed("zstd", plain[700:])),
    ):
        assert [r.value for r in read(batch(records, codec, payload=payload))] == [
            r.value for r in records
        ]


def test_javas_framing_of_snappy_is_read_and_a_block_cut_short_is_coordinates() -> None:
    records = [RawRecord(value=bytes([n]) * 20_000) for n in range(8)]
    payload = xerial(b"".join(r.encoded(n) for n, r in enumerate(records)))
    assert [r.value for r in read(batch(records, "snappy", payload=payload))] == [
        r.value for r in records
    ]
    got = read(batch(records, "snappy", payload=payload[:-5]))
    assert len(got) == 8
    assert got[-1].damage is not None


def test_one_header_name_that_is_no_text_costs_its_own_record_alone() -> None:
    records = [RawRecord(), RawRecord(headers=((b"\xff\xfe", b"x"),)), RawRecord(value=b"after")]
    got = read(batch(records, "gzip"))
    assert reasons(got) == [None, "a header's name is not UTF-8", None]
    assert got[1].offset == 1
    assert got[1].damage is not None
    assert got[1].damage.of == "record"


def test_a_null_header_value_stays_null() -> None:
    (got,) = read(batch([RawRecord(headers=((b"h", None), (b"e", b"")))]))
    assert got.headers == (("h", None), ("e", b""))


def test_a_wrong_checksum_costs_the_batch_and_the_next_one_is_read() -> None:
    broken = bytearray(batch([RawRecord(), RawRecord()]))
    broken[-1] ^= 1
    got = read(bytes(broken) + batch([RawRecord(value=b"after")], base=2))
    assert reasons(got) == ["its checksum is wrong"] * 2 + [None]
    assert [record.offset for record in got] == [0, 1, 2]
    assert got[0].damage is not None
    assert (got[0].damage.of, got[0].damage.size) == ("batch", len(broken))


def test_a_header_that_lies_about_its_offsets_does_not_lead_the_reader_astray() -> None:
    broken = bytearray(batch([RawRecord()]))
    broken[23:27] = b"\x7f\xff\xff\xff"  # the last offset's delta
    got = read(bytes(broken) + batch([RawRecord(value=b"after")], base=1), highwater=2)
    assert [record.offset for record in got] == [0, 1]
    assert got[1].value == b"after"


def test_a_record_whose_fields_disagree_with_its_size_costs_itself_alone() -> None:
    bad = b"\0" + varint(0) + varint(1) + field(b"k") + varint(100) + b"short"
    payload = RawRecord().encoded(0) + varint(len(bad)) + bad + RawRecord().encoded(2)
    got = read(batch([], payload=payload, count=3))
    assert reasons(got) == [None, "it ends in the middle of a field", None]


def test_offsets_out_of_order_are_coordinates_at_the_offset_that_is_due() -> None:
    payload = RawRecord().encoded(0) + RawRecord().encoded(0) + RawRecord().encoded(2)
    got = read(batch([], payload=payload, count=3))
    assert [record.offset for record in got] == [0, 1, 2]
    assert reasons(got) == [None, "its offset is out of order", None]


def test_a_compacted_batch_keeps_its_gaps() -> None:
    payload = RawRecord().encoded(1) + RawRecord().encoded(4)
    data = bytearray(batch([], payload=payload, count=6))
    data[57:61] = (2).to_bytes(4, "big")  # two of six records are left
    data[17:21] = (
        __import__("aiokafka.record.util", fromlist=["x"])
        .calc_crc32c(bytes(data[21:]))
        .to_bytes(4, "big")
    )
    raw = cut(bytes(data))
    assert [r.offset for r in BatchReader(raw[0], ReadLimits())] == [1, 4]
    assert raw[0].next_offset == 6


def test_a_record_larger_than_the_limit_is_coordinates_with_its_digest_and_costs_itself_alone() -> (
    None
):
    records = [RawRecord(value=b"a"), RawRecord(value=b"x" * 3 * MIB), RawRecord(value=b"b")]
    got = read(batch(records, "zstd"), ReadLimits(record_bytes=MIB))
    assert [record.value for record in got] == [b"a", None, b"b"]
    assert got[1].damage is not None
    assert got[1].damage.of == "record"
    assert got[1].damage.size > 3 * MIB


def test_more_headers_than_the_limit_are_coordinates() -> None:
    many = RawRecord(headers=((b"", None),) * (MAX_HEADERS + 1))
    got = read(batch([many, RawRecord()], "gzip"))
    assert reasons(got) == [f"it has {MAX_HEADERS + 1} headers; up to {MAX_HEADERS} are read", None]


def zeros(codec: str, size: int) -> bytes:
    """A record of `size` zeros, compressed piece by piece."""
    head = varint(size) + b"\0" + varint(0) + varint(0) + field(b"k") + varint(size - 16)
    if codec == "gzip":
        return gzip.compress(head + bytes(size))
    if codec == "lz4":
        return bytes(lz4.frame.compress(head + bytes(size)))
    if codec == "zstd":
        return zstandard.ZstdCompressor().compress(head + bytes(size))
    return compressed(codec, head + bytes(size))


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_bomb_is_coordinates_and_is_never_in_memory_as_a_whole(codec: str) -> None:
    data = batch([], codec, payload=zeros(codec, 96 * MIB), count=3)
    limits = ReadLimits(record_bytes=MIB, batch_bytes=8 * MIB)
    tracemalloc.start()
    try:
        got = read(data, limits)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [record.offset for record in got] == [0, 1, 2]
    assert all(record.damage for record in got)
    assert peak < 12 * MIB + 2 * len(data)


def test_what_an_aborted_transaction_wrote_is_left_out_and_its_marker_too() -> None:
    def of(producer: int, base: int, flags: int = TRANSACTIONAL) -> bytes:
        return batch([RawRecord(value=b"%d" % producer)], base=base, producer=producer, flags=flags)

    data = of(1, 0) + of(2, 1) + of(1, 2, CONTROL | TRANSACTIONAL) + of(1, 3)
    batches = Batches("t", 0, data, position=0, highwater=9, aborted=[(1, 0)])
    got = [r for raw in batches for r in BatchReader(raw, ReadLimits())]
    assert [(record.offset, record.value) for record in got] == [(1, b"2"), (3, b"1")]
    assert batches.next_fetch_offset == 4
    everything = read(data, aborted=None)
    assert [record.offset for record in everything] == [0, 1, 3]


def test_a_batch_of_unknown_format_is_coordinates() -> None:
    data = bytearray(batch([RawRecord()]))
    data[16] = 3
    assert reasons(read(bytes(data))) == ["unknown format"]


def test_the_end_of_a_fetch_may_cut_a_batch_and_what_came_whole_is_read() -> None:
    data = batch([RawRecord()]) + batch([RawRecord()], base=1)[:-3]
    batches = Batches("t", 0, data, position=0, highwater=9, aborted=None)
    assert len(list(batches)) == 1
    assert batches.next_fetch_offset == 1


@given(st.integers(0, 2**31 - 1))
def test_a_batch_says_which_leader_wrote_it(epoch: int) -> None:
    data = bytearray(batch([RawRecord()]))
    # It lies in front of what the checksum covers: each leader writes its own.
    data[12:16] = epoch.to_bytes(4)
    [raw] = cut(bytes(data))
    assert (raw.damage, raw.leader_epoch) == (None, epoch)


def test_of_a_batch_that_cannot_be_read_no_leader_is_known() -> None:
    data = bytearray(batch([RawRecord()]))
    data[-1] ^= 1
    [raw] = cut(bytes(data))
    assert raw.damage is not None
    assert raw.leader_epoch == -1
