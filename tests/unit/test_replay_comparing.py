"""Which differences between a recorded and a replayed verdict count, and what is said of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.audit.replay.comparing import Comparison, Tolerance, compare
from ares_stream.audit.replay.letters import Letter
from ares_stream.audit.replay.models import Readings, recorded_opinion
from ares_stream.audit.replay.recorded import (
    Carried,
    Output,
    Recorded,
    Source,
    by_offset,
    frame_of,
    source_named,
    unframed,
    unpack,
)
from ares_stream.errors import DecodeError
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.handler import Outputs
from ares_stream.streaming.deadletters import batch_size, dead_letter, kept_whole
from ares_stream.streaming.records import (
    Headers,
    InboundRecord,
    OutboundRecord,
    Outcome,
    Rejection,
)
from tests.support.verdicts import verdict

OUTPUTS = Outputs("verdicts", "repair", "review")
RECORD = InboundRecord("in", 0, 5, 0, b"key", b"value")
SECRET = "xylocanary"
BASE: dict[str, Any] = json.loads(verdict(5, FailureClass.CLEAN).encode())
COVERAGE = {"windows": 2, "encodings": [], "unread": 0}


FRAME = frame_of(b"key", ())


def entry(output: Output, payload: bytes) -> Recorded:
    return Recorded(output, 5, 0, 17, 0, payload, FRAME)


def held(outcome: Outcome, found: list[Recorded], share: float = 1e-4) -> Comparison:
    """Compared, where no conversation is asked for."""

    def conversation() -> Interaction:
        raise AssertionError("nothing is compared with a conversation")

    return compare(RECORD, outcome, found, OUTPUTS, Tolerance(share), conversation=conversation)


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
    made = (OutboundRecord("verdicts", b"key", replayed),)
    found = held(made, [entry(Output.VERDICT, recorded)], share)
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


HOSTILE = "xylo \x1b[31m canary"
FORGED: dict[str, tuple[bytes, str]] = {
    "a text in the place of a number": (changed("harm.probability", HOSTILE), "harm.probability"),
    "a text in the place of a class": (changed("failure_class", HOSTILE), "failure_class"),
    "a list in the place of a class": (changed("failure_class", [HOSTILE]), "failure_class"),
    "a text as the name of a field": (changed(HOSTILE, 1), "a field of another name"),
    "a text as the name of a judge": (changed(f"harm.judges.{HOSTILE}", 1.0), "another name"),
    "no number": (changed("harm.probability", math.nan), "not JSON"),
    **{
        f"{deep} levels": (changed("x", "?").replace(b'"?"', b"[" * deep + b"]" * deep), what)
        for deep, what in ((100, "x: not in the replay"), (900, "JSON"), (100_000, "JSON"))
    },
}


@pytest.mark.parametrize("what", FORGED)
def test_whatever_a_forger_writes_into_a_verdict_is_one_finding_without_their_words(
    what: str,
) -> None:
    recorded, told = FORGED[what]
    agreement, detail = compared(recorded, json.dumps(BASE, separators=(",", ":")).encode())
    assert (agreement, told in detail) == ("divergent", True), detail
    assert "xylo" not in detail
    assert "\x1b" not in detail


def test_a_verdict_that_ends_as_one_and_is_none_gives_no_opinion() -> None:
    raw = verdict(5, FailureClass.CLEAN).encode()
    readings = Readings()
    made = readings.of(raw)
    forged = b"[[[" + raw[raw.index(b'"releases"') :]
    assert readings.of(forged) == made
    assert recorded_opinion(forged) is None


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


def letter(stage: str, reason: str, **changed: Any) -> Recorded:
    refused = Rejection(stage, "kind", reason)
    made = dead_letter(RECORD, refused, "letters", service="scorer", failed_at_ms=9)
    return entry(Output.LETTER, replace(Letter.of(made), **changed).pack())


def test_a_dead_letter_for_the_size_of_an_output_is_measured_again() -> None:
    made = OutboundRecord("verdicts", b"key", json.dumps(BASE).encode())
    reason = "its output of {} bytes is larger than verdicts takes (7)"
    for size, agreement in ((batch_size(made), "identical"), (batch_size(made) + 1, "divergent")):
        assert held((made,), [letter("publish", reason.format(size))]).agreement == agreement
    said = letter("publish", reason.format(batch_size(made)), key="0" * 64)
    assert held((made,), [said]).detail == "its dead letter holds another key"


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
        assert held(refused, found).agreement == agreement
    # A reason that was cut off is another one, and none is another one too.
    for reason in ("not", ""):
        assert held(refused, [letter("decode", reason)]).agreement == "tolerated"
    parts = {"key": "key", "value": "value", "headers": "headers"}
    for part, said in parts.items():
        other = held(refused, [letter("decode", "not JSON", **{part: "0" * 64})])
        assert (other.agreement, said in other.detail) == ("divergent", True)


def test_each_reason_of_a_dead_letter_that_its_record_determines_is_compared() -> None:
    refused = Rejection("decode", "kind", "not JSON")
    said = Letter.unpack(letter("decode", "not JSON").payload).said
    assert {name.rpartition(".")[2] for name in said} == {
        "topic", "partition", "offset", "attempt", "original_timestamp",
    }  # fmt: skip
    for name in said:
        for changed in ({**said, name: SECRET}, {key: said[key] for key in said if key != name}):
            found = held(refused, [letter("decode", "not JSON", said=changed)])
            assert (found.agreement, found.detail) == (
                "divergent", f"its dead letter has another {name}",
            )  # fmt: skip
    found = held(refused, [letter("decode", "not JSON", said={**said, SECRET: SECRET})])
    assert found.agreement == "divergent"
    assert SECRET not in found.detail


@pytest.mark.parametrize("limit", [0, 300])
def test_a_dead_letter_of_coordinates_is_held_to_the_limit_that_it_names(limit: int) -> None:
    large = replace(RECORD, value=b"x" * 400)
    refused = Rejection("decode", "kind", "not JSON")
    small = dead_letter(large, refused, "letters", service="s", failed_at_ms=9, limit=limit)
    assert not kept_whole(small)
    found = entry(Output.LETTER, Letter.of(small).pack())

    def said(record: InboundRecord) -> Comparison:
        return compare(record, refused, [found], OUTPUTS, Tolerance(), conversation=lambda: None)  # type: ignore[arg-type, return-value]

    assert said(large).agreement == "identical"
    assert said(replace(large, value=b"x" * 401)).agreement == "divergent"
    assert said(replace(large, key=b"other")).agreement == "divergent"
    if limit:
        assert said(replace(large, value=b"")).agreement == "divergent"


def test_an_output_of_a_record_that_was_refused_or_left_out_is_unexpected() -> None:
    refused = Rejection("decode", "kind", "not JSON")
    repair = entry(Output.REPAIR, Carried("a", "b").pack())
    for outcome, found in ((refused, [letter("decode", "not JSON"), repair]), ((), [repair])):
        assert held(outcome, found).agreement == "unexpected"


HEADERS = (("ce_id", b"1"), ("ce_time", b"noon"), ("ce_id", b"2"), ("note", None))


@pytest.mark.parametrize(
    ("key", "headers", "said"),
    [
        (b"other", HEADERS, "another key"),
        (None, HEADERS, "another key"),
        (b"", HEADERS, "another key"),
        (b"key", HEADERS[:3], "no header note"),
        (b"key", (("ce_id", b"1"), ("ce_time", b"eve"), *HEADERS[2:]), "another header ce_time"),
        (b"key", (*HEADERS[:3], ("note", b"")), "another header note"),
        (b"key", (*HEADERS, (SECRET, b"")), "1 headers that the replay has not"),
        (b"key", HEADERS[::-1], "its headers in other order"),
    ],
)
def test_another_key_or_header_of_a_verdict_diverges_by_its_name(
    key: bytes | None, headers: Headers, said: str
) -> None:
    value = json.dumps(BASE).encode()
    near = changed("harm.probability", HARM + 1e-6)
    for recorded in (value, near):
        found = entry(Output.VERDICT, recorded)._replace(frame=frame_of(key, headers))
        compared = held((OutboundRecord("verdicts", b"key", value, HEADERS),), [found])
        assert (compared.agreement, compared.detail) == (
            "divergent", f"its verdict record has {said}",
        )  # fmt: skip
    same = entry(Output.VERDICT, value)._replace(frame=frame_of(b"key", HEADERS))
    made = OutboundRecord("verdicts", b"key", value, HEADERS)
    assert held((made,), [same]).agreement == "identical"


NAMES = st.text(max_size=9)


@given(
    st.none() | st.binary(max_size=9),
    st.lists(st.tuples(NAMES, st.none() | st.binary(max_size=9)), max_size=4),
)
def test_a_frame_comes_back_as_it_was(
    key: bytes | None, headers: list[tuple[str, bytes | None]]
) -> None:
    assert unframed(frame_of(key, tuple(headers))) == (key, tuple(headers))


def test_a_record_that_the_mapping_leaves_out_has_no_output() -> None:
    assert held((), []).agreement == "left_out"
    assert held((), [entry(Output.VERDICT, b"{}")]).agreement == "unexpected"


ENTRIES = st.builds(
    Recorded, st.sampled_from(Output), st.integers(0, 2**62), st.integers(0, 2**31),
    st.integers(0, 2**62), st.integers(-1, 2**62), st.binary(max_size=40), st.binary(max_size=9),
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
