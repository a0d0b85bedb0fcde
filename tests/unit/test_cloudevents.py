"""CloudEvents headers: complete, and the trace context passes through or not at all."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from ares_stream.records.cloudevents import cloudevent_headers, event_type, trace_context
from ares_stream.records.label import Label
from ares_stream.records.schemas import RECORDS

LABEL = Label(
    interaction_id="i",
    harmful=True,
    reviewer="r",
    decided_at=datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))),
)
PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_the_required_attributes_are_there() -> None:
    headers = cloudevent_headers(LABEL, id="x", source="ares.labels", time=LABEL.decided_at)
    assert headers == (
        ("ce_specversion", b"1.0"),
        ("ce_id", b"x"),
        ("ce_source", b"ares.labels"),
        ("ce_type", b"ares.label.v1"),
        ("ce_time", b"2026-01-01T00:00:00.000Z"),
        ("content-type", b"application/json"),
    )


def test_every_record_has_its_own_type() -> None:
    assert len({event_type(record) for record in RECORDS}) == len(RECORDS)


def test_a_valid_trace_passes_byte_for_byte() -> None:
    incoming = (("x", b"y"), ("Traceparent", PARENT), ("tracestate", b"vendor=1"))
    assert trace_context(incoming) == (("traceparent", PARENT), ("tracestate", b"vendor=1"))
    assert trace_context((("traceparent", PARENT),)) == (("traceparent", PARENT),)


@pytest.mark.parametrize(
    "parent",
    [
        b"",
        PARENT.upper(),
        PARENT + b"-00",
        b"ff" + PARENT[2:],
        b"00-" + b"0" * 32 + PARENT[35:],
        PARENT[:36] + b"0" * 16 + PARENT[52:],
        b"\xff\xfe",
    ],
)
def test_an_invalid_trace_is_dropped_with_its_state(parent: bytes) -> None:
    assert trace_context((("traceparent", parent), ("tracestate", b"a=1"))) == ()


def test_two_parents_are_none() -> None:
    assert trace_context((("traceparent", PARENT), ("traceparent", PARENT))) == ()
