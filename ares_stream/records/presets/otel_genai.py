"""OpenTelemetry's GenAI conventions (opentelemetry.io/docs/specs/semconv/gen-ai), as OTLP in JSON
(a whole export, as the collector's Kafka and file exporters write it, or one span or log record).

Read are `gen_ai.input.messages`, `gen_ai.output.messages` and `gen_ai.system_instructions`, as
text of JSON or structured, of spans and of the event gen_ai.client.inference.operation.details;
of older instrumentations the events gen_ai.content.prompt and gen_ai.content.completion, and the
numbered attributes gen_ai.prompt.0.content. Each span that asks a model is a conversation for
each of its answers; spans of other kinds (tools, agents, HTTP) are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ares_stream.errors import MappingError
from ares_stream.records.presets.chat import (
    Conversation,
    Turn,
    choices,
    content,
    label,
    parsed,
    turn,
    turns,
)

_ASKS: Final = {"chat", "text_completion", "generate_content", "completion"}
_IN: Final = "gen_ai.input.messages"
_OUT: Final = "gen_ai.output.messages"
_SYSTEM: Final = "gen_ai.system_instructions"
_WHOLE: Final = re.compile(r"-?[0-9]{1,20}")
_MANY: Final = (
    "resourceSpans", "resource_spans", "scopeSpans", "scope_spans", "spans",
    "instrumentationLibrarySpans", "resourceLogs", "scopeLogs", "logRecords",
)  # fmt: skip


def conversations(document: Any) -> tuple[Conversation, ...]:
    """One per model call and answer. Raises MappingError naming the span."""
    spans = [(place, span, _attributes(span)) for place, span in _spans(document, "")]
    asking = [item for item in spans if _asks(item[2])]
    if not asking:
        raise MappingError(f"gen_ai.operation.name: none of {len(spans)} spans asks a model")
    return tuple(item for place, span, known in asking for item in _calls(span, known, place))


def _spans(document: Any, place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(document, list):
        for number, item in enumerate(document):
            yield from _spans(item, f"{place}[{number}]")
    elif isinstance(document, Mapping):
        inner = [name for name in _MANY if isinstance(document.get(name), list)]
        for name in inner:
            yield from _spans(document[name], f"{place}.{name}" if place else name)
        if not inner:
            yield place, document


def _attributes(span: Mapping[str, Any]) -> dict[str, Any]:
    """By name, values unpacked from OTLP's; the body of an event and older events fill in."""
    known = _named(span.get("attributes"))
    body = _value(span.get("body"))
    if isinstance(body, Mapping):
        known = {**body, **known}
    for event in _list(span.get("events")):
        if isinstance(event, Mapping):
            for name, value in _named(event.get("attributes")).items():
                known.setdefault(name, value)
    return known


def _named(attributes: Any) -> dict[str, Any]:
    if isinstance(attributes, Mapping):
        return dict(attributes)
    found: dict[str, Any] = {}
    for item in _list(attributes):
        if isinstance(item, Mapping) and isinstance(item.get("key"), str):
            found[item["key"]] = _value(item.get("value"))
    return found


def _value(value: Any) -> Any:
    """OTLP's AnyValue as plain JSON."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    [(kind, inner)] = value.items()
    if kind in ("arrayValue", "kvlistValue"):
        values = _list(inner.get("values") if isinstance(inner, Mapping) else None)
        return _named(values) if kind == "kvlistValue" else [_value(item) for item in values]
    if kind == "intValue":  # 64 bits, which JSON writes as text
        return int(inner) if isinstance(inner, str) and _WHOLE.fullmatch(inner) else inner
    if kind in ("stringValue", "boolValue", "doubleValue"):
        return inner
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _asks(known: Mapping[str, Any]) -> bool:
    operation = known.get("gen_ai.operation.name")
    if operation is not None:
        return isinstance(operation, str) and operation in _ASKS
    return any(name.startswith(("gen_ai.", "llm.")) for name in known) and (
        _OUT in known or "gen_ai.completion" in known or "gen_ai.completion.0.content" in known
    )


def _calls(span: Mapping[str, Any], known: Mapping[str, Any], place: str) -> Iterator[Conversation]:
    here = f"{place}: " if place else ""
    asked, answers = _said(known, here)
    model, answered_by, answer_id = (
        known[name] if isinstance(known.get(name), str) else None
        for name in ("gen_ai.request.model", "gen_ai.response.model", "gen_ai.response.id")
    )
    if model is None and answered_by is None:
        raise MappingError(f"{here}gen_ai.request.model: missing; it names the policy")
    trace, own = _ids(span)
    at = next(
        (
            span[name]
            for name in ("endTimeUnixNano", "end_time", "timeUnixNano", "startTimeUnixNano")
            if span.get(name)
        ),
        None,
    )
    for answer in answers:
        yield Conversation(
            "-".join(part for part in (trace, own) if part) or answer_id,
            at,
            asked,
            answer,
            model or str(answered_by),
            answered_by or str(model),
        )


def _ids(span: Mapping[str, Any]) -> tuple[str, str]:
    context = span.get("context")
    inner = context if isinstance(context, Mapping) else {}
    return (
        label(span, "traceId", "trace_id") or label(inner, "trace_id") or "",
        label(span, "spanId", "span_id") or label(inner, "span_id") or "",
    )


def _said(known: Mapping[str, Any], here: str) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    given, output = parsed(known.get(_IN)), parsed(known.get(_OUT))
    if given is not None and output is not None:
        system = parsed(known.get(_SYSTEM))
        before: tuple[Turn, ...] = ()
        if system is not None:
            before = (Turn("system", content(system, f"{here}{_SYSTEM}")[0]),)
        return before + turns(given, f"{here}{_IN}"), _outputs(output, f"{here}{_OUT}")
    prompt, completion = parsed(known.get("gen_ai.prompt")), parsed(known.get("gen_ai.completion"))
    if prompt is not None and completion is not None:
        return (
            turns(prompt, f"{here}gen_ai.prompt"),
            _outputs(completion, f"{here}gen_ai.completion"),
        )
    numbered = _numbered(known, "gen_ai.prompt"), _numbered(known, "gen_ai.completion")
    if all(numbered):
        return (
            turns(numbered[0], f"{here}gen_ai.prompt"),
            _outputs(numbered[1], f"{here}gen_ai.completion"),
        )
    raise MappingError(
        f"{here}{_IN if given is None else _OUT}: missing; let the instrumentation record content "
        "(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT)"
    )


def _outputs(value: Any, place: str) -> tuple[Turn, ...]:
    if isinstance(value, str):
        return (Turn("assistant", value),)
    items = value if isinstance(value, list) else [value]
    if items and all(isinstance(item, Mapping) and "message" in item for item in items):
        return choices(items, place)
    if not items:
        raise MappingError(f"{place}: is empty; there is no answer to score")
    return tuple(
        turn(
            item,
            f"{place}[{number}]",
            item.get("finish_reason") if isinstance(item, Mapping) else None,
            "assistant",
        )
        for number, item in enumerate(items)
    )


def _numbered(known: Mapping[str, Any], prefix: str) -> list[dict[str, Any]]:
    """gen_ai.prompt.0.role, gen_ai.prompt.0.content, gen_ai.prompt.1.role, ..."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in known.items():
        parts = name.removeprefix(prefix + ".").split(".")
        if name.startswith(prefix + ".") and len(parts) == 2 and _WHOLE.fullmatch(parts[0]):
            found.setdefault(int(parts[0]), {})[parts[1]] = parsed(value)
    return [found[number] for number in sorted(found)]
