"""Whether topics still hold what the notary signed, and where they do not. Pure.

A partition's checkpoints are checked first (`check_chain`): each signature, each head against its
leaves, each tree against the one before. Then the records are compared with the leaves, offset
by offset (`compare`). What a difference is located by is the leaves, which the signed heads prove.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from ares_stream.audit.leaves import (
    KEYED,
    Hasher,
    Leaf,
    content_hash,
    leaf_of,
    unpack,
)
from ares_stream.audit.notes import NoteKey, TreeHead, check_rotation, open_head, tree_origin
from ares_stream.audit.tree import MerkleRange
from ares_stream.errors import IntegrityError
from ares_stream.records.base import OffsetRange
from ares_stream.records.checkpoint import Checkpoint, Salt
from ares_stream.streaming.records import InboundRecord

Kind = Literal[
    "changed",
    "moved",
    "dropped",
    "inserted",
    "no_salt",
    "forged",
    "missing_checkpoint",
    "skipped",
    "inconsistent",
    "unknown_head",
    "bad_stamp",
]
"""Of records: changed (other bytes or time), moved (the bytes of another offset), dropped,
inserted, no_salt (cannot be compared). Of checkpoints: forged (signature, or leaves that are not
those of the head), missing_checkpoint, skipped (offsets that the trees were grown past without a
word; a deletion before the notary read is a gap, and named), inconsistent (another history was
signed), unknown_head (a
head that the auditor kept is not there), bad_stamp (a time stamp that does not hold)."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it was signed; offsets start (inclusive) to end (exclusive)."""

    topic: str
    partition: int
    start: int
    end: int
    kind: Kind
    detail: str

    def __str__(self) -> str:
        where = str(self.start) if self.end == self.start + 1 else f"{self.start} to {self.end}"
        return f"{self.topic} {self.partition} offset {where}: {self.kind}: {self.detail}"


@dataclass(slots=True)
class Chain:
    """The checkpoints of one partition, checked."""

    topic: str
    partition: int
    proven: list[bytes] = field(default_factory=list)
    """Packed leaves of the good checkpoints, in order."""
    unproven: list[OffsetRange] = field(default_factory=list)
    gaps: list[OffsetRange] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    checkpoints: int = 0
    others: int = 0
    """Checkpoints that a trusted key of another name signed: another notary's, passed over."""
    size: int = 0
    end: int = 0
    root: str = ""
    note: str = ""
    """The newest good head as it was signed."""
    signers: tuple[NoteKey, ...] = ()
    """The trusted keys that signed it."""
    kept: int = 0
    """Heads that the auditor kept and that are on the checkpoints topic."""
    stamps: int = 0
    """Checkpoints with a time stamp."""
    stamped_size: int = 0
    """Leaves that stood at `stamped_at`, by the latest time stamp that was checked and holds."""
    stamped_at: datetime | None = None

    def leaves(self) -> Iterator[Leaf]:
        """Of the good checkpoints, in order of their offsets."""
        for packed in self.proven:
            yield from unpack(packed)


@dataclass(slots=True)
class Comparison:
    """The records of one partition against its chain.

    `equal` records are as signed; `erased` are so as far as can be told without their text;
    `compacted` gave way to a later record of their key; `expired` were deleted by retention;
    `later` came after the last checkpoint; `unproven` lie under a bad checkpoint.
    """

    equal: int = 0
    erased: int = 0
    compacted: int = 0
    expired: int = 0
    later: int = 0
    unproven: int = 0
    differences: list[Difference] = field(default_factory=list)


