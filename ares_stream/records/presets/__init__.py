"""Mappings for the records of widespread tools, by name: what JMESPath cannot say of them.

| preset | records |
|---|---|
| openai | chat completions and responses with their requests, batches joined, training files |
| anthropic | messages with their requests, message batches joined |
| litellm | StandardLoggingPayload |
| langfuse | observations, traces with theirs, ingestion batches |
| otel-genai | OTLP spans and events of the GenAI conventions |

One record may hold several conversations: choices of one completion, generations of one trace.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from pydantic import ValidationError

from ares_stream.errors import MappingError
from ares_stream.records.base import decode_error, instant
from ares_stream.records.interaction import Interaction
from ares_stream.records.presets import anthropic, langfuse, litellm, openai, otel_genai
from ares_stream.records.presets.chat import Conversation

PresetName = Literal["openai", "anthropic", "litellm", "langfuse", "otel-genai"]
_READERS: Final[Mapping[PresetName, Callable[[Any], tuple[Conversation, ...]]]] = {
    "openai": openai.conversations,
    "anthropic": anthropic.conversations,
    "litellm": litellm.conversations,
    "langfuse": langfuse.conversations,
    "otel-genai": otel_genai.conversations,
}
PRESETS: Final = tuple(_READERS)
_NAIVE: Final = re.compile(r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?$")
_MAX_CONVERSATIONS: Final = 1000
"""Of one record; a record that holds more is a file."""


def apply_preset(
    name: PresetName,
    document: Any,
    *,
    attributes: Mapping[str, str] | None = None,
    key: bytes | None = None,
    timestamp_ms: int | None = None,
) -> tuple[Interaction, ...]:
    """The conversations of a parsed record, in its order, with ids that differ.

    `attributes` are added to each; `key` stands in for a missing id, `timestamp_ms` for a missing
    time. Raises MappingError that names the field, never a value; of several conversations none is
    left out.
    """
    if not isinstance(document, dict | list):
        raise MappingError(f"{name}: expected an object")
    found = _READERS[name](document)
    if len(found) > _MAX_CONVERSATIONS:
        raise MappingError(f"{len(found):,} conversations; the limit is {_MAX_CONVERSATIONS:,}")
    ids = [item.id or _id_of(key) for item in found]
    seen: Counter[str] = Counter()
    interactions = []
    for id_, item in zip(ids, found, strict=True):
        seen[id_] += 1
        several = ids.count(id_) > 1
        numbered = f"{id_[:240]}/{seen[id_]}" if several else id_
        interactions.append(_interaction(item, numbered, timestamp_ms, attributes or {}))
    return tuple(interactions)


def _interaction(
    item: Conversation, id_: str, timestamp_ms: int | None, given: Mapping[str, str]
) -> Interaction:
    left_out = dict.fromkeys(kind for turn in (*item.turns, item.answer) for kind in turn.left_out)
    attributes = dict(given)
    if item.answer.finish != "stop":
        attributes["finish"] = item.answer.finish[:128]
    if left_out:
        attributes["left_out"] = ",".join(left_out)[:128]
    try:
        return Interaction.model_validate(
            {
                "id": id_,
                "occurred_at": _time(item.at, timestamp_ms),
                "messages": [{"role": turn.role, "content": turn.text} for turn in item.turns],
                "response": item.answer.text,
                "policy": {"name": item.model, "version": item.version},
                "attributes": attributes,
            }
        )
    except ValidationError as error:
        wrong = str(decode_error(error, Interaction))
    raise MappingError(wrong)


def _id_of(key: bytes | None) -> str:
    if not key:
        raise MappingError("id: missing, and the record has no key")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise MappingError("id: missing, and the record's key is not UTF-8") from None


def _time(at: Any, timestamp_ms: int | None) -> Any:
    """A time as tools write it: RFC 3339, without a zone (UTC), or a number since the epoch in
    seconds, milliseconds, microseconds or nanoseconds, also as text."""
    if at is None or at == "":
        if timestamp_ms is None or timestamp_ms < 0:
            raise MappingError("occurred_at: missing, and the record has no timestamp")
        return instant(timestamp_ms)
    if isinstance(at, str):
        if _NAIVE.match(at):
            return at.replace(" ", "T") + "Z"
        if not re.fullmatch(r"\d+(?:\.\d+)?", at):
            return at
        at = float(at)
    try:
        seconds = float(at) if isinstance(at, int | float) else math.nan
    except OverflowError:  # JSON's whole numbers have no end.
        seconds = math.nan
    if not math.isfinite(seconds) or isinstance(at, bool):
        raise MappingError("occurred_at: expected a time")
    for bound in (1e17, 1e14, 1e11):
        if seconds >= bound:
            seconds /= bound / 1e8
            break
    return seconds
