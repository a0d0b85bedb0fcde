"""Whatever 64 bits a producer wrote as a time, and whatever moment a record names, nothing ends."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ares_stream.audit.evidence import Evidence, Period, encoded
from ares_stream.audit.evidence_page import evidence_page
from ares_stream.audit.trace import Step
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import DecodeError
from ares_stream.models.releases import Log
from ares_stream.records import topics
from ares_stream.records.base import Part, instant
from ares_stream.records.cloudevents import cloudevent_headers
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.mapping import Mapping
from ares_stream.records.observation import read_observation
from ares_stream.records.schemas import RECORDS
from ares_stream.streaming.records import InboundRecord
from tests.support.verdicts import verdict

LONGS = st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from(
    [-1, 0, 253_402_300_799_999, 253_402_300_800_000, (1 << 63) - 1, -(1 << 63)]
)
BEHIND, BEFORE = "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00"


@given(LONGS)
def test_any_time_of_kafka_is_a_moment_that_can_be_told(milliseconds: int) -> None:
    found = instant(milliseconds)
    assert found.astimezone(UTC).isoformat()
    if 0 <= milliseconds < 253_402_300_800_000:
        assert abs(found.timestamp() * 1000 - milliseconds) < 1
    step = Step("verdict", "t", 0, 1, milliseconds, "clean")
    assert "t 0@1" in str(step)


@settings(max_examples=30)
@given(st.lists(LONGS, min_size=1, max_size=4))
def test_the_monitor_counts_verdicts_of_any_time_and_goes_on_from_its_state(
    stamps: list[int],
) -> None:
    ledger = Ledger(LedgerPolicy())
    for number, stamp in enumerate(stamps):
        seen = read_observation(verdict(number).encode(), "either")
        ledger.add(seen, stamp, (0, number))
    (whole,) = [item for item in ledger.rates() if not item.slice.attribute]
    assert whole.figures.total == len(stamps)
    written = ledger.changes(datetime(2026, 1, 1, tzinfo=UTC), 0.1)
    assert all(item is None or item.encode() for _, item in written)


@given(LONGS)
def test_evidence_of_any_period_takes_records_of_any_time(stamp: int) -> None:
    period = Period(datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
    evidence = Evidence(period, LedgerPolicy(), "either")
    raw = verdict(1).encode()
    evidence.take(topics.VERDICTS, InboundRecord("verdicts", 0, 0, stamp, b"k", raw))
    document = evidence.document(Log((), None))
    assert encoded(document)
    assert evidence_page(document)


@given(st.integers(0, (1 << 63) - 1))
def test_the_time_of_a_record_stands_in_for_one_that_is_not_mapped_whatever_it_is(
    stamp: int,
) -> None:
    mapping = Mapping.model_validate(
        {"prompt": "p", "response": "r", "policy": {"name": "'a'", "version": "'1'"}}
    )
    found = decode_interaction(
        b"k", b'{"p":"a","r":"b"}', (), DecodingLimits(), mapping, timestamp_ms=stamp
    )
    assert found.occurred_at == instant(stamp)


def models(of: type[Part] = Part) -> Iterator[type[Part]]:
    for kind in of.__subclasses__():
        yield kind
        yield from models(kind)


def moments() -> Iterator[tuple[str, Any]]:
    assert RECORDS  # All records are imported.
    for kind in models():
        # Interaction asks for 1970 at least, in a validator of its own.
        own = {"occurred_at"} if kind.__name__ == "Interaction" else set()
        for name, field in kind.model_fields.items():
            ours = kind.__module__.startswith("ares_stream.") and name not in own
            if ours and "datetime" in repr(field).lower():
                yield f"{kind.__name__}.{name}", field


MOMENTS = dict(moments())


@pytest.mark.parametrize("name", sorted(MOMENTS))
@pytest.mark.parametrize("moment", [BEHIND, BEFORE])
def test_a_moment_that_no_clock_in_utc_shows_is_refused_wherever_one_is_read(
    name: str, moment: str
) -> None:
    field = MOMENTS[name]
    kind: Any = field.annotation
    for item in field.metadata:
        kind = Annotated[kind, item]
    value: Any = {"production": moment} if "dict" in repr(field.annotation) else moment
    with pytest.raises(ValidationError, match="outside of the years 1 to 9999"):
        TypeAdapter(kind).validate_python(value)


def test_an_interaction_of_such_a_moment_is_refused_with_its_field() -> None:
    raw = b'{"schema":"ares.interaction/1","id":"a","occurred_at":"%b","messages":[{"role":"user"' \
          b',"content":"x"}],"response":"y","policy":{"name":"p","version":"1"}}'  # fmt: skip
    assert decode_interaction(b"k", raw % b"9999-12-31T23:59:59Z", (), DecodingLimits())
    with pytest.raises(DecodeError, match="occurred_at: lies behind the year 9999"):
        decode_interaction(b"k", raw % BEHIND.encode(), (), DecodingLimits())


@given(
    st.datetimes(
        datetime(1970, 1, 2), datetime(9999, 12, 30),
        timezones=st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m))),
    )
)  # fmt: skip
def test_the_time_of_an_event_is_rfc_3339_in_utc_to_the_millisecond(at: datetime) -> None:
    headers = dict(cloudevent_headers(verdict(1), id="1", source="s", time=at))
    said = headers["ce_time"].decode()
    assert said.endswith("Z")
    found = datetime.fromisoformat(said.replace("Z", "+00:00"))
    assert timedelta(0) <= at - found < timedelta(milliseconds=1)
