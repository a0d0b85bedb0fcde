"""One topic holds alarms and acknowledgements: which one a record is, its schema says alone."""

from __future__ import annotations

import json

import pytest

from ares_stream.errors import DecodeError
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement, decode_told
from ares_stream.records.rates import AnchorAnswers, decode_held
from tests.support.verdicts import NOON

ALARM = Alarm(
    id="a1", kind="contested_rose", raised_at=NOON, changed_at=NOON, false_alarm_days=30.0,
    summary='{"schema":"ares.alarm-acknowledgement/1"',
)  # fmt: skip
SEEN = AlarmAcknowledgement(alarm_id="a1", by="ann", at=NOON, note='"ares.alarm/1"')


@pytest.mark.parametrize("item", [ALARM, SEEN])
@pytest.mark.parametrize("form", ["as written", "spread out", "schema last"])
def test_a_record_is_what_its_schema_says_wherever_that_stands(
    item: Alarm | AlarmAcknowledgement, form: str
) -> None:
    document = json.loads(item.encode())
    if form == "schema last":
        document["schema"] = document.pop("schema")
    raw = json.dumps(document, indent=2).encode() if form != "as written" else item.encode()
    assert decode_told(raw) == item


@pytest.mark.parametrize(
    "raw",
    [
        None, b"", b"null", b"[]", b"{}", b"\xff", b'{"schema": 5}',
        b'{"schema": ["ares.alarm/1"]}',
        b'{"schema": "ares.alarm/2"}', b'{"note": "ares.alarm-acknowledgement/1"}',
        b'{"schema": "ares.alarm/1"}',
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_names_the_field(raw: bytes | None) -> None:
    with pytest.raises(DecodeError):
        decode_told(raw)


def test_a_schema_named_twice_is_refused_or_is_the_one_that_counts() -> None:
    """JSON lets a name stand twice, and parsers take the last."""
    raw = SEEN.encode().replace(b'"alarm_id"', b'"schema":"ares.alarm/1","alarm_id"')
    with pytest.raises(DecodeError):
        decode_told(raw)


def test_a_state_of_the_monitor_is_found_wherever_its_schema_stands() -> None:
    item = AnchorAnswers(set="s", start=600, answers={})
    document = json.loads(item.encode())
    document["schema"] = document.pop("schema")
    assert decode_held(item.key, json.dumps(document).encode()) == item
    with pytest.raises(DecodeError, match="key"):
        decode_held(b"other", item.encode())
