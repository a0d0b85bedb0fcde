"""Anthropic's Messages API (docs.anthropic.com/en/api/messages): request and response side by
side, under `request` and `response` (each may stand in a `body`), or in one object with
`messages` and the answer's `content`; a message batch's requests joined to their results by
custom_id (`params` and `result`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ares_stream.errors import MappingError
from ares_stream.records.presets.chat import (
    Conversation,
    Turn,
    content,
    first,
    label,
    turn,
    turns,
)

_FINISH: Final[Mapping[str, str]] = {
    "end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "tool_use": "tool_calls",
    "refusal": "content_filter",
}  # fmt: skip
"""Why it stopped → in the words of the other presets; any other reason is kept as it is."""


def conversations(document: Any) -> tuple[Conversation, ...]:
    """Raises MappingError naming the field."""
    request = first(document, "request.body", "request.params", "request", "params") or document
    response = first(document, "response.body", "response", "result.message", "result") or document
    if label(response, "type") not in (None, "message") or first(response, "error") is not None:
        raise MappingError("response: an error in the place of an answer")
    asked = _system(request) + _asked(first(request, "messages"))
    answer = _answer(response)
    model = label(request, "model") or label(response, "model")
    if model is None:
        raise MappingError("model: missing; it names the policy")
    own = label(response, "id") if response is not document else None
    return (
        Conversation(
            own or label(document, "custom_id", "request_id", "id"),
            first(document, "created_at", "timestamp", "created", "response.created_at"),
            asked,
            answer,
            model,
            label(response, "model") or model,
        ),
    )


def _system(request: Any) -> tuple[Turn, ...]:
    given = first(request, "system")
    if given is None:
        return ()
    text, left_out = content(given, "system")
    return (Turn("system", text, left_out=left_out),)


def _asked(messages: Any) -> tuple[Turn, ...]:
    if messages is None:
        raise MappingError(
            "messages: missing; of a message batch, join its requests and results by custom_id: "
            "{params: ..., result: ...}"
        )
    return turns(messages, "messages")


def _answer(response: Any) -> Turn:
    if isinstance(response, str):
        return Turn("assistant", response)
    if not isinstance(response, Mapping) or response.get("content") is None:
        raise MappingError("content: missing; there is no answer to score")
    stopped = label(response, "stop_reason")
    said = turn({**response, "role": "assistant"}, "response")
    return replace(said, finish="stop" if stopped is None else _FINISH.get(stopped, stopped))
