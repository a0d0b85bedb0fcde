"""What the presets share: chat messages in the forms that OpenAI's clients write, as plain text.

Of a message only text is read. What else it holds (an image, a call of a tool) is named, since a
judge that did not see it must not seem to have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ares_stream.errors import DecodeError, MappingError
from ares_stream.files.rows import parse_json

ROLES: Final[Mapping[str, str]] = {
    "system": "system", "developer": "developer", "user": "user", "assistant": "assistant",
    "tool": "tool", "function": "tool", "human": "user", "ai": "assistant", "model": "assistant",
}  # fmt: skip
"""Role as written → as kept. "function" is OpenAI's older name of "tool"; the last three are
LangChain's and Gemini's."""
_TEXT: Final = {"text", "input_text", "output_text"}
_THOUGHTS: Final = {"thinking", "reasoning", "redacted_thinking"}
"""Parts that nobody is shown: no part of the answer."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `finish`: why its model stopped, for an answer; `left_out`: kinds of what it
    holds beside text."""

    role: str
    text: str
    finish: str = "stop"
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt with one answer to it, as a preset found it. `id` and `at` (a time as the tool
    writes it) may be missing; the record's key and timestamp stand for them then."""

    id: str | None
    at: Any
    turns: tuple[Turn, ...]
    answer: Turn
    model: str
    version: str


def turns(value: Any, place: str) -> tuple[Turn, ...]:
    """Messages: text for one of the user, or a list. Raises MappingError naming the place."""
    if isinstance(value, str):
        return (Turn("user", value),)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list) or not value:
        raise MappingError(f"{place}: expected messages, a list of role and content")
    return tuple(turn(item, f"{place}[{number}]") for number, item in enumerate(value))


def turn(message: Any, place: str, finish: Any = None, role: str | None = None) -> Turn:
    """One message. `role` stands for a missing one."""
    if isinstance(message, str):
        return Turn(role or "user", message)
    if not isinstance(message, Mapping):
        raise MappingError(f"{place}: expected role and content")
    given = message.get("role", message.get("type", role))
    kept = ROLES.get(given.lower()) if isinstance(given, str) else None
    if kept is None:
        raise MappingError(f"{place}.role: expected one of {', '.join(sorted(ROLES))}")
    text, left_out = content(
        message.get("content", message.get("parts")), f"{place}.content", kept == "assistant"
    )
    refusal = message.get("refusal")
    if not text and isinstance(refusal, str):
        text = refusal
    calls = message.get("tool_calls") or message.get("function_call")
    if calls:
        left_out = (*left_out, "tool_calls")
    if message.get("audio"):
        left_out = (*left_out, "audio")
    if not isinstance(finish, str) or not finish:
        finish = "tool_calls" if calls else "stop"
    return Turn(kept, text, finish, tuple(dict.fromkeys(left_out)))


def content(value: Any, place: str, whole: bool = False) -> tuple[str, tuple[str, ...]]:
    """(text, kinds of other parts) of a message's content. `whole`: parts are pieces of one
    text, as an answer's are, and not paragraphs."""
    if value is None:
        return "", ()
    if isinstance(value, str):
        return value, ()
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise MappingError(f"{place}: expected text, a list of parts or null")
    texts: list[str] = []
    others: list[str] = []
    for number, part in enumerate(value):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise MappingError(f"{place}[{number}]: expected a part of a message")
        kind = str(part.get("type", "text"))
        said = part.get("text", part.get("content", part.get("refusal")))
        if isinstance(said, Mapping):  # {"text": {"value": ...}} of the Assistants API
            said = said.get("value")
        if kind in _TEXT | {"refusal"} and isinstance(said, str):
            texts.append(said)
        elif kind == "tool_call_response":
            answer = part.get("response", part.get("result"))
            texts.append(answer if isinstance(answer, str) else _json(answer))
        elif kind == "tool_result":  # Anthropic's, in a message of the user
            said, inside = content(part.get("content"), f"{place}[{number}].content")
            texts.append(said)
            others += inside
        elif kind not in _THOUGHTS:
            others.append(kind[:32])
    return ("" if whole else "\n").join(texts), tuple(dict.fromkeys(others))


def parsed(value: Any) -> Any:
    """JSON that a tool keeps as text; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return parse_json(value.encode(errors="replace"))
        except DecodeError:
            return value
    return value


def first(document: Any, *paths: str) -> Any:
    """The value at the first dotted path that leads to one; None without any."""
    for path in paths:
        value = document
        for name in path.split("."):
            value = parsed(value.get(name)) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def label(document: Any, *paths: str) -> str | None:
    """The same for a label: text or a number."""
    value = first(document, *paths)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value)[:256] or None


def choices(value: Sequence[Any], place: str) -> tuple[Turn, ...]:
    """The answers of a completion: choices with a message, or with text (older ones)."""
    if not value:
        raise MappingError(f"{place}: is empty; there is no answer to score")
    found = []
    for number, choice in enumerate(value):
        here = f"{place}[{number}]"
        if not isinstance(choice, Mapping):
            raise MappingError(f"{here}: expected a choice")
        if "delta" in choice and "message" not in choice:
            raise MappingError(f"{here}: a piece of a stream; record the whole answer")
        finish = choice.get("finish_reason")
        if "message" in choice:
            found.append(turn(choice["message"], f"{here}.message", finish, "assistant"))
        elif isinstance(choice.get("text"), str):
            stopped = finish if isinstance(finish, str) else "stop"
            found.append(Turn("assistant", choice["text"], stopped))
        else:
            raise MappingError(f"{here}.message: missing")
    return tuple(found)


def split(said: tuple[Turn, ...], place: str) -> tuple[tuple[Turn, ...], Turn]:
    """(prompt, answer) of a whole conversation, whose last message is the answer."""
    if len(said) < 2 or said[-1].role != "assistant":
        raise MappingError(f"{place}: there is no answer, and the last message is not one either")
    return said[:-1], said[-1]


def _json(value: Any) -> str:
    import json

    return "" if value is None else json.dumps(value, ensure_ascii=False)
