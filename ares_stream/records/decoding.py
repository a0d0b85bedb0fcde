"""Guarded decoding: bytes of a Kafka record or of a line to an Interaction.

What could hurt is refused before it is parsed: too many bytes or headers, too deep nesting,
numbers that JSON does not have. Reasons are for people and never quote the record.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from ares_stream.errors import DecodeError, LeftOut
from ares_stream.files.rows import parse_json
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping, only

# The closing quote is optional so that an unclosed string is one match: linear on any input.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_JSON = re.compile(rb"NaN|Infinity")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class DecodingLimits(BaseModel):
    """What a record may measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(1_048_576, ge=1, description="the broker's default message.max.bytes")
    max_depth: int = Field(32, ge=1, le=200, description="nested arrays and objects")
    max_headers: int = Field(64, ge=0)
    max_header_bytes: int = Field(16_384, ge=0, description="names and values together")


def decode_interaction(
    record_key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    limits: DecodingLimits,
    mapping: Mapping | None = None,
    *,
    timestamp_ms: int | None = None,
) -> Interaction:
    """Decode one record.

    Raises MappingError also for a record of several conversations, as Mapping.apply does;
    otherwise as decode_interactions.
    """
    if mapping is None:
        return _decoded(_guarded(value, headers, limits))
    return only(
        decode_interactions(record_key, value, headers, limits, mapping, timestamp_ms=timestamp_ms)
    )


def decode_interactions(
    record_key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    limits: DecodingLimits,
    mapping: Mapping | None = None,
    *,
    timestamp_ms: int | None = None,
) -> tuple[Interaction, ...]:
    """Decode a record that may hold several conversations, where a preset says so.

    Without a mapping the value is an Interaction in JSON. With one it is any JSON;
    `record_key` and `timestamp_ms` stand in for an unmapped id and time. Raises DecodeError
    or MappingError with a reason for people, and LeftOut for what the mapping's `where` leaves
    out. An error holds neither another one nor the bytes.
    """
    value = _guarded(value, headers, limits)
    if mapping is None:
        return (_decoded(value),)
    document = parse_json(value)
    if not mapping.selects(document):
        raise LeftOut("left out by the mapping's where")
    return mapping.apply_all(document, key=record_key, timestamp_ms=timestamp_ms)


def _guarded(
    value: bytes | None, headers: Sequence[tuple[str, bytes | None]], limits: DecodingLimits
) -> bytes:
    """The value of a record in which nothing hurts."""
    _refuse_headers(headers, limits)
    if value is None:
        raise DecodeError("the value is null (a tombstone); expected an interaction")
    if not value or value.isspace():
        raise DecodeError("the value is empty; expected an interaction")
    if len(value) > limits.max_bytes:
        raise DecodeError(f"{len(value)} bytes; the limit is {limits.max_bytes} bytes")
    _refuse_structure(value, limits)
    _refuse_encoding(value)
    return value


def _decoded(value: bytes) -> Interaction:
    try:
        return Interaction.decode(value)
    except DecodeError as error:
        if error.field != "schema":
            raise
    reason = f"another schema than {Interaction.SCHEMA}, the one that is understood here"
    raise DecodeError(reason, field="schema")


def _refuse_headers(headers: Sequence[tuple[str, bytes | None]], limits: DecodingLimits) -> None:
    if not headers:
        return
    if len(headers) > limits.max_headers:
        raise DecodeError(f"{len(headers)} headers; the limit is {limits.max_headers}")
    size = sum(len(name) + len(content or b"") for name, content in headers)
    if size > limits.max_header_bytes:
        raise DecodeError(f"{size} bytes of headers; the limit is {limits.max_header_bytes}")


def _refuse_structure(value: bytes, limits: DecodingLimits) -> None:
    """Look outside strings for nesting that is too deep and for NaN and Infinity.

    Most records pass on counts alone; only what could be bad is read closer.
    """
    may_be_deep = value.count(b"[") + value.count(b"{") > limits.max_depth
    # Looked for from the end: half the time of `in`.
    may_be_nan = value.rfind(b"NaN") >= 0 or value.rfind(b"Infinity") >= 0
    if not (may_be_deep or may_be_nan):
        return
    outside = _STRING.sub(b"", value)
    if may_be_nan and _NOT_JSON.search(outside):
        raise DecodeError("NaN or Infinity, which JSON does not have; send null or leave it out")
    depth = 0
    for byte in outside.translate(None, _NO_BRACKET):
        depth += 1 if byte in b"[{" else -1
        if depth > limits.max_depth:
            raise DecodeError(f"nested deeper than {limits.max_depth} levels")


def _refuse_encoding(value: bytes) -> None:
    if value.isascii():
        return
    try:
        value.decode()
    except UnicodeDecodeError as error:
        start = error.start
    else:
        return
    raise DecodeError(f"not UTF-8 at byte {start}")
