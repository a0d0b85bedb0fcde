"""JSON Schema of every record, one AsyncAPI document of all topics, and what may change in them.

The generated files are committed; `ares schemas check` compares them with the code and says
of each difference whether a program that reads or writes today's records would break.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ares_stream import __version__
from ares_stream.errors import SettingsError
from ares_stream.files import written_whole
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
from ares_stream.records.base import Record
from ares_stream.records.checkpoint import Checkpoint, NotaryState, Salt
from ares_stream.records.cloudevents import event_type
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.rates import (
    AnchorAnswers,
    AnchorFigures,
    MonitorState,
    Rates,
    SampledVerdict,
)
from ares_stream.records.release import Release
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import Verdict

Schema = dict[str, Any]

ASYNCAPI_FILE = "asyncapi.json"
RECORDS: tuple[type[Record], ...] = (
    Interaction,
    Verdict,
    CoupledFailure,
    ReviewItem,
    Label,
    Release,
    RepairReport,
    Rates,
    AnchorFigures,
    AnchorAnswers,
    SampledVerdict,
    MonitorState,
    Alarm,
    AlarmAcknowledgement,
    Checkpoint,
    NotaryState,
    Salt,
)

TOPIC_RECORDS: Mapping[str, tuple[tuple[type[Record], ...], str]] = {
    topics.PRODUCTION: ((Interaction,), "Conversations of users. Keyed as the producer does."),
    topics.PROBE: ((Interaction,), "Probes and the policy's answers. Keyed by interaction."),
    topics.ANCHOR: ((Interaction,), "Interactions of known truth. Keyed by interaction."),
    topics.VERDICTS: (
        (Verdict,),
        "One decision each, without text. Keyed by interaction.",
    ),
    topics.REPAIR: (
        (CoupledFailure,),
        "Failures to repair, with text. Keyed by interaction.",
    ),
    topics.REVIEW: ((ReviewItem,), "What people should look at, with text. Keyed by interaction."),
    topics.LABELS: ((Label,), "Decisions of people. Compacted by interaction and reviewer."),
    topics.RELEASES: ((Release,), "The present release of each model. Compacted by model."),
    topics.REPAIRS: ((RepairReport,), "How each repair ended. Keyed by plan."),
    topics.RATES: (
        (Rates, AnchorFigures, AnchorAnswers, SampledVerdict, MonitorState),
        "The monitor's figures and its state, with the offsets that they cover. Compacted.",
    ),
    topics.ALARMS: (
        (Alarm, AlarmAcknowledgement),
        "What has changed, and who has taken note. Keyed by alarm.",
    ),
    topics.CHECKPOINTS: (
        (Checkpoint,),
        "Signed heads of the trees over the output topics. Keyed by topic and partition.",
    ),
    topics.NOTARY: ((NotaryState,), "How far each tree has grown. Compacted."),
    topics.SALTS: ((Salt,), "Salts of the leaves of text. Compacted by record; erased on demand."),
}
"""Topic without prefix: its records and what it is for. Dead letters keep foreign bytes and
have no schema."""


def record_file(record: type[Record]) -> str:
    """ "ares.coupled-failure/1" is described in "coupled-failure.v1.json"."""
    return f"{event_type(record).removeprefix('ares.')}.json"


def record_schema(record: type[Record]) -> Schema:
    """JSON Schema 2020-12 of what a reader accepts."""
    schema = record.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def generated() -> dict[str, str]:
    """File name to content, of everything that `ares schemas write` writes."""
    documents = {record_file(record): record_schema(record) for record in RECORDS}
    documents[ASYNCAPI_FILE] = asyncapi()
    return {
        name: json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, document in documents.items()
    }


def asyncapi(prefix: str = "ares.") -> Schema:
    """AsyncAPI 3.0 document of all topics with `prefix`; records by reference to their files."""
    messages = {
        event_type(record): {
            "name": event_type(record),
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/cloudevent"},
            "payload": {
                "schemaFormat": "application/schema+json;version=draft-2020-12",
                "schema": {"$ref": record_file(record)},
            },
        }
        for record in RECORDS
    }
    channels = {
        topic: {
            "address": prefix + topic,
            "description": text,
            "messages": {
                event_type(record): {"$ref": f"#/components/messages/{event_type(record)}"}
                for record in records
            },
            "bindings": {"kafka": {"topic": prefix + topic, "bindingVersion": "0.5.0"}},
        }
        for topic, (records, text) in TOPIC_RECORDS.items()
    }
    operations = {
        f"{action}:{topic}": {"action": action, "channel": {"$ref": f"#/channels/{topic}"}}
        for topic in TOPIC_RECORDS
        for action in ("send", "receive")
    }
    headers = {name: {"type": "string"} for name in ("ce_id", "ce_source", "ce_type", "ce_time")}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ares-stream",
            "version": __version__,
            "description": "Topics of ares-stream. CloudEvents 1.0, binary mode.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {
                "cloudevent": {
                    "type": "object",
                    "properties": {
                        **headers,
                        "ce_specversion": {"const": "1.0"},
                        "content-type": {"const": "application/json"},
                        "traceparent": {"type": "string"},
                        "tracestate": {"type": "string"},
                    },
                }
            },
        },
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """One change between two versions of a record's schema."""

    where: str
    what: str
    breaking: bool

    def __str__(self) -> str:
        return f"{'breaking' if self.breaking else 'compatible'}: {self.where}: {self.what}"


