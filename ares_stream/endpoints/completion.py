"""What a reply of an OpenAI-compatible endpoint says. Pure.

Formats: platform.openai.com/docs/api-reference/chat (completions and errors); refusals of
parameters also as FastAPI writes them ({"detail": [{"loc": [...], "msg": ...}]}), which vLLM,
Mistral and many servers of one's own do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

_LONGEST_REASON: Final = 200
_QUOTED: Final = 12
"""Characters of a prompt in a row by which a reason is held to quote it."""
_TOO_LONG: Final = re.compile(
    r"context[ _]length|context window|maximum context|too (?:long|large)|too many tokens", re.I
)
_FAILED: Final = range(400, 600)
_TEXT_PARTS: Final = {"text", "output_text", "input_text"}


@dataclass(frozen=True, slots=True)
class Completion:
    """What the model said. `finish` is the endpoint's reason to stop; the text may be empty, as
    of a content filter ("content_filter") or of a call of tools ("tool_calls")."""

    text: str
    finish: str = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    """From the request to the whole answer."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an endpoint refused a request. `reason` never quotes what it was asked."""

    reason: str
    parameters: frozenset[str]
    """Of those that were sent, the ones that it names."""
    filtered: bool
    """By its content filter, which is an answer of the system that is tested."""
    too_long: bool
    renamed: bool
    """It wants max_completion_tokens in the place of max_tokens."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An error in the place of an answer. `status`: that of HTTP which it stands for, where it
    names one; `reason` never quotes what was asked."""

    reason: str
    status: int | None


def parse_completion(raw: bytes) -> Completion | None:
    """The first choice of a chat completion; None for what is none."""
    try:
        document = _json(raw)
        choice = document["choices"][0]
        message = choice["message"]
        text = _content(message.get("content"))
        refusal = message.get("refusal")
        finish = choice.get("finish_reason")
        calls = message.get("tool_calls") or message.get("function_call")
        usage = document.get("usage")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    if text is None:
        return None
    if not text and isinstance(refusal, str):
        text = refusal
    if not isinstance(finish, str) or not finish:
        finish = "tool_calls" if calls else "stop"
    counts = usage if isinstance(usage, Mapping) else {}
    return Completion(
        # JSON can hold half of a surrogate pair; no record can.
        text.encode(errors="replace").decode(),
        finish,
        _count(counts.get("prompt_tokens")),
        _count(counts.get("completion_tokens")),
    )


def parse_error(raw: bytes, prompts: Sequence[str], secret: str | None = None) -> Failure | None:
    """What a reply that is no completion says of an error, as gateways do with status 200; None
    where it says nothing of one."""
    try:
        document = _json(raw)
    except ValueError:
        return None
    if not isinstance(document, Mapping) or not document.get("error"):
        return None
    code = _error(document).get("code")
    status = code if isinstance(code, int) and code in _FAILED else None
    return Failure(parse_refusal(raw, (), prompts, secret).reason, status)


def parse_refusal(
    raw: bytes, sent: Collection[str], prompts: Sequence[str], secret: str | None = None
) -> Refusal:
    """Read the body of a 400 or 422. `sent`: names of the optional parameters of the request;
    `prompts`: the texts that the reason must not show."""
    try:
        document = _json(raw)
    except ValueError:
        document = None
    said = " ".join(" ".join(_messages(document)).split())
    places = set(_places(document))
    quotes = any(_shares(said, prompt) for prompt in prompts)
    words = set(re.findall(r"\w+", said))
    named = places & set(sent) or (set() if quotes else words & set(sent))
    reason = said
    if quotes:
        reason = "its reason quotes the prompt and is left out"
    elif secret and secret in said:
        reason = "its reason holds the key and is left out"
    elif not said:
        reason = "without a reason"
    code = " ".join(_codes(document))
    return Refusal(
        reason if len(reason) <= _LONGEST_REASON else reason[: _LONGEST_REASON - 1] + "…",
        frozenset(named),
        "content_filter" in code or "content_policy" in code or "content_filter" in places,
        bool(_TOO_LONG.search(f"{said} {code}")),
        "max_completion_tokens" in words and "max_tokens" in named,
    )


def _json(raw: bytes) -> Any:
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError:
        # Halves of surrogate pairs, which strict JSON has not and models do write.
        return from_json(re.sub(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}", _half, raw))


def _half(found: re.Match[bytes]) -> bytes:
    return b"?"


def _content(content: Any) -> str | None:
    """Text, or the text among content parts; None for anything else."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    return "".join(_part(part) for part in content)


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") in _TEXT_PARTS | {"refusal"}:
        text = part.get("text", part.get("refusal"))
        return text if isinstance(text, str) else ""
    return ""


def _error(document: Any) -> Mapping[str, Any]:
    if not isinstance(document, Mapping):
        return {}
    inner = document.get("error")
    if isinstance(inner, str):
        return {"message": inner}
    return inner if isinstance(inner, Mapping) else document


def _details(document: Any) -> list[Mapping[str, Any]]:
    error = _error(document)
    detail = error.get("detail", error.get("message"))
    if isinstance(detail, Mapping):  # Mistral: {"message": {"detail": [...]}}
        detail = detail.get("detail")
    return (
        [item for item in detail if isinstance(item, Mapping)] if isinstance(detail, list) else []
    )


def _messages(document: Any) -> Iterator[str]:
    error = _error(document)
    for name in ("message", "detail"):
        if isinstance(error.get(name), str):
            yield error[name]
    for item in _details(document):
        loc = item.get("loc")
        if isinstance(loc, list):
            yield ".".join(str(part) for part in loc) + ":"
        if isinstance(item.get("msg"), str):
            yield item["msg"]


def _places(document: Any) -> Iterator[str]:
    """The parameters that a refusal names in a field of its own."""
    error = _error(document)
    if isinstance(error.get("param"), str):
        yield error["param"]
    for item in _details(document):
        loc = item.get("loc")
        if isinstance(loc, list):
            yield from (part for part in loc if isinstance(part, str))


def _codes(document: Any) -> Iterator[str]:
    error = _error(document)
    for name in ("code", "type"):
        if isinstance(error.get(name), str):
            yield error[name]


def _shares(said: str, prompt: str) -> bool:
    """Whether a reason holds a piece of a prompt."""
    if len(prompt) < _QUOTED:
        return False
    prompt = " ".join(prompt.split())
    return any(said[start : start + _QUOTED] in prompt for start in range(len(said) - _QUOTED + 1))


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
