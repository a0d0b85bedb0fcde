"""Dead letters: what could not be handled, and why. Pure.

Whole, key, value and headers are those of the record, byte for byte. What cannot be kept whole
(no record could be read, its dead letter is larger than the topic takes, neither key nor value)
is kept by coordinates: where it stands, how large it is, its SHA-256. Either way the reasons
are added as headers, in the names of Kafka Connect's error reporting (DeadLetterQueueReporter),
so that existing tools read them, plus some of our own; docs/topics.md lists them.
"""

from __future__ import annotations

import hashlib
from typing import Final

from ares_stream.errors import DecodeError, masked
from ares_stream.streaming.records import (
    Damage,
    Headers,
    InboundRecord,
    OutboundRecord,
    Rejection,
)

PREFIX: Final = "__connect.errors."
OURS: Final = "ares.errors."
_BATCH_HEADER: Final = 61
_ROUGH: Final = 32
"""At least what the lengths of two fields take, or of a record's five."""
MAX_REASON: Final = 500
"""Longest reason in a header; our errors hold no text of a record, other people's might."""
MAX_KEY: Final = 1024
"""Longest key that a dead letter by coordinates keeps."""


def dead_letter(
    record: InboundRecord,
    rejection: Rejection,
    topic: str,
    *,
    service: str,
    failed_at_ms: int,
    limit: int | None = None,
) -> OutboundRecord:
    """The record for the dead-letter topic, which takes batches of up to `limit` bytes (None: of
    any size)."""
    reasons = {
        f"{PREFIX}topic": record.topic,
        f"{PREFIX}partition": str(record.partition),
        f"{PREFIX}offset": str(record.offset),
        f"{PREFIX}stage": rejection.stage,
        f"{PREFIX}class.name": service,
        f"{PREFIX}exception.class.name": rejection.kind,
        f"{PREFIX}exception.message": masked(rejection.reason)[:MAX_REASON],
        f"{PREFIX}exception.stacktrace": rejection.places,
        f"{OURS}attempt": "1",
        f"{OURS}first_failed_at": str(failed_at_ms),
        f"{OURS}original_timestamp": str(record.timestamp_ms),
    }
    damage = record.damage
    if damage is None and record.key is None and record.value is None:
        damage = _measured(record, "it has neither key nor value")
    if damage is None:
        whole = OutboundRecord(
            topic, record.key, record.value, (*record.headers, *_headers(reasons))
        )
        if fits(whole, limit):
            return whole
        damage = _measured(record, f"its dead letter would be larger than {limit} bytes")
    kept = {
        f"{OURS}kept": "coordinates",
        f"{OURS}why_not_whole": damage.reason[:MAX_REASON],
        f"{OURS}size": str(damage.size),
        f"{OURS}sha256": damage.sha256,
        f"{OURS}sha256_of": damage.of,
    }
    key = record.key if record.key is not None and len(record.key) <= MAX_KEY else None
    return OutboundRecord(topic, key, b"", _headers({**reasons, **kept}))


def batch_size(record: OutboundRecord) -> int:
    """Bytes of an uncompressed batch that holds this record alone: what a broker compares with
    the topic's max.message.bytes. Layout: https://kafka.apache.org/documentation/#record"""
    size = 3 + _field_size(record.key) + _field_size(record.value)
    size += _varint_size(len(record.headers))
    for name, value in record.headers:
        size += _field_size(name.encode()) + _field_size(value)
    return _BATCH_HEADER + _varint_size(size) + size


def fits(record: OutboundRecord, limit: int | None) -> bool:
    """Whether `batch_size` is within a limit (None: of any size); looks closely only near it."""
    if limit is None:
        return True
    rough = _BATCH_HEADER + _ROUGH + len(record.key or b"") + len(record.value or b"")
    for name, value in record.headers:
        # A character of a name takes four bytes at most.
        rough += _ROUGH + 4 * len(name) + len(value or b"")
    return rough <= limit or batch_size(record) <= limit


def _field_size(field: bytes | None) -> int:
    return 1 if field is None else _varint_size(len(field)) + len(field)


def _varint_size(count: int) -> int:
    return max(1, -(-(count.bit_length() + 1) // 7))


def parted(letter: InboundRecord | OutboundRecord) -> tuple[Headers, Headers]:
    """A dead letter's headers: those of its record, and the reasons behind them. The record may
    be a dead letter itself: the last reasons are this one's."""
    for at in range(len(letter.headers) - 1, -1, -1):
        if letter.headers[at][0] == f"{PREFIX}topic":
            return letter.headers[:at], letter.headers[at:]
    return letter.headers, ()


def kept_whole(letter: InboundRecord | OutboundRecord) -> bool:
    """Whether a dead letter is the record itself, and not its coordinates alone."""
    return (f"{OURS}kept", b"coordinates") not in parted(letter)[1]


def source_of(record: InboundRecord) -> tuple[str, int, int]:
    """Topic, partition and offset of the record that a dead letter stands for.

    Raises DecodeError for a record that is no dead letter.
    """
    headers = record.header_map
    try:
        return (
            headers[f"{PREFIX}topic"].decode(),
            int(headers[f"{PREFIX}partition"]),
            int(headers[f"{PREFIX}offset"]),
        )
    except (KeyError, ValueError):
        raise DecodeError(
            f"{record.topic} {record.partition} offset {record.offset} is no dead letter: it has "
            f"no {PREFIX}topic, partition and offset"
        ) from None


def reason_of(record: InboundRecord) -> tuple[str, str]:
    """The stage that refused a dead letter's record, and why."""
    headers = record.header_map
    stage, message = (
        headers.get(f"{PREFIX}{name}", b"") for name in ("stage", "exception.message")
    )
    return stage.decode(errors="replace"), message.decode(errors="replace")


def _headers(texts: dict[str, str]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, text.encode(errors="replace")) for name, text in texts.items())


def _measured(record: InboundRecord, reason: str) -> Damage:
    """Coordinates of a record that was read: the digest is that of its value."""
    value = record.value or b""
    size = len(record.key or b"") + len(value)
    size += sum(len(name.encode()) + len(content or b"") for name, content in record.headers)
    return Damage(reason, size, hashlib.sha256(value).hexdigest(), "value")