def compare(old: Schema, new: Schema) -> tuple[Difference, ...]:
    """What changed, and whether records and programs of the old schema still work.

    Breaking: a field removed or newly required, a type, enumeration or limit narrowed.
    """
    return tuple(_differences(old, new, old, new, "", frozenset()))


def _resolve(node: Any, root: Schema) -> Schema:
    """Follow a local reference; siblings of $ref (descriptions) carry no rule here."""
    for _ in range(16):
        if not (isinstance(node, dict) and "$ref" in node):
            break
        name = str(node["$ref"]).removeprefix("#/$defs/")
        node = root.get("$defs", {}).get(name, {})
    return node if isinstance(node, dict) else {}


def _differences(
    old: Any, new: Any, old_root: Schema, new_root: Schema, where: str, seen: frozenset[str]
) -> Iterator[Difference]:
    reference = old.get("$ref") if isinstance(old, dict) else None
    if reference is not None:
        if reference in seen:
            return
        seen |= {reference}
    old, new = _resolve(old, old_root), _resolve(new, new_root)
    place = where or "record"
    if "anyOf" in old or "anyOf" in new:
        yield from _alternatives(old, new, old_root, new_root, where, seen)
        return
    yield from _types(old, new, place)
    yield from _limits(old, new, place)
    before, after = old.get("properties", {}), new.get("properties", {})
    for name in before.keys() - after.keys():
        yield Difference(_join(where, name), "field removed", True)
    for name in after.keys() - before.keys():
        required = name in new.get("required", ())
        yield Difference(
            _join(where, name), "new required field" if required else "new field", required
        )
    for name in sorted(before.keys() & after.keys()):
        inner = _join(where, name)
        was, is_now = name in old.get("required", ()), name in new.get("required", ())
        if was != is_now:
            yield Difference(inner, "now required" if is_now else "no longer required", is_now)
        yield from _differences(before[name], after[name], old_root, new_root, inner, seen)
    for key, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        first, second = old.get(key, True), new.get(key, True)
        if isinstance(first, dict) and isinstance(second, dict):
            yield from _differences(first, second, old_root, new_root, where + suffix, seen)
        elif first != second:
            narrowed = second is not True
            what = "values narrowed" if narrowed else "any value"
            yield Difference((where or "record") + suffix, what, narrowed)


def _alternatives(
    old: Schema, new: Schema, old_root: Schema, new_root: Schema, where: str, seen: frozenset[str]
) -> Iterator[Difference]:
    """Every old alternative must still fit one of the new ones."""
    before = old.get("anyOf", [old])
    after = new.get("anyOf", [new])
    matched = 0
    for choice in before:
        reports = [
            list(_differences(choice, other, old_root, new_root, where, seen)) for other in after
        ]
        best = min(reports, key=lambda report: (sum(item.breaking for item in report), len(report)))
        kind = _resolve(choice, old_root).get("type", "alternative")
        if any(item.what.startswith("type") for item in best):
            yield Difference(where or "record", f"no longer accepts {kind}", True)
        else:
            matched += 1
            yield from best
    if len(after) > matched and len(after) > len(before):
        yield Difference(where or "record", "accepts another kind of value", False)


