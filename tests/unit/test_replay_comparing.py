"""Which differences between a recorded and a replayed verdict count, and what is said of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.audit.replay.comparing import Tolerance, compare
from ares_stream.audit.replay.recorded import (
    Letter,
    Output,
    Recorded,
    Source,
    by_offset,
    source_named,
    unpack,
)
from ares_stream.errors import DecodeError
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.handler import Outputs
from ares_stream.streaming.deadletters import batch_size
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Rejection
from tests.support.verdicts import verdict

OUTPUTS = Outputs("verdicts", "repair", "review")
RECORD = InboundRecord("in", 0, 5, 0, b"key", b"value")
SECRET = "xylocanary"
BASE: dict[str, Any] = json.loads(verdict(5, FailureClass.CLEAN).encode())
COVERAGE = {"windows": 2, "encodings": [], "unread": 0}


def entry(output: Output, payload: bytes) -> Recorded:
    return Recorded(output, 5, 0, 17, 0, payload)


def changed(path: str, value: Any) -> bytes:
    """BASE with one field set, or taken away with ...; as JSON."""
    document = json.loads(json.dumps(BASE))
    *outer, last = path.split(".")
    inner = document
    for name in outer:
        inner = inner[name]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(document, separators=(",", ":")).encode()


def compared(recorded: bytes, replayed: bytes, share: float = 1e-4) -> tuple[str, str]:
    found = compare(
        RECORD, (OutboundRecord("verdicts", b"key", replayed),),
        [entry(Output.VERDICT, recorded)], OUTPUTS, Tolerance(share),
    )  # fmt: skip
    return found.agreement, found.detail


HARM, SCORE = BASE["harm"]["probability"], BASE["reward"]["score"]
CASES: dict[str, tuple[bytes, str, str]] = {
    "the same": (changed("id", BASE["id"]), "identical", ""),
    "a number in its last digits": (
        changed("harm.probability", HARM + 1e-6), "tolerated", "harm.probability"),
    "a number too far": (changed("harm.probability", HARM + 0.01), "divergent", "harm.probability"),
    "a reward of another sign": (changed("reward.score", -SCORE - 1), "divergent", "reward.score"),
    "a quantile one step away": (
        changed("reward.quantile", BASE["reward"]["quantile"] - 0.005), "tolerated", "quantile"),
    "a quantile steps away": (
        changed("reward.quantile", BASE["reward"]["quantile"] - 0.2), "divergent", "quantile"),
    "another class": (
        changed("failure_class", "contested"), "divergent", "failure_class: contested recorded"),
    "another rule": (
        changed("scored_high.above_quantile", not BASE["scored_high"]["above_quantile"]),
        "divergent", "scored_high.above_quantile: another value"),
    "an attribute": (
        changed("attributes.locale", SECRET), "divergent", "attributes.locale: another value"),
    "another id": (changed("id", SECRET), "divergent", "id: another value"),
    "no id": (changed("id", ...), "divergent", "id: not in the recorded verdict"),
    "a field of a later version": (
        changed("weather", SECRET), "divergent", "weather: not in the replay"),
    "no JSON": (b"{", "divergent", "not JSON"),
    "a truth in the place of a number": (
        changed("harm.disagreement", False), "divergent", "harm.disagreement"),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_a_difference_counts_by_its_field_and_shows_no_text(what: str) -> None:
    recorded, agreement, detail = CASES[what]
    replayed = json.dumps(BASE, separators=(",", ":")).encode()
    found, said = compared(recorded, replayed)
    assert (found, detail in said) == (agreement, True), said
    assert SECRET not in said


def test_a_verdict_of_before_a_field_was_known_is_tolerated() -> None:
    recorded = json.dumps(BASE, separators=(",", ":")).encode()
    assert compared(recorded, changed("harm.coverage", COVERAGE)) == (
        "tolerated", "within the tolerance: harm.coverage",
    )  # fmt: skip
    assert compared(recorded, changed("harm.other", 1))[0] == "divergent"


@given(st.floats(-1e3, 1e3), st.floats(-1e-2, 1e-2))
def test_no_tolerance_asks_for_equal_bits(score: float, step: float) -> None:
    recorded, replayed = changed("reward.score", score), changed("reward.score", score + step)
    found, _ = compared(recorded, replayed, share=0.0)
    assert (found == "identical") == (recorded == replayed)
    near, _ = compared(recorded, replayed)
    assert (near == "divergent") == (abs(score + step - score) > 1e-4 * max(1.0, abs(score)))


def letter(stage: str, reason: str, content: str | None = None) -> Recorded:
    return entry(Output.LETTER, Letter(stage, "kind", reason, content).pack())


def test_a_dead_letter_for_the_size_of_an_output_is_measured_again() -> None:
    made = OutboundRecord("verdicts", b"key", json.dumps(BASE).encode())
    reason = "its output of {} bytes is larger than verdicts takes (7)"
    for size, agreement in ((batch_size(made), "identical"), (batch_size(made) + 1, "divergent")):
        found = compare(
            RECORD, (made,), [letter("publish", reason.format(size))], OUTPUTS, Tolerance()
        )
        assert found.agreement == agreement


def test_a_refusal_is_held_to_its_stage_its_words_and_its_bytes() -> None:
    refused = Rejection("decode", "kind", "not JSON")
    expected = {
        "identical": [letter("decode", "not JSON")],
        "tolerated": [letter("decode", "no JSON")],
        "divergent": [letter("score", "not JSON")],
        "missing": [],
        "unexpected": [letter("decode", "not JSON"), letter("decode", "not JSON")],
    }
    for agreement, found in expected.items():
        assert compare(RECORD, refused, found, OUTPUTS, Tolerance()).agreement == agreement
    other = [letter("decode", "not JSON", content="0" * 64)]
    assert "other bytes" in compare(RECORD, refused, other, OUTPUTS, Tolerance()).detail


def test_a_record_that_the_mapping_leaves_out_has_no_output() -> None:
    assert compare(RECORD, (), [], OUTPUTS, Tolerance()).agreement == "left_out"
    found = [entry(Output.VERDICT, b"{}")]
    assert compare(RECORD, (), found, OUTPUTS, Tolerance()).agreement == "unexpected"


ENTRIES = st.builds(
    Recorded, st.sampled_from(Output), st.integers(0, 2**62), st.integers(0, 2**31),
    st.integers(0, 2**62), st.integers(-1, 2**62), st.binary(max_size=40),
)  # fmt: skip


@given(st.lists(ENTRIES, max_size=6))
def test_entries_come_back_from_a_file_as_they_were(entries: list[Recorded]) -> None:
    raw = b"".join(item.pack() for item in entries)
    assert list(unpack(raw)) == entries
    assert sum(map(len, by_offset(entries).values())) == len(entries)
    if raw:
        with pytest.raises(DecodeError, match="cut short"):
            list(unpack(raw[:-1]))


@given(st.text(max_size=30))
def test_no_text_of_a_verdict_is_taken_for_its_source(text: str) -> None:
    hostile = text + '"source":{"topic":"forged","partition":0,"offset":1,'
    found = verdict(5, FailureClass.CLEAN).model_copy(update={"interaction_id": hostile})
    source = found.source
    expected = Source(source.topic, source.partition, source.offset)
    assert source_named(found.encode()) == expected
    spaced = json.dumps(json.loads(found.encode()), indent=1).encode()
    assert source_named(spaced) == expected
