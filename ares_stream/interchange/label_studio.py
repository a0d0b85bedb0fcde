"""The review queue as Label Studio's tasks, and its annotations as labels.

Tasks are Label Studio's JSON (https://labelstud.io/guide/tasks), results its JSON export
(https://labelstud.io/guide/task_format); CONFIG is the project's labelling interface. A task shows
the conversation and nothing of what the models said: who sees an opinion has none of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ares_stream.errors import DecodeError, InputError
from ares_stream.files import fault, parse_json
from ares_stream.records.base import Identifier, Instant, digest
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import Label, ReviewItem

MAX_BYTES: Final = 512 << 20
DECISION: Final = "decision"
REASON: Final = "reason"
HARMFUL: Final = "harmful"
SAFE: Final = "safe"
MAX_REASON: Final = 2000
CONFIG: Final = f"""\
<View>
  <Style>.htx-text {{ white-space: pre-wrap; }}</Style>
  <Header value="Conversation"/>
  <Paragraphs name="conversation" value="$conversation" layout="dialogue"
              nameKey="role" textKey="content"/>
  <Header value="Is the last answer harmful?"/>
  <Choices name="{DECISION}" toName="conversation" choice="single-radio" required="true"
           showInline="true">
    <Choice value="{HARMFUL}" hotkey="h"/>
    <Choice value="{SAFE}" hotkey="s"/>
  </Choices>
  <Header value="Why"/>
  <TextArea name="{REASON}" toName="conversation" rows="2" maxSubmissions="1"/>
</View>
"""


def as_task(item: ReviewItem) -> dict[str, Any]:
    """One task. `content` names the text, so that a changed one is seen when it comes back."""
    interaction = item.interaction
    turns = _turns(interaction)
    return {
        "data": {
            "conversation": turns,
            "ares": {
                "interaction_id": interaction.id,
                "verdict_id": item.verdict.id,
                "content": digest(turns),
            },
        }
    }


def _turns(interaction: Interaction) -> list[dict[str, str]]:
    turns = [{"role": turn.role, "content": turn.content} for turn in interaction.messages]
    return [*turns, {"role": "assistant", "content": interaction.response}]


@dataclass(frozen=True, slots=True)
class Passed:
    """An annotation, or a task, that is no label, and why."""

    place: str
    reason: str


@dataclass(slots=True)
class Export:
    """What an export holds."""

    labels: list[Label] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)


class _Part(BaseModel):
    """Label Studio writes more than is read here."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Source(_Part):
    interaction_id: Identifier
    verdict_id: Identifier
    content: str


class _Region(_Part):
    from_name: str = ""
    type: str = ""
    value: dict[str, Any] = Field(default_factory=dict)


class _Person(_Part):
    id: int
    email: str | None = None


class _Annotation(_Part):
    result: tuple[_Region, ...] | None = None
    was_cancelled: bool | None = None
    completed_by: int | _Person | None = None
    created_at: Instant | None = None
    updated_at: Instant | None = None


class _Task(_Part):
    data: dict[str, Any]
    annotations: tuple[dict[str, Any], ...]


def read_annotations(
    file: Path,
    known: Mapping[str, Collection[str]],
    reviewers: Mapping[str, str] | None = None,
) -> Export:
    """Labels of a JSON export. `known` maps the ids of interactions on the review topic to the
    verdicts that asked for them; `reviewers` maps a Label Studio user's e-mail or number to the
    name that the labels are to bear.

    A task that is not of this queue, or that was changed, and an annotation that was skipped or is
    none of this interface are passed with the reason; their neighbours count. Raises InputError
    naming the file and the task's place for what is no JSON export.
    """
    with file.open("rb") as stream:
        raw_document = stream.read(MAX_BYTES + 1)
    if len(raw_document) > MAX_BYTES:
        raise InputError(f"{file}: larger than {MAX_BYTES:,} bytes; export in parts")
    try:
        document = parse_json(raw_document)
    except DecodeError as error:
        raise InputError(f"{file}: {error}; export from Label Studio as JSON") from None
    if not isinstance(document, list):
        raise InputError(f"{file}: expected a list of tasks; export from Label Studio as JSON")
    found = Export()
    for number, raw in enumerate(document, start=1):
        place = f"task {number}"
        try:
            task = _Task.model_validate(raw)
        except ValidationError as error:
            raise InputError(
                f"{file}: {place}: {fault(error, _Task)}; export from Label Studio as JSON, not "
                "JSON-MIN"
            ) from None
        _take(task, place, known, reviewers or {}, found)
    return found


def _take(
    task: _Task,
    place: str,
    known: Mapping[str, Collection[str]],
    reviewers: Mapping[str, str],
    found: Export,
) -> None:
    try:
        source = _Source.model_validate(task.data.get("ares"))
    except ValidationError:
        found.passed.append(Passed(place, "is no task of `ares review export`"))
        return
    if source.verdict_id not in known.get(source.interaction_id, ()):
        found.passed.append(Passed(place, "is not of this queue"))
        return
    if digest(task.data.get("conversation", [])) != source.content:
        found.passed.append(Passed(place, "its text was changed since it was exported"))
        return
    for number, raw in enumerate(task.annotations, start=1):
        here = f"{place}, annotation {number}"
        try:
            label = _label(_Annotation.model_validate(raw), source, reviewers)
        except ValidationError as error:
            label = f"cannot be read: {fault(error, _Annotation)}"
        if isinstance(label, Label):
            found.labels.append(label)
        else:
            found.passed.append(Passed(here, label))


def _label(annotation: _Annotation, source: _Source, reviewers: Mapping[str, str]) -> Label | str:
    """The label, or why there is none."""
    if annotation.was_cancelled:
        return "was skipped"
    decisions = [
        choice
        for region in annotation.result or ()
        if region.from_name == DECISION
        for choice in _strings(region.value.get("choices"))
    ]
    if len(decisions) != 1 or decisions[0] not in (HARMFUL, SAFE):
        return f"decides {len(decisions)} times; expected once {HARMFUL} or {SAFE}"
    at = annotation.updated_at or annotation.created_at
    who = annotation.completed_by
    if at is None or who is None:
        return "says not who decided, or when"
    return Label(
        interaction_id=source.interaction_id,
        verdict_id=source.verdict_id,
        harmful=decisions[0] == HARMFUL,
        reviewer=_name(who, reviewers),
        decided_at=at,
        reason=_reason(annotation.result or ())[:MAX_REASON],
    )


def _name(who: int | _Person, reviewers: Mapping[str, str]) -> str:
    names = [str(who)] if isinstance(who, int) else [who.email or "", str(who.id)]
    for name in names:
        if name in reviewers:
            return reviewers[name]
    return next((name for name in names if "@" in name), f"label-studio-{names[-1]}")


def _reason(regions: Sequence[_Region]) -> str:
    said = (region for region in regions if region.from_name == REASON)
    return " ".join(text for region in said for text in _strings(region.value.get("text")))


def _strings(value: Any) -> list[str]:
    """Label Studio writes one value alone or a list of them."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def newer(labels: Iterable[Label], present: Mapping[bytes, datetime]) -> list[Label]:
    """One label for each reviewer's opinion, the latest, where the topic has none as late: so that
    a second import of one export publishes nothing. `present` maps keys to times."""
    latest: dict[bytes, Label] = {}
    for label in labels:
        known = latest.get(label.key)
        if known is None or known.decided_at < label.decided_at:
            latest[label.key] = label
    return [
        label
        for key, label in latest.items()
        if key not in present or present[key] < label.decided_at
    ]
