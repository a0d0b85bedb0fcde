"""Mappings: any JSON becomes an Interaction, and what is missing is named, never quoted."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ares_stream.errors import MappingError
from ares_stream.records.mapping import Mapping, load_mapping

FIELDS: dict[str, Any] = {
    "id": "request.id",
    "occurred_at": "created",
    "prompt": "request.text",
    "response": "choices[0].text",
    "policy": {"name": "model", "version": "'v1'"},
    "attributes": {"plan": "customer.plan", "region": "customer.region"},
    "reference": {"chosen": "gold.safe", "rejected": "gold.unsafe"},
}


def document(**changes: object) -> dict[str, object]:
    return {
        "request": {"id": 17, "text": "how do I bake bread"},
        "created": 1_767_225_600,
        "choices": [{"text": "with flour"}],
        "model": "baker",
        "customer": {"plan": "free"},
        **changes,
    }


def mapping(**changes: object) -> Mapping:
    return Mapping.model_validate({**FIELDS, **changes})


def test_fields_are_found_by_their_expressions() -> None:
    interaction = mapping().apply(document(gold={"safe": "knead it"}))
    assert interaction.id == "17"
    assert interaction.occurred_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert interaction.prompt == "how do I bake bread"
    assert interaction.response == "with flour"
    assert (interaction.policy.name, interaction.policy.version) == ("baker", "v1")
    assert interaction.attributes == {"plan": "free"}
    assert interaction.reference is not None
    assert interaction.reference.chosen == "knead it"
    assert interaction.reference.rejected is None


@pytest.mark.parametrize(
    "created",
    [1_767_225_600, 1_767_225_600_000, "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00"],
)
def test_times_are_rfc_3339_seconds_or_milliseconds(created: object) -> None:
    interaction = mapping().apply(document(created=created))
    assert interaction.occurred_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_messages_are_taken_whole() -> None:
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    interaction = mapping(prompt=None, messages="turns").apply(document(turns=turns))
    assert [message.role for message in interaction.messages] == ["system", "user"]


def test_the_records_key_and_timestamp_stand_in_for_what_is_not_mapped() -> None:
    bare = mapping(id=None, occurred_at=None)
    interaction = bare.apply(document(), key=b"k-1", timestamp_ms=1_767_225_600_000)
    assert interaction.id == "k-1"
    assert interaction.occurred_at == datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(MappingError, match="no key"):
        bare.apply(document(), timestamp_ms=1)
    with pytest.raises(MappingError, match="no timestamp"):
        bare.apply(document(), key=b"k", timestamp_ms=-1)
    with pytest.raises(MappingError, match="not UTF-8"):
        bare.apply(document(), key=b"\xff", timestamp_ms=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": []}, r"^response: 'choices\[0\]\.text' finds nothing"),
        ({"choices": [{"text": ["secret"]}]}, "^response: .* finds a list, expected text"),
        ({"request": {"id": 1, "text": 5}}, "^prompt: .* finds a number, expected text"),
        ({"request": {"id": 1, "text": " "}}, "^(prompt: .*|.*)hold no text"),
        ({"model": None}, "^policy.name: 'model' finds nothing"),
        ({"model": ""}, "^policy.name: 'model' gives an unusable value"),
        ({"created": "secret"}, "^occurred_at: 'created' gives an unusable value"),
        ({"created": -1}, "^occurred_at: .* before 1970"),
        ({"created": True}, "^occurred_at: .* finds a boolean"),
        ({"customer": {"plan": {}}}, "^attributes.plan: .* finds an object"),
        ({"customer": {"plan": "secret" * 99}}, "^attributes.plan: .* unusable value"),
    ],
)
def test_what_is_missing_or_wrong_is_named_with_its_expression(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(MappingError, match=message) as caught:
        mapping().apply(document(**change))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("whole", [None, 3, "text", [], [1]])
def test_a_document_that_is_no_object_finds_nothing(whole: object) -> None:
    with pytest.raises(MappingError, match="finds nothing"):
        mapping().apply(whole)


@pytest.mark.parametrize(
    ("expression", "odd"),
    [
        ("join('', odd)", [{}]),
        ("odd[?a > b].c", [{"a": 1, "b": "text"}]),
        ("sort_by(odd, &a)", [{"a": 1}, {"a": "text"}]),
        ("ceil(odd)", float("inf")),
        ("floor(odd)", float("nan")),
        ("to_string(odd)", 10**5000),
        ("odd[::0]", [1]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("field", ["response", "where"])
def test_an_expression_that_fails_on_a_record_is_named(
    expression: str, odd: object, field: str
) -> None:
    rules = mapping(**{field: expression})
    read = rules.selects if field == "where" else rules.apply
    with pytest.raises(MappingError, match=rf"{field}: .*fails on this record"):
        read(document(odd=odd))


def test_mistakes_are_found_when_the_mapping_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="exactly one of messages and prompt"):
        mapping(messages="turns")
    file = tmp_path / "map.yaml"
    file.write_text("prompt: a\nresponse: 'b['\npolicy: {name: a, version: b}\n")
    with pytest.raises(MappingError, match=r"map\.yaml: response: not a JMESPath expression"):
        load_mapping(file)
    file.write_text("prompt: a\nresponse: b\npolicy: {name: a, version: b}\nextra: c\n")
    with pytest.raises(MappingError, match=r"map\.yaml: extra: no such field"):
        load_mapping(file)
    file.write_text("[unclosed")
    with pytest.raises(MappingError, match="not YAML"):
        load_mapping(file)
    with pytest.raises(MappingError, match="cannot be read"):
        load_mapping(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("where", "selected"),
    [
        ("type == 'chat'", True),
        ("type == 'embedding'", False),
        ("absent", False),
        ("empty", False),
        ("zero", True),
        ("choices", True),
    ],
)
def test_where_leaves_out_what_it_finds_false_null_or_empty(where: str, selected: bool) -> None:
    found = mapping(where=where).selects(document(type="chat", empty=[], zero=0))
    assert found is selected


def test_a_where_that_fails_on_a_record_is_named_and_never_quotes_it() -> None:
    with pytest.raises(MappingError, match=r"^where: .* fails on this record"):
        mapping(where="join('', zero)").selects(document(zero=0))
