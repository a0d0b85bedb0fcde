"""Which failures wait for a repair, read from Kafka without committing anything. What is settled
is known twice: by the group's committed offsets, and by the reports of promoted repairs, which
are published first; a kill between the two, or a partition that moved, trains nothing again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel

from ares_stream.errors import DecodeError, RepairError, SettingsError
from ares_stream.files import read_rows
from ares_stream.records.base import OffsetRange
from ares_stream.records.label import Label
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.traces import TraceParent, sampled_parent
from ares_stream.repair.plan import Replay, ReplaySample, ValidatedPair
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.unreadable import PassedOver

BATCH_BYTES: Final = 256 << 20
"""A batch is held in memory; records may be megabytes."""
_Row = TypeVar("_Row", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Batch:
    """Failures that wait, where they were read, and what could not be read there."""

    failures: tuple[CoupledFailure, ...]
    ranges: tuple[OffsetRange, ...]
    new: int
    """How many no repair has tried yet."""
    oldest_new_ms: int | None
    """Kafka's timestamp of the oldest of those."""
    unreadable: int
    """Records of the ranges that were passed over."""


def ends(
    reports: Mapping[str, RepairReport], topic: str, states: Sequence[str] | None = None
) -> dict[int, int]:
    """Per partition the end of what repairs have covered, of those in `states`, or of all."""
    covered: dict[int, int] = {}
    for report in reports.values():
        if states is None or report.state in states:
            for item in report.batch:
                if item.topic == topic:
                    covered[item.partition] = max(covered.get(item.partition, 0), item.end)
    return covered


async def read_reports(
    connection: KafkaConnection, topic: str, passed_over: PassedOver
) -> dict[str, RepairReport]:
    """The last report of each plan that can be read, in the order in which they ended."""
    found: dict[str, RepairReport] = {}
    async for record in read(connection, await snapshot(connection, [topic])):
        if record.value is None:
            continue
        try:
            report = RepairReport.decode(record.value)
        except DecodeError as error:
            passed_over(record, error)
            continue
        found[report.plan_id] = report
    return dict(sorted(found.items(), key=lambda item: item[1].finished_at))


async def collect(
    connection: KafkaConnection,
    ranges: Sequence[OffsetRange],
    tried: Mapping[int, int],
    most: int,
    passed_over: PassedOver,
) -> Batch:
    """Read up to `most` failures of the ranges; the batch's ranges end where it ended.

    Raises ReadError when a range cannot be read whole.
    """
    failures: list[CoupledFailure] = []
    unreadable = 0
    reached = {item.partition: item.start for item in ranges}
    new, size = 0, 0
    oldest: int | None = None
    whole = True
    async for record in read(connection, ranges):
        if len(failures) >= most or size >= BATCH_BYTES:
            whole = False
            break
        reached[record.partition] = record.offset + 1
        size += record.size
        try:
            failures.append(CoupledFailure.decode(record.value or b""))
        except DecodeError as error:
            unreadable += 1
            passed_over(record, error)
            continue
        if record.offset >= tried.get(record.partition, 0):
            new += 1
            oldest = min(record.timestamp_ms, oldest or record.timestamp_ms)
    return Batch(
        tuple(failures),
        tuple(
            item if whole else item.model_copy(update={"end": reached[item.partition]})
            for item in ranges
            if whole or reached[item.partition] > item.start
        ),
        new,
        oldest,
        unreadable,
    )


async def read_parents(
    connection: KafkaConnection, ranges: Sequence[OffsetRange]
) -> list[tuple[TraceParent, str]]:
    """Of the failures in the ranges whose trace is sampled: where each came from, and its
    verdict's id. Raises ReadError when a range cannot be read whole."""
    found = []
    async for record in read(connection, ranges):
        parent = sampled_parent(record.headers)
        if parent is None:
            continue
        with contextlib.suppress(DecodeError):  # Told when it was collected.
            found.append((parent, CoupledFailure.decode(record.value or b"").verdict.id))
    return found


async def read_labels(
    connection: KafkaConnection,
    ranges: Sequence[OffsetRange],
    interactions: Collection[str],
    passed_over: PassedOver,
) -> list[Label]:
    """Every label in the ranges that people gave these interactions."""
    wanted = frozenset(interactions)
    labels: list[Label] = []
    async for record in read(connection, ranges):
        if record.value is None:
            continue
        try:
            label = Label.decode(record.value)
        except DecodeError as error:
            passed_over(record, error)
            continue
        if label.interaction_id in wanted:
            labels.append(label)
    return labels


def load_replay(folder: Path) -> Replay:
    """Read benign.jsonl, over_refusal.jsonl and validated.jsonl of a directory.

    Raises SettingsError for a missing file, FileFormatError that names file and line.
    """
    return Replay(
        benign=_rows(folder / "benign.jsonl", ReplaySample),
        over_refusal=_rows(folder / "over_refusal.jsonl", ReplaySample),
        validated=_rows(folder / "validated.jsonl", ValidatedPair),
    )


def _rows(file: Path, form: type[_Row]) -> tuple[_Row, ...]:
    if not file.is_file():
        raise SettingsError(f"{file}: missing; a repair needs benign, over-refusal and validated")
    rows = [row for _, row in read_rows(file, form)]
    if not rows:
        raise RepairError(f"{file}: is empty; a repair without it learns to refuse everything")
    return tuple(rows)
