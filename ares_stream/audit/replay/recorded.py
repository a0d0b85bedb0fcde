"""What the scorer published of each input record, found in its output topics. Pure.

A verdict stands in the partition of its interaction's id, its input anywhere: so the outputs are
read once and sorted into blocks of the inputs they name, in files of entries.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ares_stream.errors import DecodeError
from ares_stream.records.label import ReviewItem
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.verdict import Verdict
from ares_stream.scoring.handler import Outputs, sampled_for_review
from ares_stream.streaming.deadletters import kept_whole, reason_of, source_of
from ares_stream.streaming.records import InboundRecord

BLOCK: Final = 8192
"""Offsets of an input partition that are replayed, digested and kept as done together."""
_HEAD: Final = struct.Struct(">BQIQqI")
_SOURCE: Final = re.compile(
    rb'"source":\{"topic":"([^"\\]+)","partition":(\d{1,10}),"offset":(\d{1,19}),'
)
"""As this program writes it. Inside a JSON string each quote follows a backslash, so that no
text of a record can look like it."""


class Output(IntEnum):
    """What kind of record."""

    VERDICT = 1
    LETTER = 2
    REPAIR = 3
    REVIEW = 4


@dataclass(frozen=True, slots=True)
class Source:
    """The input record that an output names."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """One output of an input record, and where it stands.

    `payload` is a verdict's value; of the others what they are compared by: see `Letter` and
    `Carried`.
    """

    output: Output
    offset: int
    """Of the input."""
    partition: int
    place: int
    """Partition and offset of the output."""
    timestamp_ms: int
    payload: bytes

    def pack(self) -> bytes:
        """One entry of a file."""
        head = _HEAD.pack(
            self.output, self.offset, self.partition, self.place, self.timestamp_ms,
            len(self.payload),
        )  # fmt: skip
        return head + self.payload


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: why, and, where it was kept whole, a SHA-256 of key and value."""

    stage: str
    kind: str
    reason: str
    content: str | None

    @classmethod
    def of(cls, record: InboundRecord) -> Letter:
        """From the record of the dead-letter topic."""
        stage, reason = reason_of(record)
        kind = record.header_map.get("__connect.errors.exception.class.name", b"")
        whole = content_digest(record.key, record.value) if kept_whole(record) else None
        return cls(stage, kind.decode(errors="replace"), reason, whole)

    def pack(self) -> bytes:
        """As a payload."""
        return json.dumps([self.stage, self.kind, self.reason, self.content]).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Letter:
        """Of a payload."""
        return cls(*json.loads(payload))


@dataclass(frozen=True, slots=True)
class Carried:
    """What a repair or review record carries, by SHA-256: a verdict and a conversation.

    `sampled` is None where the record is none of a sample; else whether its verdict's id is among
    the share that the record names.
    """

    verdict: str
    interaction: str
    sampled: bool | None = None

    @classmethod
    def of(cls, item: CoupledFailure | ReviewItem) -> Carried:
        """From a record."""
        sampled = None
        if isinstance(item, ReviewItem) and item.cause == "sampled":
            sampled = sampled_for_review(item.verdict.id, item.sampling_probability)
        return cls(_sha256(item.verdict.encode()), _sha256(item.interaction.encode()), sampled)

    def pack(self) -> bytes:
        """As a payload."""
        return json.dumps([self.verdict, self.interaction, self.sampled]).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Carried:
        """Of a payload."""
        return cls(*json.loads(payload))


def content_digest(key: bytes | None, value: bytes | None) -> str:
    """Of a record that a dead letter keeps whole."""
    sizes = b"%d %d " % tuple(-1 if item is None else len(item) for item in (key, value))
    return _sha256(sizes + (key or b"") + (value or b""))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def recorded(record: InboundRecord, outputs: Outputs, deadletters: str) -> tuple[Source, Recorded]:
    """Which input an output names, and what is compared of it.

    Raises DecodeError for what is no such output.
    """
    source, output, payload = _parsed(record, outputs, deadletters)
    return source, Recorded(
        output, source.offset, record.partition, record.offset, record.timestamp_ms, payload
    )


def _parsed(
    record: InboundRecord, outputs: Outputs, deadletters: str
) -> tuple[Source, Output, bytes]:
    value = record.value or b""
    if record.topic == outputs.verdicts:
        return source_named(value), Output.VERDICT, value
    if record.topic == deadletters:
        return Source(*source_of(record)), Output.LETTER, Letter.of(record).pack()
    form = CoupledFailure if record.topic == outputs.repair else ReviewItem
    item = form.decode(value)
    place = item.verdict.source
    output = Output.REPAIR if isinstance(item, CoupledFailure) else Output.REVIEW
    return Source(place.topic, place.partition, place.offset), output, Carried.of(item).pack()


def source_named(value: bytes) -> Source:
    """The input that a verdict names. Raises DecodeError for what is no verdict."""
    found = _SOURCE.search(value)
    if found is not None:
        try:
            return Source(found[1].decode(), int(found[2]), int(found[3]))
        except UnicodeDecodeError:
            raise DecodeError("a topic's name is not UTF-8", field="source.topic") from None
    place = Verdict.decode(value).source
    return Source(place.topic, place.partition, place.offset)


def unpack(raw: bytes) -> Iterator[Recorded]:
    """The entries of a file. Raises DecodeError where it is cut short or is none."""
    at = 0
    while at < len(raw):
        if at + _HEAD.size > len(raw):
            raise DecodeError("an entry is cut short")
        output, offset, partition, place, timestamp, size = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        if at + size > len(raw) or output not in Output._value2member_map_:
            raise DecodeError("an entry is cut short, or is none")
        payload = raw[at : at + size]
        at += size
        yield Recorded(Output(output), offset, partition, place, timestamp, payload)


def by_offset(entries: Iterable[Recorded]) -> dict[int, list[Recorded]]:
    """Entries by the input's offset; those of one offset by output, partition and place."""
    found: dict[int, list[Recorded]] = {}
    for item in entries:
        found.setdefault(item.offset, []).append(item)
    for items in found.values():
        if len(items) > 1:
            items.sort(key=lambda item: (item.output, item.partition, item.place))
    return found
