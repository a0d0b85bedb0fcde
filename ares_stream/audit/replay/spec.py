"""What a replay is to do, and what one block of it gave. Frozen values, of which processes and
files get copies."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from ares_stream.audit.leaves import content_hash
from ares_stream.audit.replay.comparing import FAULTS, Tolerance
from ares_stream.audit.replay.models import MadeWith, Opened, Resources, WhatIf
from ares_stream.audit.replay.recorded import BLOCK, Output, frame_of
from ares_stream.records.base import OffsetRange, digest
from ares_stream.records.decoding import DecodingLimits
from ares_stream.scoring.handler import Input, Outputs
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.records import InboundRecord, Outcome, ReadLimits

Mode = Literal["proof", "what-if"]
LISTED: Final = 1000
"""Differences that a report lists; further ones are counted."""
CHANGES: Final = ("unchanged", "changed", "not_judged", "pending")
"""How records come out of what-if; not_judged have no verdict, as recorded or in the replay."""
MAX_VALUES: Final = 50
"""Values of an attribute that a report keeps apart."""
_RECORD: Final = struct.Struct(">Qq")


@dataclass(frozen=True, slots=True)
class Selection:
    """What is replayed: ranges of the inputs, and of the outputs all that there was.

    `only`, where it is given, names the offsets of a topic and partition that count. `open_ended`
    ranges end where the topic ended when the replay began: what is behind the last settled record
    of a partition is then pending, not missing. `since_ms` and `until_ms` are the times that were
    asked for.
    """

    inputs: tuple[OffsetRange, ...]
    outputs: tuple[OffsetRange, ...]
    only: Mapping[tuple[str, int], tuple[int, ...]] | None = None
    open_ended: bool = True
    since_ms: int | None = None
    until_ms: int | None = None
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    """Of topics whose broker gives ids: one that is made anew is another one."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "inputs": [item.model_dump() for item in self.inputs],
            "outputs": [item.model_dump() for item in self.outputs],
            "only": None
            if self.only is None
            else [[topic, number, list(kept)] for (topic, number), kept in self.only.items()],
            "open_ended": self.open_ended,
            "since_ms": self.since_ms,
            "until_ms": self.until_ms,
            "topic_ids": dict(self.topic_ids),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Selection:
        """From `document`."""
        only = document["only"]
        return cls(
            tuple(OffsetRange(**item) for item in document["inputs"]),
            tuple(OffsetRange(**item) for item in document["outputs"]),
            None
            if only is None
            else {(topic, number): tuple(kept) for topic, number, kept in only},
            document["open_ended"],
            document["since_ms"],
            document["until_ms"],
            document.get("topic_ids", {}),
        )


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """Everything that a worker needs."""

    mode: Mode
    source: KafkaConnection | str
    """A broker, or the URL of an archive."""
    inputs: tuple[Input, ...]
    outputs: Outputs
    deadletters: str
    limits: DecodingLimits
    resources: Resources
    configured: MadeWith | None = None
    """What the settings name: for a block in which no verdict says it."""
    what_if: WhatIf | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)
    read: ReadLimits = field(default_factory=ReadLimits)
    slices: tuple[str, ...] = ()
    """Attributes to slice by."""
    block: int = BLOCK

    @property
    def digest(self) -> str:
        """Of all that decides the result: work that another one left is not gone on with."""
        what_if = self.what_if
        return digest(
            {
                "mode": self.mode,
                "source": self.source if isinstance(self.source, str) else "topics",
                "inputs": [
                    [item.topic, item.lane, item.map and item.map.model_dump(mode="json")]
                    for item in self.inputs
                ],
                "outputs": [*self.outputs.all, self.deadletters],
                "limits": self.limits.model_dump(),
                "read": [self.read.record_bytes, self.read.batch_bytes],
                "policies": [item.digest for item in self.resources.policies],
                "provider": [self.resources.config.provider, self.resources.config.tf32],
                "what_if": what_if
                and [what_if.judges, what_if.reward, what_if.policy and what_if.policy.digest],
                "tolerance": self.tolerance.share,
                "slices": list(self.slices),
                "block": self.block,
            }
        )


@dataclass(frozen=True, slots=True)
class Horizon:
    """What the outputs hold, found when they were sorted.

    `settled` is the offset behind the last settled record of each input partition. `deleted` names
    each partition of an output of which retention deleted records, and the lowest input offset
    of each input partition that it still has an output of: a scorer goes through a partition in the
    order of its offsets, so that what was deleted belongs to lower ones.
    """

    settled: Mapping[tuple[str, int], int] = field(default_factory=dict)
    deleted: Sequence[tuple[Output, str, Mapping[tuple[str, int], int]]] = ()

    def gone(self, topic: str, partition: int, offset: int) -> dict[Output, str]:
        """The outputs that retention may have deleted of an input record, and where what is left
        of them begins."""
        return {
            output: place
            for output, place, lowest in self.deleted
            if offset < lowest.get((topic, partition), offset + 1)
        }


