"""Records: strict to write, lenient to read, equal bytes for equal content, no text in errors."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ares_stream.errors import DecodeError
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction, Message, Policy, Probe, Reference
from ares_stream.records.schemas import RECORDS
from ares_stream.records.verdict import Reward, verdict_id

texts = st.text(max_size=40)
labels = st.text(min_size=1, max_size=20)
interactions = st.builds(
    Interaction,
    id=labels,
    occurred_at=st.datetimes(
        min_value=datetime(1970, 1, 2),
        timezones=st.just(UTC),
    ),
    messages=st.lists(
        st.builds(
            Message,
            role=st.sampled_from(["system", "user", "assistant", "tool"]),
            content=texts.map(lambda text: text + "word"),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    response=texts,
    policy=st.builds(Policy, name=labels, version=labels),
    attributes=st.dictionaries(labels, texts, max_size=3),
    reference=st.none() | st.builds(Reference, chosen=texts, rejected=st.none()),
    probe=st.none()
    | st.builds(
        Probe,
        id=labels,
        campaign=labels,
        generation=st.integers(0, 9),
        components=st.dictionaries(labels, labels, max_size=2),
        sampling_probability=st.floats(0.001, 1.0),
    ),
)


def sample(**changes: object) -> dict[str, object]:
    fields: dict[str, object] = {
        "schema": "ares.interaction/1",
        "id": "a-1",
        "occurred_at": "2026-01-01T00:00:00Z",
        "messages": [{"role": "user", "content": "how do I bake bread"}],
        "response": "with flour",
        "policy": {"name": "p", "version": "1"},
    }
    return {**fields, **changes}


@given(interactions)
def test_a_record_survives_the_wire(interaction: Interaction) -> None:
    assert Interaction.decode(interaction.encode()) == interaction


@given(interactions)
def test_equal_records_have_equal_bytes(interaction: Interaction) -> None:
    assert Interaction.decode(interaction.encode()).encode() == interaction.encode()


def test_reading_keeps_fields_that_a_newer_producer_added() -> None:
    raw = json.dumps(sample(added=7, policy={"name": "p", "version": "1", "host": "h"})).encode()
    again = json.loads(Interaction.decode(raw).encode())
    assert again["added"] == 7
    assert again["policy"]["host"] == "h"


def test_writing_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Policy(name="p", version="1", host="h")  # type: ignore[call-arg]


def test_records_are_frozen() -> None:
    record = Interaction.decode(json.dumps(sample()).encode())
    with pytest.raises(ValidationError, match="frozen"):
        record.id = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": "ares.interaction/2"}, "schema"),
        ({"occurred_at": -5}, "occurred_at"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"response": None}, "response"),
        ({"policy": {"name": "", "version": "1"}}, "policy.name"),
        ({"attributes": {"topic": "x" * 500}}, "attributes.topic"),
    ],
)
def test_what_is_wrong_is_named_by_its_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(DecodeError) as caught:
        Interaction.decode(json.dumps(sample(**change)).encode())
    assert caught.value.field == field


@pytest.mark.parametrize("role", ["my secret question", "secret"])
def test_an_error_never_quotes_the_record(role: str) -> None:
    raw = json.dumps(sample(messages=[{"role": role, "content": "secret words"}])).encode()
    with pytest.raises(DecodeError) as caught:
        Interaction.decode(raw)
    assert "secret" not in str(caught.value)


def test_a_record_with_no_word_in_it_is_refused() -> None:
    with pytest.raises(DecodeError, match="hold no text"):
        Interaction.decode(
            json.dumps(sample(messages=[{"role": "user", "content": " \n"}])).encode()
        )


def test_the_prompt_is_the_last_turn_that_is_not_the_assistants() -> None:
    turns = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    assert Interaction.decode(json.dumps(sample(messages=turns)).encode()).prompt == "three"


def test_verdict_ids_depend_on_everything_that_decided() -> None:
    base = verdict_id("t", 0, 1, {"judge": "a", "reward": "b"}, "p")
    assert base == verdict_id("t", 0, 1, {"reward": "b", "judge": "a"}, "p")
    others = {
        verdict_id("u", 0, 1, {"judge": "a", "reward": "b"}, "p"),
        verdict_id("t", 1, 1, {"judge": "a", "reward": "b"}, "p"),
        verdict_id("t", 0, 2, {"judge": "a", "reward": "b"}, "p"),
        verdict_id("t", 0, 1, {"judge": "a", "reward": "c"}, "p"),
        verdict_id("t", 0, 1, {"judge": "a", "reward": "b"}, "q"),
    }
    assert len(others | {base}) == 6


def test_digests_refuse_what_json_cannot_hold() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"x": float("nan")})


def test_every_record_names_its_schema_once() -> None:
    names = [record.SCHEMA for record in RECORDS]
    assert len(set(names)) == len(names)
    for record in RECORDS:
        assert record.model_fields["schema_"].default == record.SCHEMA


def test_times_keep_their_instant() -> None:
    raw = json.dumps(sample(occurred_at="2026-01-01T02:00:00+02:00")).encode()
    assert Interaction.decode(raw).occurred_at - datetime(2026, 1, 1, tzinfo=UTC) == timedelta(0)


@given(
    st.text(max_size=20),
    st.integers(0, 2**31),
    st.integers(0, 2**63),
    st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    st.text(max_size=8),
)
def test_a_verdicts_id_is_the_digest_of_its_five_parts(
    topic: str, partition: int, offset: int, releases: dict[str, str], policy: str
) -> None:
    parts = [topic, partition, offset, releases, policy]
    assert verdict_id(topic, partition, offset, releases, policy) == digest(parts)[:32]


def test_a_record_of_checked_values_is_the_record_that_was_validated() -> None:
    fields: dict[str, Any] = {"score": 1.5, "quantile": 0.25, "rejected": -1.0}
    trusted, validated = Reward.checked(**fields), Reward(**fields)
    assert trusted == validated
    assert trusted.model_dump_json() == validated.model_dump_json()
    assert (trusted.chosen, hash(trusted)) == (None, hash(validated))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(trusted, "score", 2.0)  # noqa: B010 - mypy knows that it must not
    with pytest.raises(TypeError, match=r"Reward: needs \['quantile'\]"):
        Reward.checked(score=1.5)
