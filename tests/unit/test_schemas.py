"""Schemas: generated from the records, committed, and compatible with what they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.records import topics
from ares_stream.records.interaction import Interaction
from ares_stream.records.schemas import (
    ASYNCAPI_FILE,
    RECORDS,
    TOPIC_RECORDS,
    asyncapi,
    check_directory,
    compare,
    generated,
    record_file,
    record_schema,
    write_directory,
)
from ares_stream.records.verdict import Verdict

COMMITTED = Path(__file__).parents[2] / "docs" / "schemas"


def test_what_is_committed_is_what_the_code_says() -> None:
    assert check_directory(COMMITTED).same


def test_a_record_that_is_written_is_valid_under_its_schema() -> None:
    record = {
        "schema": "ares.interaction/1",
        "id": "a",
        "occurred_at": "2026-01-01T00:00:00Z",
        "messages": [{"role": "user", "content": "hello"}],
        "response": "hi",
        "policy": {"name": "p", "version": "1"},
        "probe": {
            "id": "x",
            "campaign": "c",
            "generation": 0,
            "components": {"topic": "t"},
            "sampling_probability": 0.5,
        },
    }
    written = json.loads(Interaction.decode(json.dumps(record).encode()).encode())
    validator = jsonschema.Draft202012Validator(record_schema(Interaction))
    validator.validate(written)
    assert not validator.is_valid({**record, "messages": []})
    assert not validator.is_valid({**record, "schema": "ares.interaction/2"})


def test_every_topic_but_dead_letters_has_a_record() -> None:
    names = {spec.name for spec in topics.specs(prefix="")}
    assert names - set(TOPIC_RECORDS) == {topics.DEADLETTERS}
    assert {record for records, _ in TOPIC_RECORDS.values() for record in records} == set(RECORDS)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi("team.")
    files = generated()

    def follow(node: Any) -> None:
        if isinstance(node, dict):
            target = node.get("$ref")
            if isinstance(target, str) and target.startswith("#/"):
                place: Any = document
                for part in target[2:].split("/"):
                    place = place[part]
            elif isinstance(target, str):
                assert target in files
            for child in node.values():
                follow(child)

    follow(document)
    assert document["asyncapi"] == "3.0.0"
    assert document["channels"]["verdicts"]["address"] == "team.verdicts"


def change_nothing(schema: dict[str, Any]) -> None:
    return


def remove_field(schema: dict[str, Any]) -> None:
    del schema["$defs"]["Harm"]["properties"]["disagreement"]


def require_field(schema: dict[str, Any]) -> None:
    schema["properties"]["region"] = {"type": "string"}
    schema["required"].append("region")


def require_old_field(schema: dict[str, Any]) -> None:
    schema["required"].append("probe")


def narrow_type(schema: dict[str, Any]) -> None:
    schema["$defs"]["Harm"]["properties"]["probability"]["type"] = "integer"


def narrow_enumeration(schema: dict[str, Any]) -> None:
    schema["$defs"]["FailureClass"]["enum"].remove("contested")


def close_enumeration(schema: dict[str, Any]) -> None:
    schema["properties"]["interaction_id"]["enum"] = ["a"]


def narrow_limit(schema: dict[str, Any]) -> None:
    schema["properties"]["interaction_id"]["maxLength"] = 8


def narrow_pattern(schema: dict[str, Any]) -> None:
    schema["properties"]["interaction_id"]["pattern"] = "^x"


def refuse_null(schema: dict[str, Any]) -> None:
    probe = schema["properties"]["probe"]
    probe.update(probe.pop("anyOf")[0])


def close_record(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = False


def narrow_items(schema: dict[str, Any]) -> None:
    schema["properties"]["reasons"]["items"]["maxLength"] = 3


def change_version(schema: dict[str, Any]) -> None:
    schema["properties"]["schema"]["const"] = "ares.verdict/2"


BREAKING: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (remove_field, "harm.disagreement: field removed"),
    (require_field, "region: new required field"),
    (require_old_field, "probe: now required"),
    (narrow_type, "harm.probability: type number is now integer"),
    (narrow_enumeration, "failure_class: no longer accepts contested"),
    (close_enumeration, "interaction_id: accepts fewer values"),
    (narrow_limit, "interaction_id: maxLength 256 is now 8"),
    (narrow_pattern, "interaction_id: pattern none is now ^x"),
    (refuse_null, "probe: no longer accepts null"),
    (close_record, "record{}: values narrowed"),
    (narrow_items, "reasons[]: maxLength none is now 3"),
    (change_version, "schema: no longer accepts ares.verdict/1"),
]


@pytest.mark.parametrize(("change", "reason"), BREAKING)
def test_a_breaking_change_is_named_and_its_reverse_of_a_limit_is_not(
    change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    old = record_schema(Verdict)
    new = copy.deepcopy(old)
    change(new)
    found = compare(old, new)
    assert f"breaking: {reason}" in [str(item) for item in found]


@pytest.mark.parametrize(
    "change",
    [narrow_enumeration, close_enumeration, narrow_limit, refuse_null, close_record, narrow_items],
)
def test_widening_is_compatible(change: Callable[[dict[str, Any]], None]) -> None:
    new = record_schema(Verdict)
    old = copy.deepcopy(new)
    change(old)
    found = compare(old, new)
    assert found
    assert not [str(item) for item in found if item.breaking]


def test_a_new_optional_field_is_compatible() -> None:
    old = record_schema(Verdict)
    new = copy.deepcopy(old)
    new["properties"]["region"] = {"type": "string"}
    assert [str(item) for item in compare(old, new)] == ["compatible: region: new field"]
    assert compare(old, old) == ()


def test_write_then_check_and_a_breaking_change_is_not_written_over(tmp_path: Path) -> None:
    run = CliRunner()
    assert run.invoke(app, ["schemas", "write", str(tmp_path)]).exit_code == 0
    assert run.invoke(app, ["schemas", "check", str(tmp_path)]).exit_code == 0
    assert write_directory(tmp_path) == ()

    file = tmp_path / record_file(Verdict)
    old = json.loads(file.read_text())
    old["properties"]["region"] = {"type": "string"}
    file.write_text(json.dumps(old))
    (tmp_path / ASYNCAPI_FILE).unlink()
    checked = run.invoke(app, ["schemas", "check", str(tmp_path)])
    assert checked.exit_code == 1
    assert "asyncapi.json: missing" in checked.stderr
    assert "verdict.v1.json: breaking: region: field removed" in checked.stderr
    refused = run.invoke(app, ["schemas", "write", str(tmp_path)])
    assert refused.exit_code == 1
    assert "raise the record's schema version" in refused.stderr
    allowed = run.invoke(app, ["schemas", "write", str(tmp_path), "--allow-breaking"])
    assert allowed.exit_code == 0
    assert check_directory(tmp_path).same
