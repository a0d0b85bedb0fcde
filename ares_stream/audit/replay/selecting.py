"""Which offsets are replayed: all, times, offsets, a plan's batch, a release's verdicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.audit.ranges import RangeReader
from ares_stream.audit.replay.recorded import Source, source_named
from ares_stream.audit.replay.spec import Selection
from ares_stream.errors import DecodeError, InputError, ReadError, SettingsError
from ares_stream.records.base import OffsetRange
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import Verdict

_OFFSETS: Final = re.compile(r"(\S+):(\d{1,9}):(\d{1,18})-(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Names:
    """Full names of the topics: inputs, outputs of a scorer, reports of repairs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    verdicts: str
    repairs: str


async def select(
    reader: RangeReader,
    names: Names,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    offsets: Sequence[OffsetRange] = (),
    plan: str | None = None,
    release: str | None = None,
) -> Selection:
    """The ranges, fixed now. At most one of times, offsets, plan and release is given.

    Times are those of Kafka's records. A partition's range begins with the first record that is
    not older than `since_ms` and ends before the first that is not older than `until_ms`, so that
    neighbouring times share no record and lose none, whatever order their clocks gave them.
    Raises ReadError where retention has deleted what a range should hold, InputError where
    nothing is meant.
    """
    given = [since_ms is not None or until_ms is not None, bool(offsets), bool(plan), bool(release)]
    if sum(given) > 1:
        raise SettingsError("name times, offsets, a plan or a release, and not two of them")
    # Inputs first: an output that is made meanwhile belongs to a record that is in no range yet.
    inputs = await reader.snapshot(names.inputs)
    if offsets:
        inputs = _named(offsets, inputs)
    elif since_ms is not None or until_ms is not None:
        inputs = await _timed(reader, names.inputs, inputs, since_ms, until_ms)
    outputs = await reader.snapshot(names.outputs)
    only: dict[tuple[str, int], tuple[int, ...]] | None = None
    verdicts = [item for item in outputs if item.topic == names.verdicts]
    if plan is not None:
        only = _places(await _of_plan(reader, names.repairs, plan))
        inputs = _covering(only)
    elif release is not None:
        inputs = _covering(await _of_release(reader, verdicts, release))
    return Selection(
        inputs,
        outputs,
        only,
        open_ended=not (offsets or plan or release) and until_ms is None,
        since_ms=since_ms,
        until_ms=until_ms,
    )


def parse_offsets(text: str) -> OffsetRange:
    """Of TOPIC:PARTITION:START-END, END exclusive. Raises SettingsError."""
    found = _OFFSETS.fullmatch(text)
    if found is None or int(found[3]) > int(found[4]):
        raise SettingsError(
            f"--offsets {text}: expected TOPIC:PARTITION:START-END, such as "
            "ares.interactions.production:0:1000-2000"
        )
    return OffsetRange(
        topic=found[1], partition=int(found[2]), start=int(found[3]), end=int(found[4])
    )


def _named(offsets: Sequence[OffsetRange], known: Sequence[OffsetRange]) -> tuple[OffsetRange, ...]:
    there = {(item.topic, item.partition): item for item in known}
    taken: dict[tuple[str, int], list[OffsetRange]] = {}
    for item in offsets:
        place = item.topic, item.partition
        if place not in there:
            raise SettingsError(
                f"--offsets: {item.topic} {item.partition} is no partition of an input topic; "
                f"there are {', '.join(sorted({topic for topic, _ in there}))}"
            )
        if item.end > there[place].end:
            raise ReadError(
                f"{item.topic} {item.partition} ends at offset {there[place].end}, offset "
                f"{item.end} was asked for"
            )
        if any(item.start < one.end and one.start < item.end for one in taken.get(place, ())):
            raise SettingsError(f"--offsets: two ranges of {item.topic} {item.partition} overlap")
        taken.setdefault(place, []).append(item)
    return tuple(sorted(offsets, key=lambda item: (item.topic, item.partition, item.start)))


