"""Archives give back what was put in, byte for byte, or an error that names the hole."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ares_stream.audit.archive import ArchiveReader, write_archive
from ares_stream.audit.ranges import RangeReader
from ares_stream.errors import AresError, ReadError, TopicError
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.records import InboundRecord
from tests.support.notarised import records_of

BYTES = st.none() | st.binary(max_size=20)


class Memory:
    """Records of one partition, as a reader."""

    def __init__(self, records: Sequence[InboundRecord]) -> None:
        self._records = records

    async def snapshot(
        self, topics: Sequence[str], *, since_ms: int | None = None
    ) -> tuple[OffsetRange, ...]:
        raise NotImplementedError

    async def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
        for item in ranges:
            for record in self._records:
                if item.start <= record.offset < item.end:
                    yield record


def covered(start: int, end: int, topic: str = "ares.verdicts") -> OffsetRange:
    return OffsetRange(topic=topic, partition=2, start=start, end=end)


def write(records: Sequence[InboundRecord], url: str, *ranges: OffsetRange) -> int:
    return asyncio.run(write_archive(Memory(records), ranges, url))


def content(reader: RangeReader, *ranges: OffsetRange) -> list[InboundRecord]:
    async def work() -> list[InboundRecord]:
        return [item async for item in reader.read(ranges)]

    return asyncio.run(work())


@given(
    st.lists(
        st.tuples(
            BYTES, BYTES, st.lists(st.tuples(st.text(max_size=5), BYTES), max_size=3),
            st.integers(-1, 2**60), st.integers(1, 3),
        ),
        min_size=1,
        max_size=8,
    )
)  # fmt: skip
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_record_comes_back_byte_for_byte(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]], int, int]],
) -> None:
    offset, records = 0, []
    for key, value, headers, time, step in rows:
        records.append(InboundRecord("ares.verdicts", 2, offset, time, key, value, tuple(headers)))
        offset += step
    url = str(tmp_path_factory.mktemp("archive"))
    assert write(records, url, covered(0, offset)) == len(records)
    assert content(ArchiveReader(url), covered(0, offset)) == records


def test_ranges_archived_one_after_the_other_read_as_one_and_in_part(tmp_path: Path) -> None:
    records, url = records_of(40), str(tmp_path)
    write(records, url, covered(0, 20), covered(30, 30))
    write(records, url, covered(20, 46))
    reader = ArchiveReader(f"file://{url}")
    (whole,) = asyncio.run(reader.snapshot(["ares.verdicts"]))
    assert (whole.start, whole.end) == (0, 46)
    assert content(reader, whole) == records
    part = content(reader, covered(15, 25))
    assert part == [item for item in records if 15 <= item.offset < 25]
    (late,) = asyncio.run(reader.snapshot(["ares.verdicts"], since_ms=records[30].timestamp_ms))
    assert late.start == records[30].offset


def test_a_hole_a_missing_partition_and_a_damaged_file_are_errors_with_offsets(
    tmp_path: Path,
) -> None:
    records, url = records_of(40), str(tmp_path)
    write(records, url, covered(0, 10), covered(20, 30))
    reader = ArchiveReader(url)
    with pytest.raises(ReadError, match=r"ares\.verdicts 2: offsets 10 to 20"):
        asyncio.run(reader.snapshot(["ares.verdicts"]))
    with pytest.raises(ReadError, match="offsets 10 to 25"):
        content(reader, covered(5, 25))
    with pytest.raises(ReadError, match="offsets 30 to 40"):
        content(reader, covered(25, 40))
    with pytest.raises(TopicError, match=r"ares\.other"):
        asyncio.run(reader.snapshot(["ares.other"]))
    with pytest.raises(TopicError, match=r"ares\.other 2"):
        content(reader, covered(0, 1, "ares.other"))
    (file, *_) = sorted(tmp_path.rglob("*.parquet"))
    raw = bytearray(file.read_bytes())
    for place in range(8, len(raw), len(raw) // 30):
        changed = raw.copy()
        changed[place] ^= 0xFF
        file.write_bytes(changed)
        try:
            found = content(reader, covered(0, 10))
        except AresError:
            continue
        assert found == [item for item in records if item.offset < 10], place
    file.write_bytes(b"nothing")
    with pytest.raises(ReadError, match="offsets 0 to 10"):
        content(reader, covered(0, 10))


def test_a_file_that_was_exchanged_renamed_or_put_together_anew_is_refused(tmp_path: Path) -> None:
    """Each is a whole Parquet file, with all its checksums."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records, url = records_of(40), str(tmp_path)
    write(records, url, covered(0, 10), covered(10, 20), covered(0, 10, "ares.repair"))
    folder = tmp_path / "ares.verdicts" / "2"
    first, second = sorted(folder.glob("*.parquet"))
    good, reader = first.read_bytes(), ArchiveReader(url)
    longer = folder / first.name.replace("010.parquet", "015.parquet")
    other = next((tmp_path / "ares.repair").rglob("*.parquet")).read_bytes()
    for exchanged in (second.read_bytes(), other):
        first.write_bytes(exchanged)
        with pytest.raises(ReadError, match=r"offsets 0 to 10: .*exchanged or renamed"):
            content(reader, covered(0, 20))
    # Under a name that covers more, the rest would count as compacted away.
    first.rename(longer)
    longer.write_bytes(good)
    with pytest.raises(ReadError, match=r"offsets 0 to 15: .*exchanged or renamed"):
        content(reader, covered(0, 20))
    longer.rename(first)
    table = pq.read_table(pa.BufferReader(good))
    backwards = table.take(list(range(table.num_rows))[::-1])
    strange = pa.table({name: ["x"] for name in ("offset", "timestamp_ms", "key", "value")})
    for put in (
        pa.concat_tables([table, table]),
        backwards,
        table.drop_columns(["headers"]),
        strange,
        table.set_column(0, "offset", pa.array(["x"] * table.num_rows)),
        table.set_column(0, "offset", pa.array([100 + k for k in range(table.num_rows)])),
    ):
        pq.write_table(put, first)
        with pytest.raises(ReadError, match=r"offsets 0 to 10: .* is damaged or no archive"):
            content(reader, covered(0, 20))
    # What an older version wrote says nothing of its place.
    pq.write_table(table.replace_schema_metadata(None), first)
    assert content(reader, covered(0, 20)) == [item for item in records if item.offset < 20]