@dataclass(frozen=True, slots=True)
class Job:
    """Offsets start to end of one partition, within one block."""

    topic: str
    partition: int
    start: int
    end: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.topic}-{self.partition}-{self.start:020}-{self.end:020}"

    @property
    def range(self) -> OffsetRange:
        """What it reads."""
        return OffsetRange(
            topic=self.topic, partition=self.partition, start=self.start, end=self.end
        )


def blocks(ranges: Iterable[OffsetRange], size: int) -> tuple[Job, ...]:
    """The ranges, cut at multiples of `size`."""
    jobs = []
    for item in ranges:
        start = item.start
        while start < item.end:
            end = min((start // size + 1) * size, item.end)
            jobs.append(Job(item.topic, item.partition, start, end))
            start = end
    return tuple(jobs)


@dataclass(slots=True)
class Cell:
    """Verdicts of one slice, by class, as recorded and in the replay."""

    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    changed: int = 0

    def add(self, other: Cell) -> None:
        """Take in what another one counted."""
        for mine, theirs in ((self.before, other.before), (self.after, other.after)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        self.changed += other.changed


@dataclass(slots=True)
class BlockResult:
    """What one block gave. Equal for equal blocks, whoever replays them and however often; but
    for `seconds` of CPU."""

    job: Job
    records: int = 0
    read_digest: str = ""
    """SHA-256 over offset, time and content of each record that was read."""
    replayed_digest: str = ""
    """SHA-256 over what the replay made of each."""
    counts: dict[str, int] = field(default_factory=dict)
    """Records by how they came out: see comparing.py, and for what-if CHANGES."""
    differences: list[dict[str, Any]] = field(default_factory=list)
    tolerated: list[dict[str, Any]] = field(default_factory=list)
    cells: dict[str, Cell] = field(default_factory=dict)
    moves: dict[str, int] = field(default_factory=dict)
    """From which class to which, "clean → contested", of verdicts that change."""
    models: list[Opened] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    recorded_opinions: int = 0
    expired: int = 0
    outside: int = 0
    """Records whose own time is not within the times that were asked for."""
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """Records that did not come out as recorded."""
        return sum(self.counts.get(name, 0) for name in FAULTS)

    def count(self, name: str, records: int = 1) -> None:
        """So many records more that came out so."""
        if records:
            self.counts[name] = self.counts.get(name, 0) + records


def read_bytes(record: InboundRecord) -> bytes:
    """What is digested of a record that was read: offset and time, 8 bytes each, big-endian, then
    SHA-256 of its content as the notary's leaves have it (of a damaged one the SHA-256 of what was
    fetched)."""
    if record.damage is not None:
        content = bytes.fromhex(record.damage.sha256)
    else:
        content = content_hash(record.key, record.value, record.headers, None)
    return _RECORD.pack(record.offset, record.timestamp_ms) + content


def replayed_bytes(offset: int, outcome: Outcome) -> bytes:
    """What is digested of what the replay made of a record."""
    if isinstance(outcome, tuple):
        parts: list[bytes] = []
        for item in outcome:
            parts += (frame_of(item.key, item.headers), item.value or b"")
    else:
        parts = [outcome.stage.encode(), outcome.reason.encode(errors="replace")]
    return parts_bytes(offset, parts)


def parts_bytes(offset: int, parts: Sequence[bytes]) -> bytes:
    """The same of frame and value of each output, or of stage and reason of a refusal."""
    sizes = struct.pack(f">{len(parts)}Q", *map(len, parts))
    return b"".join((_RECORD.pack(offset, len(parts)), sizes, *parts))


def combined(results: Iterable[BlockResult], name: Literal["read", "replayed"]) -> str:
    """One digest of several blocks, in the order of topic, partition and offset."""
    hasher = hashlib.sha256()
    for item in sorted(
        results, key=lambda item: (item.job.topic, item.job.partition, item.job.start)
    ):
        job = item.job
        line = f"{job.topic} {job.partition} {job.start} {job.end} {item.records} "
        found = item.read_digest if name == "read" else item.replayed_digest
        hasher.update(f"{line}{found}\n".encode())
    return hasher.hexdigest()
