"""What the scorer published of each input record, found in its output topics. Pure.

A verdict stands in the partition of its interaction's id, its input anywhere: so the outputs are
read once and sorted into blocks of the inputs they name, in files of entries.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from ast import literal_eval
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Final, NamedTuple

from ares_stream.audit.replay.letters import Letter
from ares_stream.errors import DecodeError
from ares_stream.records.label import ReviewItem
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.verdict import Verdict
from ares_stream.scoring.handler import Outputs, sampled_for_review
from ares_stream.streaming.deadletters import source_of
from ares_stream.streaming.records import Headers, InboundRecord

BLOCK: Final = 8192
"""Offsets of an input partition that are replayed, digested and kept as done together."""
_HEAD: Final = struct.Struct(">BQIQqII")
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


KINDS: Final = {int(item): item for item in Output}


class Source(NamedTuple):
    """The input record that an output names."""

    topic: str
    partition: int
    offset: int


class Recorded(NamedTuple):
    """One output of an input record, and where it stands.

    `payload` is a verdict's value; of the others what they are compared by: see `Letter` and
    `Carried`. `frame` holds key and headers, but for a dead letter's.
    """

    output: Output
    offset: int
    """Of the input."""
    partition: int
    place: int
    """Partition and offset of the output."""
    timestamp_ms: int
    payload: bytes
    frame: bytes = b""

    def pack(self) -> bytes:
        """One entry of a file."""
        output, offset, partition, place, timestamp_ms, payload, frame = self
        head = _HEAD.pack(
            output, offset, partition, place, timestamp_ms, len(frame), len(payload)
        )  # fmt: skip
        return head + frame + payload


@dataclass(frozen=True, slots=True)
class Carried:
    """What a repair or review record carries: by SHA-256 a verdict and a conversation, and why
    people are to see it, with which probability.

    `sampled` is None where the record is none of a sample; else whether its verdict's id is among
    the share that the record names. `whole` says that there is nothing else in the record.
    """

    verdict: str
    interaction: str
    cause: str = ""
    share: float | None = None
    sampled: bool | None = None
    whole: bool = True

    @classmethod
    def of(cls, value: bytes, form: type[CoupledFailure | ReviewItem]) -> tuple[Verdict, Carried]:
        """From a record's value; its verdict beside it. Raises DecodeError."""
        item = form.decode(value)
        verdict, conversation = _sha256(item.verdict.encode()), _sha256(item.interaction.encode())
        whole = item.encode() == value and not item.__pydantic_extra__
        if not isinstance(item, ReviewItem):
            return item.verdict, cls(verdict, conversation, whole=whole)
        sampled = None
        if item.cause == "sampled":
            sampled = sampled_for_review(item.verdict.id, item.sampling_probability)
        return item.verdict, cls(
            verdict, conversation, item.cause, item.sampling_probability, sampled, whole
        )

    def pack(self) -> bytes:
        """As a payload."""
        return json.dumps(list(asdict(self).values())).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Carried:
        """Of a payload."""
        return cls(*json.loads(payload))


def frame_of(key: bytes | None, headers: Headers) -> bytes:
    """Key and headers as Python writes them: equal bytes of equal ones."""
    return repr((key, headers)).encode("utf-8", "surrogatepass")


def unframed(frame: bytes) -> tuple[bytes | None, Headers]:
    """Of `frame_of`. Raises ValueError for other bytes."""
    key, headers = literal_eval(frame.decode("utf-8", "surrogatepass"))
    return key, headers


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def recorded(record: InboundRecord, outputs: Outputs, deadletters: str) -> tuple[Source, Recorded]:
    """Which input an output names, and what is compared of it.

    Raises DecodeError for what is no such output.
    """
    if record.topic == deadletters:
        source, output = Source(*source_of(record)), Output.LETTER
        payload, frame = Letter.of(record).pack(), b""
    else:
        source, output, payload = _parsed(record, outputs)
        frame = frame_of(record.key, record.headers)
    return source, Recorded(
        output, source.offset, record.partition, record.offset, record.timestamp_ms, payload, frame
    )


def _parsed(record: InboundRecord, outputs: Outputs) -> tuple[Source, Output, bytes]:
    value = record.value or b""
    if record.topic == outputs.verdicts:
        return source_named(value), Output.VERDICT, value
    is_repair = record.topic == outputs.repair
    verdict, carried = Carried.of(value, CoupledFailure if is_repair else ReviewItem)
    place = verdict.source
    output = Output.REPAIR if is_repair else Output.REVIEW
    return Source(place.topic, place.partition, place.offset), output, carried.pack()


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
        output, offset, partition, place, timestamp, size, more = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        if at + size + more > len(raw) or output not in KINDS:
            raise DecodeError("an entry is cut short, or is none")
        frame, payload = raw[at : at + size], raw[at + size : at + size + more]
        at += size + more
        yield Recorded(KINDS[output], offset, partition, place, timestamp, payload, frame)


def by_offset(entries: Iterable[Recorded]) -> dict[int, list[Recorded]]:
    """Entries by the input's offset; those of one offset by output, partition and place."""
    found: dict[int, list[Recorded]] = {}
    for item in entries:
        found.setdefault(item.offset, []).append(item)
    for items in found.values():
        if len(items) > 1:
            items.sort(key=lambda item: (item.output, item.partition, item.place))
    return found
