"""Langfuse's observations: exported rows (camelCase of the API and the UI, snake_case of the blob
storage: langfuse.com/docs/api-and-data-platform/features/blob-storage-export-fields), a trace with
its observations, a page of the API, and a batch of ingestion events.

Each generation is a conversation; spans and events are not, and a record with none is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ares_stream.errors import MappingError
from ares_stream.records.presets.chat import (
    Conversation,
    Turn,
    choices,
    first,
    label,
    turn,
    turns,
)

_MANY: Final = ("observations", "data", "batch", "traces")


def conversations(document: Any) -> tuple[Conversation, ...]:
    """One per generation and answer. Raises MappingError naming the field."""
    rows = list(_rows(document, ""))
    found = [(place, row) for place, row in rows if _is_generation(row)]
    if not found:
        raise MappingError(
            f"type: none of {len(rows)} observations is a generation; filter the export, or skip"
        )
    return tuple(item for place, row in found for item in _conversations(row, place))


def _rows(document: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(document, list):
        for number, row in enumerate(document):
            yield from _rows(row, f"{place}[{number}]")
    elif isinstance(document, Mapping):
        for name in _MANY:
            if isinstance(document.get(name), list):
                yield from _rows(document[name], f"{place}.{name}" if place else name)
                return
        body = document.get("body")
        if isinstance(body, Mapping) and isinstance(document.get("type"), str):
            kind = "GENERATION" if document["type"].startswith("generation-") else document["type"]
            yield place, {**body, "type": kind}
            return
        yield place, document


def _is_generation(row: Mapping[str, Any]) -> bool:
    kind = row.get("type")
    if kind is None:
        return "input" in row and "output" in row
    return isinstance(kind, str) and kind.upper() == "GENERATION"


def _conversations(row: Mapping[str, Any], place: str) -> Iterator[Conversation]:
    def at(name: str) -> str:
        return f"{place}.{name}" if place else name

    given = first(row, "input")
    if isinstance(given, Mapping):
        given = first(given, "messages", "prompt", "input") or (
            given if "content" in given else None
        )
    asked = turns(given, at("input"))
    output = first(row, "output")
    if output is None:
        raise MappingError(f"{at('output')}: missing; there is no answer to score")
    model = label(row, "model", "provided_model_name", "providedModelName", "internal_model")
    if model is None:
        raise MappingError(f"{at('model')}: missing; it names the policy")
    for between, answer in _answers(output, at("output")):
        yield Conversation(
            label(row, "id"),
            first(row, "endTime", "end_time", "startTime", "start_time", "timestamp"),
            (*asked, *between),
            answer,
            model,
            label(row, "version") or model,
        )


def _answers(output: Any, place: str) -> list[tuple[tuple[Turn, ...], Turn]]:
    """(turns that came between, answer) each: choices stand side by side, messages of several
    roles follow on each other."""
    if isinstance(output, str):
        return [((), Turn("assistant", output))]
    found = first(output, "choices")
    if isinstance(found, list):
        return [((), answer) for answer in choices(found, f"{place}.choices")]
    if isinstance(output, Mapping):
        inner = first(output, "messages", "message", "output", "completion", "text")
        if inner is not None and "content" not in output:
            return _answers(inner, place)
        return [((), turn(output, place, output.get("finish_reason"), "assistant"))]
    if not isinstance(output, list) or not output:
        raise MappingError(f"{place}: expected text, a message or choices")
    said = tuple(
        turn(item, f"{place}[{number}]", None, "assistant") for number, item in enumerate(output)
    )
    if all(part.role == "assistant" for part in said):
        return [((), answer) for answer in said]
    if said[-1].role != "assistant":
        raise MappingError(f"{place}: its last message is no answer")
    return [(said[:-1], said[-1])]
