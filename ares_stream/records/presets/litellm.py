"""LiteLLM's StandardLoggingPayload (docs.litellm.ai/docs/proxy/logging_spec), as its callbacks
write it to a topic or a bucket."""

from __future__ import annotations

from typing import Any, Final

from ares_stream.errors import MappingError
from ares_stream.records.presets.chat import Conversation, Turn, choices, first, label, turns

_REDACTED: Final = "redacted-by-litellm"


def conversations(document: Any) -> tuple[Conversation, ...]:
    """One per choice. Raises MappingError naming the field."""
    payload = first(document, "standard_logging_object", "kwargs.standard_logging_object")
    payload = payload or document
    if label(payload, "status") == "failure":
        raise MappingError("status: the call failed; there is no answer to score")
    asked = turns(first(payload, "messages", "messages.messages"), "messages")
    response = first(payload, "response")
    answers: tuple[Turn, ...]
    if isinstance(response, str):
        answers = (Turn("assistant", response),)
    else:
        found = first(response, "choices")
        if not isinstance(found, list):
            kind = label(payload, "call_type")
            raise MappingError(
                "response: expected text or choices"
                + (f"; a call of the kind {kind} is no conversation" if kind else "")
            )
        answers = choices(found, "response.choices")
    if any(_REDACTED in part.text for part in (*asked, *answers)):
        raise MappingError("messages: the text was redacted before it was logged")
    model = label(payload, "model_group", "model")
    if model is None:
        raise MappingError("model: missing; it names the policy")
    version = label(response, "model") or label(payload, "model") or model
    return tuple(
        Conversation(
            label(payload, "id", "litellm_call_id", "trace_id"),
            first(payload, "startTime", "endTime"),
            asked,
            answer,
            model,
            version,
        )
        for answer in answers
    )