async def _timed(
    reader: RangeReader,
    topics: Sequence[str],
    known: Sequence[OffsetRange],
    since_ms: int | None,
    until_ms: int | None,
) -> tuple[OffsetRange, ...]:
    begins = {(item.topic, item.partition): item.start for item in known}
    starts = dict(begins)
    ends = {(item.topic, item.partition): item.end for item in known}
    if since_ms is not None:
        for item in await reader.snapshot(topics, since_ms=since_ms):
            place = item.topic, item.partition
            if place in ends:  # A partition that came since is in no range.
                starts[place] = min(item.start, ends[place])
    if until_ms is not None:
        for item in await reader.snapshot(topics, since_ms=until_ms):
            place = item.topic, item.partition
            if place in ends:
                ends[place] = min(item.start, ends[place])
    for (topic, partition), start in starts.items():
        if since_ms is not None and 0 < start == begins[topic, partition] < ends[topic, partition]:
            raise ReadError(
                f"truncated: {topic} {partition} begins at offset {start}, with a record that is "
                "younger than --since: retention has deleted offsets 0 to "
                f"{start}, and what of them is meant; begin later, or read archives"
            )
    return tuple(
        OffsetRange(
            topic=item.topic,
            partition=item.partition,
            start=min(starts[item.topic, item.partition], ends[item.topic, item.partition]),
            end=ends[item.topic, item.partition],
        )
        for item in known
    )


async def _of_plan(reader: RangeReader, repairs: str, plan: str) -> list[Source]:
    batch: tuple[OffsetRange, ...] = ()
    async for record in reader.read(await reader.snapshot([repairs])):
        try:
            report = RepairReport.decode(record.value or b"")
        except DecodeError:
            continue
        if report.plan_id == plan:
            batch = report.batch
    if not batch:
        raise InputError(f"--plan {plan}: {repairs} holds no report of such a plan with a batch")
    found = []
    async for record in reader.read(batch):
        try:
            source = CoupledFailure.decode(record.value or b"").verdict.source
        except DecodeError as error:
            raise ReadError(
                f"{record.topic} {record.partition} offset {record.offset}, of the batch of plan "
                f"{plan}: no coupled failure: {error}"
            ) from None
        found.append(Source(source.topic, source.partition, source.offset))
    return found


async def _of_release(
    reader: RangeReader, verdicts: Sequence[OffsetRange], release: str
) -> dict[tuple[str, int], tuple[int, ...]]:
    """First and last offset, of each input partition, whose verdict the release took part in."""
    spans: dict[tuple[str, int], tuple[int, ...]] = {}
    wanted = f'"{release}'.encode()
    async for record in reader.read(verdicts):
        value = record.value or b""
        if wanted not in value or not _took_part(value, release):
            continue
        source = source_named(value)
        key = source.topic, source.partition
        known = spans.get(key, (source.offset, source.offset))
        spans[key] = (min(known[0], source.offset), max(known[-1], source.offset))
    if not spans:
        raise InputError(f"--release {release}: took part in no verdict that is still there")
    return spans


def _took_part(value: bytes, release: str) -> bool:
    try:
        releases = Verdict.decode(value).releases
    except DecodeError:
        return False
    return any(item.startswith(release) for item in releases.values())


def _places(sources: Iterable[Source]) -> dict[tuple[str, int], tuple[int, ...]]:
    found: dict[tuple[str, int], set[int]] = {}
    for item in sources:
        found.setdefault((item.topic, item.partition), set()).add(item.offset)
    return {place: tuple(sorted(found[place])) for place in sorted(found)}


def _covering(places: dict[tuple[str, int], tuple[int, ...]]) -> tuple[OffsetRange, ...]:
    return tuple(
        OffsetRange(topic=topic, partition=partition, start=offsets[0], end=offsets[-1] + 1)
        for (topic, partition), offsets in sorted(places.items())
    )
