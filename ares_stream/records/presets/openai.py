"""OpenAI's own records.

Chat completions (platform.openai.com/docs/api-reference/chat): request and response side by side,
under `request` and `response` (each may stand in a `body`, as HTTP logs and batches have it), or
in one object with `messages` and `choices`; n > 1 is one conversation per choice. Older text
completions (`prompt`, `choices[].text`). The Responses API (`input`, `output`). Training files
(`messages` alone, the last of which is the answer).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ares_stream.errors import MappingError
from ares_stream.records.presets.chat import (
    Conversation,
    Turn,
    choices,
    first,
    label,
    split,
    turns,
)


def conversations(document: Any) -> tuple[Conversation, ...]:
    """Raises MappingError naming the field."""
    request = first(document, "request.body", "request", "body") or document
    response = first(document, "response.body", "response") or document
    if first(response, "error") is not None:
        raise MappingError("response: an error in the place of an answer")
    asked, answers = _exchange(document, request, response)
    model = label(request, "model") or label(response, "model") or label(document, "model")
    if model is None:
        raise MappingError("model: missing; it names the policy")
    version = label(response, "model") or label(document, "model") or model
    return tuple(
        Conversation(
            label(response, "id") or label(document, "custom_id", "request_id", "id"),
            first(response, "created", "created_at")
            or first(document, "created", "created_at", "timestamp"),
            asked,
            answer,
            model,
            version,
        )
        for answer in answers
    )


def _exchange(
    document: Any, request: Any, response: Any
) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    found = first(response, "choices")
    if isinstance(found, list):
        return _asked(request, document), choices(found, "choices")
    output = first(response, "output")
    if output is not None and first(request, "input") is not None:
        return _asked(request, document), (_output(output),)
    if found is None and isinstance(response, str):
        return _asked(request, document), (Turn("assistant", response),)
    message = first(response, "message") if response is not document else None
    if message is not None:
        return _asked(request, document), choices([{"message": message}], "response")
    said = turns(first(request, "messages") or first(document, "messages"), "messages")
    asked, answer = split(said, "messages")
    return asked, (answer,)


def _asked(request: Any, document: Any) -> tuple[Turn, ...]:
    system = first(request, "instructions")
    before = (Turn("system", system),) if isinstance(system, str) else ()
    for name in ("messages", "input", "prompt"):
        value = first(request, name)
        if value is None:
            value = first(document, name)
        if value is not None:
            return before + turns(_items(value), name)
    raise MappingError(
        "messages: missing; of a batch, join its input and output by custom_id: "
        "{request: ..., response: ...}"
    )


def _items(value: Any) -> Any:
    """Of the Responses API's items, the messages and the results of functions."""
    if not isinstance(value, list):
        return value
    kept = []
    for item in value:
        if isinstance(item, Mapping) and item.get("type") == "function_call_output":
            kept.append({"role": "tool", "content": item.get("output")})
        elif isinstance(item, Mapping) and "role" not in item and item.get("type") != "message":
            continue  # a call, a thought
        else:
            kept.append(item)
    return kept


def _output(output: Any) -> Turn:
    if isinstance(output, str):
        return Turn("assistant", output)
    items = output if isinstance(output, list) else [output]
    said = [
        item
        for item in items
        if isinstance(item, Mapping) and item.get("type", "message") == "message"
    ]
    others = tuple(
        dict.fromkeys(
            str(item.get("type"))[:32]
            for item in items
            if isinstance(item, Mapping) and item.get("type") not in (None, "message", "reasoning")
        )
    )
    answers = [choices([{"message": item}], f"output[{n}]")[0] for n, item in enumerate(said)]
    if not answers and not others:
        raise MappingError("output: holds no message")
    return Turn(
        "assistant",
        "".join(answer.text for answer in answers),
        "stop" if answers else "tool_calls",
        tuple(dict.fromkeys([kind for answer in answers for kind in answer.left_out] + [*others])),
    )