def check_chain(
    topic: str,
    partition: int,
    checkpoints: Iterable[tuple[int, Checkpoint]],
    *,
    name: str,
    keys: Sequence[NoteKey],
    known: Sequence[TreeHead] = (),
    stamped_at: Callable[[str, bytes], datetime] | None = None,
) -> Chain:
    """Check a partition's checkpoints, given with their offsets on the checkpoints topic and in
    that order. `name` is the notary's; what keys of other names signed under theirs is passed over.
    `known` are heads that the auditor kept from before: one
    that the topic no longer has tells that it was cut or made anew. `stamped_at` gives the time
    of a note's token and raises IntegrityError; without it time stamps are only counted."""
    chain = Chain(topic, partition)
    origin = tree_origin(name, topic, partition)
    own = [key for key in keys if key.name == name]
    wanted: dict[int, list[TreeHead]] = {}
    for head in dict.fromkeys(known):
        if head.origin == origin:
            wanted.setdefault(head.size, []).append(head)
    tree = MerkleRange()
    doubtful: list[OffsetRange] = []
    hasher = Hasher(topic, partition)
    for place, item in checkpoints:
        if _is_of_another(item, name, keys):
            chain.others += 1
            continue
        chain.checkpoints += 1
        try:
            before, after, head, signers = _opened(item, origin, own, hasher)
            check_rotation(chain.signers, signers)
        except IntegrityError as error:
            chain.differences.append(
                Difference(
                    topic,
                    partition,
                    item.start,
                    max(item.end, item.start + 1),
                    "forged",
                    f"checkpoint at offset {place}: {error}",
                )
            )
            doubtful.append(_range(topic, partition, chain.end, item.end))
            continue
        # One that follows the last good one leaves nothing in doubt of what lies between them.
        if (before.size, before.peaks) != (tree.size, tree.peaks):
            chain.unproven += doubtful
        fault = _continuity(chain, tree, before, item, after_forged=bool(doubtful))
        doubtful.clear()
        if fault is not None:
            kind, detail = fault
            is_gap = kind in ("missing_checkpoint", "skipped")
            start, end = (chain.end, item.start) if is_gap else (item.start, item.end)
            chain.differences.append(
                Difference(
                    topic,
                    partition,
                    start,
                    max(end, start + 1),
                    kind,
                    f"checkpoint at offset {place}: {detail}",
                )
            )
            if kind == "inconsistent" and before.size < chain.size:
                chain.unproven.append(_range(topic, partition, item.start, item.end))
                continue
            chain.unproven.append(_range(topic, partition, chain.end, item.start))
        # A history that was signed anew is reported once, and what follows is checked against it.
        tree = after
        chain.proven.append(item.leaves)
        chain.gaps.extend(gap for gap in item.gaps if gap not in chain.gaps)
        chain.size, chain.end, chain.root = head.size, item.end, head.root.hex()
        chain.note, chain.signers = item.note, signers
        _check_stamp(chain, place, item, stamped_at)
        if head in wanted.get(head.size, ()):
            wanted[head.size].remove(head)
            chain.kept += 1
    chain.unproven += doubtful
    chain.differences.extend(
        Difference(
            topic,
            partition,
            chain.end,
            chain.end + 1,
            "unknown_head",
            f"the head of {head.size} leaves that was kept is not on the checkpoints topic",
        )
        for heads in wanted.values()
        for head in heads
    )
    return chain


def _check_stamp(
    chain: Chain,
    place: int,
    item: Checkpoint,
    stamped_at: Callable[[str, bytes], datetime] | None,
) -> None:
    if item.timestamp_token is None:
        return
    chain.stamps += 1
    if stamped_at is None:
        return
    try:
        chain.stamped_at = stamped_at(item.note, item.timestamp_token)
        chain.stamped_size = chain.size
    except IntegrityError as error:
        chain.differences.append(
            Difference(
                chain.topic, chain.partition, item.start, max(item.end, item.start + 1),
                "bad_stamp", f"checkpoint at offset {place}: {error}",
            )
        )  # fmt: skip


def _is_of_another(item: Checkpoint, name: str, keys: Sequence[NoteKey]) -> bool:
    """Whether a trusted key of another name signed it under that name."""
    others = [key for key in keys if key.name != name]
    if not others:
        return False
    try:
        head, signed = open_head(item.note, others)
    except IntegrityError:
        return False
    return head.origin in {tree_origin(key.name, item.topic, item.partition) for key in signed}


def _opened(
    item: Checkpoint, origin: str, keys: Sequence[NoteKey], hasher: Hasher
) -> tuple[MerkleRange, MerkleRange, TreeHead, tuple[NoteKey, ...]]:
    """The tree before and after a checkpoint, by its own leaves, and who signed it. Raises
    IntegrityError."""
    head, signers = open_head(item.note, keys)
    if head.origin != origin:
        raise IntegrityError(f"signed for {head.origin}, not for {origin}")
    try:
        leaves = list(unpack(item.leaves))
        before = MerkleRange(head.size - len(leaves), map(bytes.fromhex, item.peaks))
    except ValueError as error:
        raise IntegrityError(f"its leaves are not those of the signed head: {error}") from None
    after = before.copy()
    last = item.start - 1
    for leaf in leaves:
        if not last < leaf.offset < item.end:
            raise IntegrityError(f"its leaf of offset {leaf.offset} is out of order")
        last = leaf.offset
        after.append(hasher.hash(leaf))
    if after.root() != head.root or item.size != head.size:
        raise IntegrityError("its leaves are not those of the signed head")
    return before, after, head, signers


def _continuity(
    chain: Chain, tree: MerkleRange, before: MerkleRange, item: Checkpoint, *, after_forged: bool
) -> tuple[Kind, str] | None:
    """Why a good checkpoint does not follow the one before it."""
    if before.size < chain.size:
        return "inconsistent", f"begins at leaf {before.size}, after a head of {chain.size} leaves"
    if before.size > tree.size:
        if after_forged:
            return None  # What lies between is reported with the checkpoint that is forged.
        return (
            "missing_checkpoint",
            f"begins at leaf {before.size}; of {tree.size} to {before.size} there is none",
        )
    if before.peaks != tree.peaks:
        return "inconsistent", f"another tree of {before.size} leaves than the one signed before"
    if item.start > chain.end:
        return "skipped", f"no checkpoint covers offsets {chain.end} to {item.start}"
    # Offsets that were gone may be named again by who could not know that they had been.
    first = next(unpack(item.leaves), None)
    if first is not None and first.offset < chain.end:
        return "inconsistent", f"signs offset {first.offset} again; all to {chain.end} was signed"
    return None