def test_what_held_nothing_is_archived_and_what_was_never_archived_is_missed(
    tmp_path: Path,
) -> None:
    empty = OffsetRange(topic="ares.deadletters", partition=0, start=7, end=7)
    assert write([], str(tmp_path), empty) == 0
    reader = ArchiveReader(str(tmp_path))
    assert asyncio.run(reader.snapshot(["ares.deadletters"])) == (empty,)
    assert content(reader, empty) == []
    with pytest.raises(TopicError, match=r"holds no topic ares\.alarms"):
        asyncio.run(reader.snapshot(["ares.alarms"]))
    # What came later goes beside it.
    (record,) = records_of(1, topic="ares.deadletters")
    later = empty.model_copy(update={"end": 9})
    write([replace(record, partition=0, offset=8)], str(tmp_path), later)
    assert asyncio.run(reader.snapshot(["ares.deadletters"])) == (later,)
    assert [item.offset for item in content(reader, later)] == [8]


def test_a_partition_that_is_taken_out_of_an_archive_is_missed(tmp_path: Path) -> None:
    records = records_of(5)
    others = [covered(0, 0).model_copy(update={"partition": number}) for number in (0, 1, 3)]
    write(records, str(tmp_path), covered(0, 5), *others)
    reader = ArchiveReader(str(tmp_path))
    assert len(asyncio.run(reader.snapshot(["ares.verdicts"]))) == 4
    shutil.rmtree(tmp_path / "ares.verdicts" / "2")
    with pytest.raises(ReadError, match=r"ares\.verdicts 2: is not in the archive"):
        asyncio.run(reader.snapshot(["ares.verdicts"]))


def test_an_archive_says_until_when_it_was_taken(tmp_path: Path) -> None:
    reader = ArchiveReader(str(tmp_path))
    for at_ms, start in ((100, 0), (None, 10), (200, 20)):
        ranges = [covered(start, start + 10)]
        asyncio.run(write_archive(Memory([]), ranges, str(tmp_path), at_ms=at_ms))
        assert reader.taken_ms("ares.verdicts") == at_ms
    behind = covered(0, 0).model_copy(update={"partition": 0})
    asyncio.run(write_archive(Memory([]), [behind], str(tmp_path), at_ms=150))
    assert reader.taken_ms("ares.verdicts") == 150