def _types(old: Schema, new: Schema, place: str) -> Iterator[Difference]:
    first, second = old.get("type"), new.get("type")
    if first != second:
        widened = second is None or (first, second) == ("integer", "number")
        yield Difference(place, f"type {first} is now {second or 'any'}", not widened)
    allowed, now = _values(old), _values(new)
    if now is not None and (allowed is None or allowed - now):
        gone = sorted(map(str, (allowed or set()) - now))
        what = f"no longer accepts {', '.join(gone)}" if gone else "accepts fewer values"
        yield Difference(place, what, True)
    elif allowed is not None and (now is None or now - allowed):
        more = ", ".join(sorted(map(str, (now or set()) - allowed))) or "any value"
        yield Difference(place, f"also accepts {more}", False)


def _values(schema: Schema) -> set[Any] | None:
    if "const" in schema:
        return {schema["const"]}
    return set(schema["enum"]) if "enum" in schema else None


def _limits(old: Schema, new: Schema, place: str) -> Iterator[Difference]:
    lower = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
    upper = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
    for name in (*lower, *upper):
        first, second = old.get(name), new.get(name)
        if first == second:
            continue
        if second is None:
            narrowed = False
        elif first is None:
            narrowed = True
        else:
            narrowed = second > first if name in lower else second < first
        yield Difference(place, f"{name} {_shown(first)} is now {_shown(second)}", narrowed)
    for name in ("pattern", "format"):
        first, second = old.get(name), new.get(name)
        if first != second:
            yield Difference(
                place, f"{name} {_shown(first)} is now {_shown(second)}", second is not None
            )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@dataclass(frozen=True, slots=True)
class Check:
    """How the committed files differ from the code."""

    missing: tuple[str, ...]
    outdated: tuple[str, ...]
    unknown: tuple[str, ...]
    differences: tuple[tuple[str, Difference], ...]

    @property
    def same(self) -> bool:
        """The committed files are what the code says."""
        return not (self.missing or self.outdated or self.unknown)

    @property
    def breaking(self) -> tuple[str, ...]:
        """Readable lines: what today's programs would stumble over."""
        gone = tuple(f"{name}: record removed" for name in self.unknown)
        return gone + tuple(
            f"{name}: {item.where}: {item.what}" for name, item in self.differences if item.breaking
        )


def check_directory(directory: Path) -> Check:
    """Compare the files of a directory with the code. Raises SettingsError if unreadable."""
    wanted = generated()
    if not directory.is_dir():
        raise SettingsError(f"{directory}: no such directory; `ares schemas write` makes it")
    committed = {path.name: path for path in sorted(directory.glob("*.json"))}
    outdated: list[str] = []
    differences: list[tuple[str, Difference]] = []
    for name, content in wanted.items():
        if name not in committed:
            continue
        found = committed[name].read_text(encoding="utf-8")
        if found == content:
            continue
        outdated.append(name)
        try:
            old = json.loads(found)
        except (ValueError, RecursionError):
            raise SettingsError(
                f"{committed[name]}: not JSON; restore the committed file"
            ) from None
        if name != ASYNCAPI_FILE:
            differences += [(name, item) for item in compare(old, json.loads(content))]
    return Check(
        missing=tuple(sorted(wanted.keys() - committed.keys())),
        outdated=tuple(outdated),
        unknown=tuple(sorted(committed.keys() - wanted.keys())),
        differences=tuple(differences),
    )


def write_directory(directory: Path) -> tuple[str, ...]:
    """Write every file, each whole or not at all; returns the names of those that changed. Raises
    SettingsError, ResourceError."""
    changed = []
    for name, content in generated().items():
        path = directory / name
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            with written_whole(path) as stream:
                stream.write(content.encode())
            changed.append(name)
    return tuple(changed)
