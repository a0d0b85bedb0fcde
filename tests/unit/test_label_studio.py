"""Label Studio's tasks hold no opinion of a model; its annotations become labels or say why not."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from ares_stream.errors import InputError
from ares_stream.interchange.label_studio import CONFIG, as_task, newer, read_annotations
from ares_stream.records.label import Label, ReviewItem
from tests.support.forecasts import asked
from tests.support.verdicts import NOON, verdict


def item(number: int) -> ReviewItem:
    said = verdict(number)
    return ReviewItem(
        cause="sampled",
        sampling_probability=0.5,
        verdict=said,
        interaction=asked(number, f"<b>answer</b> {number}"),
    )


KNOWN = {f"interaction-{number}": {verdict(number).id} for number in range(5)}


def annotation(*choices: str, **changed: Any) -> dict[str, Any]:
    """As Label Studio writes one, with more fields than are read."""
    regions = [
        {"id": "r1", "from_name": "decision", "to_name": "conversation", "type": "choices",
         "origin": "manual", "value": {"choices": list(choices)}},
        {"id": "r2", "from_name": "reason", "to_name": "conversation", "type": "textarea",
         "value": {"text": ["gives usable help"]}},
    ]  # fmt: skip
    return {
        "id": 17,
        "result": regions,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-11-02T10:00:00.000000Z",
        "updated_at": "2026-11-02T10:05:00.123456Z",
        "lead_time": 4.2,
        "completed_by": 7,
    } | changed


def exported(file: Path, *rows: tuple[int, list[dict[str, Any]]]) -> Path:
    tasks = [as_task(item(number)) | {"id": number, "annotations": a} for number, a in rows]
    file.write_text(json.dumps(tasks))
    return file


def test_a_task_shows_the_conversation_and_no_opinion() -> None:
    data = as_task(item(3))["data"]
    assert data["conversation"] == [
        {"role": "user", "content": "question 3"},
        {"role": "assistant", "content": "<b>answer</b> 3"},
    ]
    assert set(data["ares"]) == {"interaction_id", "verdict_id", "content"}
    assert "predictions" not in as_task(item(3))


def test_the_interface_reads_what_the_tasks_hold_and_names_what_is_read_back() -> None:
    root = ElementTree.fromstring(CONFIG)  # noqa: S314 - our own text
    variables = set(re.findall(r'"\$(\w+)"', CONFIG))
    assert variables <= set(as_task(item(0))["data"])
    names = {node.get("name"): node for node in root.iter() if node.get("name")}
    assert {node.get("toName") for node in root.iter() if node.get("toName")} <= set(names)
    assert [node.get("value") for node in root.iter("Choice")] == ["harmful", "safe"]
    assert names["conversation"].get("textKey") in as_task(item(0))["data"]["conversation"][0]


def test_an_annotation_becomes_a_label_with_who_when_and_why(tmp_path: Path) -> None:
    file = exported(tmp_path / "e.json", (1, [annotation("harmful")]), (2, [annotation("safe")]))
    found = read_annotations(file, KNOWN)
    assert found.passed == []
    assert found.labels == [
        Label(
            interaction_id=f"interaction-{number}",
            verdict_id=verdict(number).id,
            harmful=number == 1,
            reviewer="label-studio-7",
            decided_at=datetime(2026, 11, 2, 10, 5, 0, 123456, tzinfo=UTC),
            reason="gives usable help",
        )
        for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("who", "name"),
    [
        (7, "ada"),
        (9, "label-studio-9"),
        ({"id": 9, "email": "bob@example.com", "first_name": "B"}, "bob@example.com"),
        ({"id": 9, "email": "ann@example.com"}, "ann"),
        ({"id": 7, "email": ""}, "ada"),
    ],
)
def test_a_reviewer_is_called_as_the_console_calls_them(
    tmp_path: Path, who: object, name: str
) -> None:
    file = exported(tmp_path / "e.json", (1, [annotation("safe", completed_by=who)]))
    found = read_annotations(file, KNOWN, {"7": "ada", "ann@example.com": "ann"})
    assert [label.reviewer for label in found.labels] == [name]


def test_two_opinions_of_one_task_are_two_labels(tmp_path: Path) -> None:
    file = exported(
        tmp_path / "e.json", (1, [annotation("safe"), annotation("harmful", completed_by=8)])
    )
    assert len({label.key for label in read_annotations(file, KNOWN).labels}) == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((1, [annotation("safe", was_cancelled=True)]), "was skipped"),
        ((1, [annotation()]), "decides 0 times"),
        ((1, [annotation("safe", "harmful")]), "decides 2 times"),
        ((1, [annotation("unsure")]), "decides 1 times; expected once harmful or safe"),
        ((1, [annotation("safe", completed_by=None)]), "says not who decided, or when"),
        ((1, [annotation("safe", created_at=None, updated_at=None)]), "says not who decided"),
        ((1, [annotation("safe", result=None)]), "decides 0 times"),
        ((1, [annotation("safe", result="safe")]), "cannot be read: result"),
        ((1, [annotation("safe", completed_by={"email": "x"})]), "cannot be read: completed_by"),
        ((1, [annotation("safe", updated_at="yesterday")]), "cannot be read: updated_at"),
        (
            (1, [annotation("safe", completed_by={"id": 7, "email": "a" * 300 + "@b"})]),
            "cannot be read: reviewer",
        ),
        ((99, [annotation("safe")]), "is not of this queue"),
    ],
)
def test_what_is_no_decision_is_passed_with_its_place_and_its_neighbours_count(
    tmp_path: Path, row: tuple[int, list[dict[str, Any]]], reason: str
) -> None:
    found = read_annotations(exported(tmp_path / "e.json", row, (2, [annotation("safe")])), KNOWN)
    assert [label.interaction_id for label in found.labels] == ["interaction-2"]
    (passed,) = found.passed
    assert passed.place.startswith("task 1")
    assert passed.reason.startswith(reason)


def test_a_task_whose_text_was_changed_labels_nothing(tmp_path: Path) -> None:
    file = exported(tmp_path / "e.json", (1, [annotation("safe")]))
    file.write_text(file.read_text().replace("answer", "another answer"))
    found = read_annotations(file, KNOWN)
    assert found.labels == []
    assert found.passed[0].reason == "its text was changed since it was exported"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"conversation": [{"role": "user", "content": None}]}, "its text was changed"),
        ({"conversation": "x"}, "its text was changed"),
        ({"conversation": None}, "its text was changed"),
        ({"ares": {}}, "is no task of"),
        ({"ares": None}, "is no task of"),
        ({"ares": {"interaction_id": "", "verdict_id": "v", "content": "c"}}, "is no task of"),
    ],
)
def test_a_task_of_somebody_elses_or_one_that_was_bent_costs_its_neighbours_nothing(
    tmp_path: Path, changed: dict[str, Any], reason: str
) -> None:
    file = exported(tmp_path / "e.json", (1, [annotation("safe")]), (2, [annotation("safe")]))
    tasks = json.loads(file.read_text())
    tasks[0]["data"] |= changed
    file.write_text(json.dumps([*tasks, {"id": 9, "data": {"text": "mine"}, "annotations": []}]))
    found = read_annotations(file, KNOWN)
    assert [label.interaction_id for label in found.labels] == ["interaction-2"]
    assert [item.place for item in found.passed] == ["task 1", "task 3"]
    assert found.passed[0].reason.startswith(reason)


def test_an_earlier_verdict_on_an_interaction_is_of_this_queue_too(tmp_path: Path) -> None:
    file = exported(tmp_path / "e.json", (1, [annotation("safe")]))
    known = {"interaction-1": {verdict(1).id, "a later one"}}
    assert len(read_annotations(file, known).labels) == 1


def test_what_label_studio_writes_beside_an_annotation_changes_nothing(tmp_path: Path) -> None:
    """The fields that version 1.23.2 exports: a draft and a prediction are nobody's decision, and
    a relation between regions is none."""
    more: dict[str, Any] = {
        "draft_created_at": None, "lead_time": None, "prediction": {}, "result_count": 2,
        "unique_id": "2eed684b-2a03-4a08-a525-802511ef7b5c", "import_id": None,
        "last_action": None, "bulk_created": False, "task": 20, "project": 2, "updated_by": 3,
        "parent_prediction": None, "parent_annotation": None, "last_created_by": None,
    }  # fmt: skip
    said = annotation("harmful", **more)
    said["result"].append(
        {"type": "relation", "from_id": "r1", "to_id": "r2", "direction": "right"}
    )
    file = exported(tmp_path / "e.json", (1, [said]), (2, []))
    tasks = json.loads(file.read_text())
    for task in tasks:
        task |= {
            "drafts": [{"id": 2, "user": "ann@example.com", "result": said["result"]}],
            "predictions": [2], "meta": {}, "inner_id": 2, "total_annotations": 1,
            "cancelled_annotations": 0, "comment_count": 1, "comment_authors": [3],
        }  # fmt: skip
    file.write_text(json.dumps(tasks))
    found = read_annotations(file, KNOWN)
    assert found.passed == []
    assert [(item.interaction_id, item.harmful) for item in found.labels] == [
        ("interaction-1", True)
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "expected a list of tasks"),
        ("[", "JSON"),
        ('[{"id": 1, "decision": "safe", "annotator": 7}]', "task 1: data"),
        ('[{"data": {"text": "other project"}}]', "task 1: annotations"),
        ('[{"data": [], "annotations": []}]', "task 1: data"),
        ("id,decision\n1,safe", "e.json: not JSON"),
        ("PK\x03\x04", "e.json: not JSON"),
    ],
)
def test_a_file_of_another_form_is_refused_and_quotes_nothing(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "e.json"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        read_annotations(file, KNOWN)
    assert said in str(error.value)
    assert "other project" not in str(error.value)
    assert "\n" not in str(error.value)


def test_only_the_latest_opinion_of_each_reviewer_is_published_and_only_once() -> None:
    def label(reviewer: str, minute: int, harmful: bool) -> Label:
        return Label(
            interaction_id="a",
            harmful=harmful,
            reviewer=reviewer,
            decided_at=NOON + timedelta(minutes=minute),
        )

    said = [label("ada", 5, True), label("ada", 3, False), label("bob", 1, False)]
    assert newer(said, {}) == [said[0], said[2]]
    assert newer(said, {said[0].key: NOON + timedelta(minutes=5)}) == [said[2]]
    # What Ada decided in the console since stays.
    assert newer(said[:1], {said[0].key: NOON + timedelta(minutes=9)}) == []
