"""Decoding refuses what could hurt before it parses, and says why without quoting."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import AresError, DecodeError, InputError
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping

LIMITS = DecodingLimits(max_bytes=2_000, max_depth=8, max_headers=3, max_header_bytes=100)
MAPPING = Mapping.model_validate(
    {"prompt": "q", "response": "a", "policy": {"name": "'p'", "version": "'1'"}}
)


def record(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "schema": "ares.interaction/1",
        "id": "a-1",
        "occurred_at": "2026-01-01T00:00:00Z",
        "messages": [{"role": "user", "content": "how do I bake bread"}],
        "response": "with flour",
        "policy": {"name": "p", "version": "1"},
    }
    return json.dumps({**fields, **changes}).encode()


def decode(
    value: bytes | None, headers: tuple[tuple[str, bytes], ...] = (), mapping: Mapping | None = None
) -> Interaction:
    return decode_interaction(b"k", value, headers, LIMITS, mapping, timestamp_ms=0)


def test_a_good_record_passes() -> None:
    assert decode(record()).response == "with flour"
    assert decode(b'{"q": "why", "a": "because"}', mapping=MAPPING).id == "k"


@pytest.mark.parametrize("mapping", [None, MAPPING])
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null"),
        (b"", "empty"),
        (b" \n ", "empty"),
        (b'"' + b"x" * 2_000 + b'"', "2002 bytes; the limit is 2000"),
        (b"[" * 9, "deeper than 8"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "deeper than 8"),
        (b'{"q": "secret\xff"}', "not UTF-8 at byte 13"),
        (b'{"q": NaN}', "NaN or Infinity"),
        (b'{"q": -Infinity}', "NaN or Infinity"),
        (b'{"q": "secret', "not JSON"),
        (b"secret", "not JSON"),
        (b'{"q": "\\ud800"}', "not JSON"),
    ],
)
def test_bytes_that_are_no_record_are_refused_with_a_reason(
    value: bytes | None, reason: str, mapping: Mapping | None
) -> None:
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(value, mapping=mapping)
    assert "secret" not in str(caught.value)


def test_another_schema_is_named_as_such() -> None:
    with pytest.raises(DecodeError, match=r"^schema: another schema than ares.interaction/1"):
        decode(record(schema="ares.interaction/2"))


def test_headers_are_limited_in_number_and_size() -> None:
    decode(record(), headers=(("a", b""),) * 3)
    with pytest.raises(DecodeError, match="4 headers; the limit is 3"):
        decode(record(), headers=(("a", b""),) * 4)
    with pytest.raises(DecodeError, match="101 bytes of headers"):
        decode(record(), headers=(("a", b"x" * 100),))


def test_brackets_and_nan_inside_text_are_text() -> None:
    text = "NaN Infinity " + "[{" * 50 + '"\\'
    assert decode(record(response=text)).response == text


@given(st.binary(max_size=300))
def test_any_bytes_give_an_interaction_or_an_input_error(value: bytes) -> None:
    for mapping in (None, MAPPING):
        try:
            decode(value, mapping=mapping)
        except InputError:
            continue


@given(st.recursive(st.none() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_depth_is_measured_exactly(value: object) -> None:
    def depth(item: object) -> int:
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    raw = json.dumps(value, ensure_ascii=False).encode()
    limits = DecodingLimits(max_depth=2)
    with pytest.raises(AresError) as caught:
        decode_interaction(None, raw, (), limits)
    assert ("deeper than 2" in str(caught.value)) == (depth(value) > 2)


def test_hostile_quotes_take_linear_time() -> None:
    raw = b'{"a": "' + b'\\"' * 500_000 + b"[" * 40
    with pytest.raises(DecodeError, match="not JSON"):
        decode_interaction(None, raw, (), DecodingLimits(max_bytes=2_000_000))
