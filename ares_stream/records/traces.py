"""Which trace a record belongs to, and which span of it is whose. Pure.

The `traceparent` of an interaction is passed on unchanged, so a span's id follows from what it is
about: whoever knows a verdict's id knows its span, in any process and after any restart.

Source: W3C Trace Context, sections 2.2 and 3.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ares_stream.records.cloudevents import trace_context

SAMPLED = 1


@dataclass(frozen=True, slots=True)
class TraceParent:
    """A span of somebody's: the trace's id (16 bytes) and its own (8 bytes), as integers."""

    trace_id: int
    span_id: int


def sampled_parent(headers: Sequence[tuple[str, bytes | None]]) -> TraceParent | None:
    """The span that the record came from, where its producer samples the trace."""
    if not headers or not (found := trace_context(headers)):
        return None
    _, trace, span, flags = found[0][1].split(b"-")
    if not int(flags, 16) & SAMPLED:
        return None
    return TraceParent(int(trace, 16), int(span, 16))


def span_id(kind: str, about: str) -> int:
    """The id of the span of that kind that is about a verdict, a plan or a release."""
    return _digest("span", kind, about, 8)


def trace_id(kind: str, about: str) -> int:
    """The id of a trace of ours: a repair has one, since many interactions lead to it."""
    return _digest("trace", kind, about, 16)


def _digest(what: str, kind: str, about: str, size: int) -> int:
    raw = hashlib.sha256("\0".join((what, kind, about)).encode()).digest()[:size]
    return int.from_bytes(raw, "big") or 1  # Nought is no id.
