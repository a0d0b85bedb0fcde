"""Verification, proofs and erasure over topics or archives of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ares_stream.audit.leaves import COMPACTED, subject_hash
from ares_stream.audit.notes import NoteKey, TreeHead, open_head, tree_origin
from ares_stream.audit.proofs import SCHEMA, prove
from ares_stream.audit.ranges import RangeReader, TopicReader
from ares_stream.audit.stamps import Stamps
from ares_stream.audit.verifying import Chain, Comparison, Difference, check_chain, compare
from ares_stream.errors import DecodeError, InputError, IntegrityError, SettingsError
from ares_stream.files import read_text, write_whole
from ares_stream.records import topics
from ares_stream.records.base import OffsetRange, instant
from ares_stream.records.checkpoint import Checkpoint, Salt
from ares_stream.records.topics import topic_name
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import InboundRecord, OutboundRecord

Place = tuple[str, int]
UNSIGNED: Final = timedelta(hours=1)
"""For which a record may be under no checkpoint though others are signed. A round takes seconds."""


@dataclass(frozen=True, slots=True)
class PartitionReport:
    """What was found of one partition; counts as in Comparison. `gaps` are offsets that the
    notary never read."""

    topic: str
    partition: int
    leaves: int
    root: str
    note: str
    checkpoints: int
    others: int
    """Checkpoints of a notary of another name, passed over."""
    kept: int
    """Heads that the auditor kept and that are of this tree."""
    stamps: int
    stamped_size: int
    stamped_at: str | None
    """ISO 8601: when `stamped_size` leaves stood at the latest, where time stamps were checked."""
    equal: int
    erased: int
    compacted: int
    expired: int
    later: int
    unproven: int
    gaps: tuple[tuple[int, int], ...]
    differences: tuple[Difference, ...]


@dataclass(slots=True)
class Report:
    """What `ares audit verify` tells."""

    partitions: list[PartitionReport] = field(default_factory=list)
    strange: list[Difference] = field(default_factory=list)
    """Records of the checkpoints topic that are no checkpoints, or of no partition, and kept heads
    of partitions that are not there."""
    elsewhere: int = 0
    """Heads that the auditor kept and that are of other topics or another notary: not looked at."""

    @property
    def is_unsigned(self) -> bool:
        """Whether there are records and no leaf: nothing is shown then."""
        leaves = sum(part.leaves for part in self.partitions)
        return not leaves and any(part.later for part in self.partitions)

    @property
    def holds(self) -> bool:
        """Whether something was signed, where there is something, and all is as it was signed."""
        return not self.differences and not self.is_unsigned

    @property
    def differences(self) -> list[Difference]:
        """Of all partitions."""
        parts = (item for part in self.partitions for item in part.differences)
        return [*self.strange, *parts]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "schema": "ares.audit-report/1",
            "holds": self.holds,
            "heads_elsewhere": self.elsewhere,
            "strange": [asdict(item) for item in self.strange],
            "partitions": [asdict(part) for part in self.partitions],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        for part in self.partitions:
            counts = ", ".join(
                f"{getattr(part, name)} {name}"
                for name in ("equal", "erased", "compacted", "expired", "unproven", "later")
                if getattr(part, name) or name == "equal"
            )
            yield (
                f"{part.topic} {part.partition}: {part.leaves} leaves in {part.checkpoints} "
                f"checkpoints: {counts}"
            )
            if part.others:
                yield f"  {part.others} checkpoints of a notary of another name, passed over"
            if part.kept:
                yield f"  {part.kept} heads that were kept are of this tree"
            if part.stamped_at is not None:
                yield f"  {part.stamped_size} of them stood at {part.stamped_at}, by time stamp"
            elif part.stamps:
                yield f"  {part.stamps} time stamps, not checked: give --stamp-roots"
            for start, end in part.gaps:
                yield f"  offsets {start} to {end} were gone before the notary read them"
        yield from (f"  {item}" for item in self.differences)
        if self.elsewhere:
            yield f"{self.elsewhere} kept heads are of other topics or notaries: not looked at"
        found = len(self.differences)
        if found:
            yield f"{found} differences"
        elif self.is_unsigned:
            yield "nothing is signed: there are records, and no checkpoint of this notary"
        else:
            yield "all as signed"


async def verify_topics(
    reader: RangeReader,
    prefix: str,
    names: Sequence[str],
    keys: Sequence[NoteKey],
    config: Mapping[str, Mapping[str, str]],
    *,
    known: Sequence[TreeHead] = (),
    stamps: Stamps | None = None,
) -> Report:
    """Compare topics (full names) with their checkpoints; `config` holds each topic's Kafka
    configuration, where it is known. All that is read is what is there now.

    Memory: 49 bytes a leaf, and one partition's records one at a time. Raises TopicError,
    ReadError.
    """
    report = Report()
    chains = await _checkpoints(reader, prefix, report.strange)
    salts = await _salts(reader, prefix)
    now_ms = int(time.time() * 1000)
    name = keys[0].name
    ranges = await reader.snapshot(names)
    _place_heads(report, known, name, names, ranges)
    signed_at = [item.issued_at for items in chains.values() for _, item in items]
    report.strange += _of_nowhere(
        topic_name(prefix, topics.CHECKPOINTS),
        chains,
        names,
        {(item.topic, item.partition) for item in ranges},
    )
    for covered in ranges:
        place = (covered.topic, covered.partition)
        items = chains.get(place, [])
        chain = check_chain(
            *place, items, name=name, keys=keys, known=known,
            stamped_at=None if stamps is None else stamps.checked,
        )  # fmt: skip
        settings = config.get(covered.topic, {})
        records = [item async for item in reader.read([covered])]
        done = compare(
            chain,
            records,
            salts=salts.get(place, {}),
            first=covered.start,
            compacted="compact" in settings.get("cleanup.policy", ""),
            deleted_before_ms=_too_young(settings, now_ms),
        )
        report.partitions.append(_part(chain, done))
        report.strange += _never_signed(chain, records, signed_at)
    return report


def _of_nowhere(
    checkpoints: str,
    chains: Mapping[Place, Sequence[tuple[int, Checkpoint]]],
    names: Sequence[str],
    places: Collection[Place],
) -> list[Difference]:
    """Checkpoints of partitions that the topics do not have. Partitions never become fewer."""
    return [
        Difference(
            checkpoints, 0, items[0][0], items[-1][0] + 1, "forged",
            f"{len(items)} checkpoints of {place[0]} {place[1]}, a partition that is not there",
        )
        for place, items in sorted(chains.items())
        if place[0] in names and place not in places
    ]  # fmt: skip


def _never_signed(
    chain: Chain, records: Sequence[InboundRecord], signed_at: Sequence[datetime]
) -> list[Difference]:
    """A partition without a checkpoint, of which others were signed long after its first record:
    the notary signs all of them in one round, so that those of this one were taken away, or the
    notary never followed its topic."""
    if chain.checkpoints or chain.others or not records or not signed_at:
        return []
    # A notary that was started on old topics needs its time to read them.
    since = max(min(signed_at), instant(records[0].timestamp_ms))
    if max(signed_at) - since < UNSIGNED:
        return []
    return [
        Difference(
            chain.topic, chain.partition, records[0].offset, records[-1].offset + 1,
            "missing_checkpoint",
            "the partition has none, and others were signed more than an hour after its first "
            "record",
        )
    ]  # fmt: skip


def _place_heads(
    report: Report,
    known: Sequence[TreeHead],
    name: str,
    names: Sequence[str],
    ranges: Sequence[OffsetRange],
) -> None:
    """Tell of kept heads that no partition is compared with."""
    looked_at = {tree_origin(name, item.topic, item.partition) for item in ranges}
    for head in known:
        if head.origin in looked_at:
            continue
        log, topic, partition = head.origin.rsplit("/", 2)
        if log == name and topic in names:
            number = int(partition) if partition.isdecimal() else 0
            report.strange.append(
                Difference(
                    topic, number, 0, 1, "unknown_head",
                    f"the head of {head.size} leaves that was kept is of {head.origin}, "
                    "a partition that is not there",
                )
            )  # fmt: skip
        else:
            report.elsewhere += 1


def read_heads(
    paths: Sequence[Path], keys: Sequence[NoteKey], *, may_be_empty: Path | None = None
) -> list[tuple[str, TreeHead]]:
    """Notes and heads of files, and of every `*.txt` in folders.

    Raises SettingsError for what cannot be read, for a file that is no head that the keys signed,
    and for a folder without any, but for `may_be_empty`: a misspelt one would compare nothing.
    """
    found: list[tuple[str, TreeHead]] = []
    for path in paths:
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files and path != may_be_empty:
            raise SettingsError(f"{path}: holds no head (*.txt)")
        for file in files:
            note = read_text(file)
            try:
                found.append((note, open_head(note, keys)[0]))
            except IntegrityError as error:
                raise SettingsError(f"{file}: {error}") from None
    return found


def keep_heads(report: Report, folder: Path, keys: Sequence[NoteKey]) -> None:
    """Write the newest good head of each partition to a file. A file that is there is never
    written over: where it holds another head of this size of the same tree, that is a difference
    of the report. Raises SettingsError."""
    for part in report.partitions:
        if not part.note:
            continue
        file = folder / f"{part.topic}-{part.partition}-{part.leaves}.txt"
        head, _ = open_head(part.note, keys)
        if not file.exists():
            write_whole(file, part.note.encode())
            continue
        ((_, there),) = read_heads([file], keys)
        if there == head:
            continue
        write_whole(file.with_stem(f"{file.stem}-{part.root[:8]}"), part.note.encode())
        if there.origin == head.origin:
            report.strange.append(
                Difference(
                    part.topic, part.partition, 0, 1, "unknown_head",
                    f"{file} holds another head of {part.leaves} leaves than the topic",
                )
            )  # fmt: skip


def config_of_archived(prefix: str) -> dict[str, dict[str, str]]:
    """What is known of archived topics' configuration: that compaction takes records of some away.
    By which retention those were deleted that were not archived, nothing says."""
    return {topic_name(prefix, name): {"cleanup.policy": "compact"} for name in COMPACTED}


def _too_young(settings: Mapping[str, str], now_ms: int) -> int | None:
    """From which time on retention had no reason to delete; None where it is not known."""
    retention = int(settings.get("retention.ms", "-2"))
    if retention == -2 or int(settings.get("retention.bytes", "-1")) >= 0:
        return None
    return now_ms - retention if retention >= 0 else 0


def _part(chain: Chain, done: Comparison) -> PartitionReport:
    return PartitionReport(
        topic=chain.topic,
        partition=chain.partition,
        leaves=chain.size,
        root=chain.root,
        note=chain.note,
        checkpoints=chain.checkpoints,
        others=chain.others,
        kept=chain.kept,
        stamps=chain.stamps,
        stamped_size=chain.stamped_size,
        stamped_at=None if chain.stamped_at is None else chain.stamped_at.isoformat(),
        equal=done.equal,
        erased=done.erased,
        compacted=done.compacted,
        expired=done.expired,
        later=done.later,
        unproven=done.unproven,
        gaps=tuple((item.start, item.end) for item in chain.gaps),
        differences=(*chain.differences, *done.differences),
    )


async def prove_records(
    reader: RangeReader,
    prefix: str,
    topic: str,
    *,
    selector: str | None,
    place: tuple[int, int] | None,
    keys: Sequence[NoteKey] = (),
    kept: Sequence[tuple[str, TreeHead]] = (),
) -> dict[str, Any]:
    """The document for `verify_proof.py`: every record with that key, or the one at partition
    and offset, which may be gone. With `keys` only checkpoints that they signed take part. `kept`
    are notes and heads that the auditor has: those of the record's tree are proven to be of it.

    Raises InputError where there is no such record, and IntegrityError where a record or a kept
    head is not as it was signed.
    """
    name = topic_name(prefix, topic)
    found: list[InboundRecord] = []
    async for record in _all(reader, [name]):
        at = (record.partition, record.offset)
        if at == place or (selector is not None and record.key == selector.encode()):
            found.append(record)
    places = [(item.partition, item.offset) for item in found] or ([place] if place else [])
    if not places:
        raise InputError(f"{name}: holds no record of that id")
    checkpoints = await _checkpoints(reader, prefix, [])
    salts = await _salts(reader, prefix)
    proofs = []
    for number, (partition, offset) in enumerate(places):
        items = [item for _, item in checkpoints.get((name, partition), [])]
        proofs.append(
            prove(
                offset, items,
                record=found[number] if found else None,
                salt=salts.get((name, partition), {}).get(offset),
                keys=keys, kept=kept,
            )
        )  # fmt: skip
    return {"schema": SCHEMA, "proofs": proofs}


async def erase_salts(
    connection: KafkaConnection, prefix: str, selector: str, by: str, reason: str
) -> list[Salt]:
    """Put an erasure in the place of each salt of records with that key; what was written.

    Raises InputError where there is none.
    """
    key = selector.encode()
    now = datetime.now(UTC)
    erased = []
    for known in (await _salts(TopicReader(connection), prefix)).values():
        for item in known.values():
            if item.salt is not None and item.subject == subject_hash(item.salt, key):
                erased.append(
                    Salt(
                        topic=item.topic, partition=item.partition, offset=item.offset,
                        topic_id=item.topic_id, erased_at=now, erased_by=by, reason=reason,
                    )
                )  # fmt: skip
    if not erased:
        raise InputError("no salt is of a record with that key; it may have been erased before")
    name = topic_name(prefix, topics.SALTS)
    async with Publisher(connection) as publisher:
        await publisher.publish(
            [
                OutboundRecord(name, item.key, item.encode(), partition=topics.FIRST_PARTITION)
                for item in erased
            ]
        )
    return erased


async def _checkpoints(
    reader: RangeReader, prefix: str, strange: list[Difference]
) -> dict[Place, list[tuple[int, Checkpoint]]]:
    found: dict[Place, list[tuple[int, Checkpoint]]] = {}
    async for record in _all(reader, [topic_name(prefix, topics.CHECKPOINTS)]):
        try:
            item = Checkpoint.decode(record.value or b"")
        except DecodeError as error:
            strange.append(
                Difference(
                    record.topic, record.partition, record.offset, record.offset + 1, "forged",
                    f"no checkpoint: {error}",
                )
            )  # fmt: skip
        else:
            found.setdefault((item.topic, item.partition), []).append((record.offset, item))
    return found


async def _salts(reader: RangeReader, prefix: str) -> dict[Place, dict[int, Salt]]:
    """One that cannot be read is one that is gone: its record is told as not comparable. What was
    erased stays so, but where the place is one of a topic that was made anew: a salt that somebody
    had kept does not bring a text back."""
    found: dict[Place, dict[int, Salt]] = {}
    async for record in _all(reader, [topic_name(prefix, topics.SALTS)]):
        try:
            item = Salt.decode(record.value or b"")
        except DecodeError:
            continue
        held = found.setdefault((item.topic, item.partition), {})
        before = held.get(item.offset)
        if before is None or not _is_back(before, item):
            held[item.offset] = item
    return found


def _is_back(erased: Salt, salt: Salt) -> bool:
    if erased.erased_at is None or salt.erased_at is not None:
        return False
    return not erased.topic_id or salt.topic_id in (None, erased.topic_id)


async def _all(reader: RangeReader, names: Sequence[str]) -> AsyncIterator[InboundRecord]:
    async for record in reader.read(await reader.snapshot(names)):
        yield record