def compare(
    chain: Chain,
    records: Iterable[InboundRecord],
    *,
    salts: Mapping[int, Salt],
    first: int,
    compacted: bool,
    deleted_before_ms: int | None = None,
) -> Comparison:
    """Compare a partition's records, in order of their offsets, with its chain.

    `first` is the first offset that the topic still has: leaves before it are expired, but not
    those that are younger than `deleted_before_ms`, which retention had no reason to delete.
    """
    found = Comparison()
    latest = {leaf.key_hash: leaf.offset for leaf in chain.leaves()} if compacted else {}
    strange: dict[bytes, list[int]] = {}
    stream = iter(records)
    record = next(stream, None)
    for leaf in chain.leaves():
        while record is not None and record.offset < leaf.offset:
            _without_leaf(chain, record, found, strange)
            record = next(stream, None)
        if record is None or record.offset > leaf.offset:
            _without_record(chain, leaf, found, latest, first, deleted_before_ms)
            continue
        _pair(chain, leaf, record, salts.get(leaf.offset), found, strange)
        record = next(stream, None)
    while record is not None:
        _without_leaf(chain, record, found, strange)
        record = next(stream, None)
    _name_moved(chain, found, strange)
    return found


def _pair(
    chain: Chain,
    leaf: Leaf,
    record: InboundRecord,
    salt: Salt | None,
    found: Comparison,
    strange: dict[bytes, list[int]],
) -> None:
    secret = None if salt is None else salt.salt
    if leaf.is_salted and secret is None:
        same_place = (
            record.timestamp_ms == leaf.timestamp_ms and (record.value is None) == leaf.is_tombstone
        )
        if salt is not None and salt.erased_at is not None and same_place:
            found.erased += 1
        elif same_place:
            found.differences.append(_one(chain, leaf.offset, "no_salt", "its salt is gone"))
        else:
            found.differences.append(_one(chain, leaf.offset, "changed", "another time or value"))
        return
    used = secret if leaf.is_salted else None
    actual = leaf_of(record, salt=used, keyed=bool(leaf.flags & KEYED))
    if actual == leaf:
        found.equal += 1
        return
    what = [
        name
        for name, differs in (
            ("content" if used is None else "content (or salt)", actual.content != leaf.content),
            ("timestamp", actual.timestamp_ms != leaf.timestamp_ms),
        )
        if differs
    ]
    if actual.content != leaf.content and used is None:
        strange.setdefault(actual.content, []).append(len(found.differences))
    found.differences.append(
        _one(chain, leaf.offset, "changed", f"{' and '.join(what) or 'flags'} not as signed")
    )


def _without_leaf(
    chain: Chain, record: InboundRecord, found: Comparison, strange: dict[bytes, list[int]]
) -> None:
    if any(item.start <= record.offset < item.end for item in chain.unproven):
        found.unproven += 1
    elif record.offset >= chain.end:
        found.later += 1
    else:
        content = content_hash(record.key, record.value, record.headers, None)
        strange.setdefault(content, []).append(len(found.differences))
        found.differences.append(_one(chain, record.offset, "inserted", "no leaf stands for it"))


def _without_record(
    chain: Chain,
    leaf: Leaf,
    found: Comparison,
    latest: Mapping[bytes, int],
    first: int,
    deleted_before_ms: int | None,
) -> None:
    if latest and (leaf.is_tombstone or latest[leaf.key_hash] > leaf.offset):
        found.compacted += 1
    elif leaf.offset >= first:
        found.differences.append(_one(chain, leaf.offset, "dropped", "the record is gone"))
    elif deleted_before_ms is not None and leaf.timestamp_ms >= deleted_before_ms:
        found.differences.append(
            _one(chain, leaf.offset, "dropped", "deleted before its retention had passed")
        )
    else:
        found.expired += 1


def _name_moved(chain: Chain, found: Comparison, strange: Mapping[bytes, list[int]]) -> None:
    """Records that hold what was signed for another offset."""
    if not strange:
        return
    for leaf in chain.leaves():
        for number in strange.get(leaf.content, ()):
            was = found.differences[number]
            if was.start != leaf.offset:
                found.differences[number] = _one(
                    chain, was.start, "moved", f"holds what was signed for offset {leaf.offset}"
                )


def _one(chain: Chain, offset: int, kind: Kind, detail: str) -> Difference:
    return Difference(chain.topic, chain.partition, offset, offset + 1, kind, detail)


def _range(topic: str, partition: int, start: int, end: int) -> OffsetRange:
    return OffsetRange(topic=topic, partition=partition, start=start, end=max(start, end))
