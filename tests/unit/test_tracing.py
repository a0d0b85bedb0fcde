"""Traces: which record has one, whose span is whose, and what a collector that is away costs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ares_stream.detection.assess import ScoredVerdict
from ares_stream.errors import SettingsError
from ares_stream.records.traces import TraceParent, sampled_parent, span_id, trace_id
from ares_stream.services.settings import TracingSettings
from ares_stream.services.tracing import Tracing, open_tracing
from tests.support.verdicts import verdict

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@given(trace=st.integers(1, 2**128 - 1), span=st.integers(1, 2**64 - 1), flags=st.integers(0, 255))
def test_a_record_has_a_trace_where_its_producer_samples_it(
    trace: int, span: int, flags: int
) -> None:
    raw = f"00-{trace:032x}-{span:016x}-{flags:02x}".encode()
    found = sampled_parent([("other", b"x"), ("traceparent", raw)])
    assert found == (TraceParent(trace, span) if flags & 1 else None)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("traceparent", None)],
        [("traceparent", b"")],
        [("traceparent", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01")],
        [("traceparent", b"ff-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01")],
        [("traceparent", b"00-" + b"1" * 32 + b"-" + b"1" * 16 + b"-01")] * 2,
        [("tracestate", b"a=b")],
    ],
)
def test_a_record_without_one_valid_trace_has_none(
    headers: list[tuple[str, bytes | None]],
) -> None:
    assert sampled_parent(headers) is None


@given(one=st.text(max_size=20), other=st.text(max_size=20))
def test_a_span_is_known_by_what_it_is_about_in_any_process(one: str, other: str) -> None:
    assert span_id("score", one) == span_id("score", one)
    assert (span_id("score", one) == span_id("score", other)) == (one == other)
    assert span_id("score", one) != span_id("repair", one)
    assert 0 < span_id("score", one) < 2**64
    assert 0 < trace_id("repair", one) < 2**128


def test_without_an_endpoint_nothing_is_opened_or_imported() -> None:
    assert open_tracing(TracingSettings(), "scorer") is None
    code = (
        "import sys; import ares_stream.services.scorer, ares_stream.services.repairer; "
        "from ares_stream.services.tracing import open_tracing; "
        "from ares_stream.services.settings import TracingSettings; "
        "open_tracing(TracingSettings(), 'scorer'); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_is_no_address_of_a_collector_is_refused() -> None:
    with pytest.raises(ValidationError, match="endpoint"):
        TracingSettings(endpoint="collector:4318")


def test_a_token_that_is_not_there_is_told_by_field_and_file(tmp_path: Path) -> None:
    settings = TracingSettings(endpoint="http://127.0.0.1:9/v1", token_file=tmp_path / "none")
    with pytest.raises(SettingsError, match=r"tracing\.token_file.*none"):
        Tracing(settings, "scorer")


async def test_a_collector_that_is_away_delays_the_end_by_its_bound_and_fails_nothing() -> None:
    # Nothing listens on the discard port.
    settings = TracingSettings(endpoint="http://127.0.0.1:9/v1/traces", batch_seconds=60)
    tracing = Tracing(settings, "scorer", closing_seconds=0.5)
    note = ScoredVerdict(verdict(1), NOON.timestamp(), TraceParent(1, 2), NOON.timestamp())
    unsampled = ScoredVerdict(verdict(2), NOON.timestamp())
    # More than the queue holds: what is too much is dropped, and nothing waits.
    for _ in range(3000):
        tracing.scored([note, object(), unsampled])
    async with asyncio.timeout(20):
        await tracing.aclose()
