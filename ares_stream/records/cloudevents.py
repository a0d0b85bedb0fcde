"""CloudEvents 1.0 headers for Kafka, binary mode, and W3C trace context passed through.

Sources: CloudEvents Kafka Protocol Binding 1.0.2, section 3.2; W3C Trace Context, section 3.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache

from ares_stream.records.base import Record

Headers = tuple[tuple[str, bytes], ...]

_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_MAX_TRACESTATE = 512  # What W3C asks everyone to carry; more is cut by dropping it whole.


@cache
def event_type(record: type[Record]) -> str:
    """The CloudEvents type: "ares.verdict/1" is "ares.verdict.v1"."""
    name, _, version = record.SCHEMA.rpartition("/")
    return f"{name}.v{version}"


@cache
def _encoded_type(record: type[Record]) -> bytes:
    return event_type(record).encode()


def cloudevent_headers(
    value: Record,
    *,
    id: str,
    source: str,
    time: datetime,
    incoming: Sequence[tuple[str, bytes | None]] = (),
) -> Headers:
    """Headers of a record to publish.

    `id` with `source` must be unique, `source` is the topic that was read, `time` when the
    interaction happened. A valid `traceparent` of the `incoming` headers, with its
    `tracestate`, is kept byte for byte; an invalid one is dropped, as W3C asks.
    """
    # Written by hand: in a third of isoformat's time, for every record that is published.
    at = time.astimezone(UTC) if time.utcoffset() or time.tzinfo is None else time
    instant = b"%04d-%02d-%02dT%02d:%02d:%02d.%03dZ" % (
        at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond // 1000
    )  # fmt: skip
    return (
        ("ce_specversion", b"1.0"),
        ("ce_id", id.encode()),
        ("ce_source", source.encode()),
        ("ce_type", _encoded_type(type(value))),
        ("ce_time", instant),
        ("content-type", b"application/json"),
        *trace_context(incoming),
    )


def trace_context(incoming: Sequence[tuple[str, bytes | None]]) -> Headers:
    """The valid trace headers among `incoming`: none, traceparent, or both."""
    if not incoming:
        return ()
    parents = [value or b"" for name, value in incoming if name.lower() == "traceparent"]
    if len(parents) != 1 or not _TRACEPARENT.fullmatch(parents[0]):
        return ()
    states = [value or b"" for name, value in incoming if name.lower() == "tracestate"]
    if len(states) == 1 and 0 < len(states[0]) <= _MAX_TRACESTATE:
        return (("traceparent", parents[0]), ("tracestate", states[0]))
    return (("traceparent", parents[0]),)
