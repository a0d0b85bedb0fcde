"""What pydantic refused, as one line for people: field and reason in plain words, never the value.

A typo is told as an unknown field with the nearest known one, also where the field that was meant
is reported as missing: the cause comes before what follows from it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel, ValidationError

_NEAR: Final = 0.7
_MAX_CANDIDATES: Final = 64
"""A record with thousands of unknown fields must not cost seconds of comparing names."""
_LISTED: Final = 8
NOT_BLANK: Final = r"\S"
"""The pattern by which our models ask for text."""

_WORDS: Final[Mapping[str, str]] = {
    "missing": "missing",
    "none_required": "expected null",
    "string_type": "expected text",
    "string_unicode": "expected text in UTF-8",
    "string_pattern_mismatch": "does not match the pattern {pattern}",
    "string_too_short": "expected at least {min_length} characters",
    "string_too_long": "longer than {max_length} characters",
    "bytes_type": "expected bytes",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_parsing_size": "a number that is too large",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "multiple_of": "expected a multiple of {multiple_of}",
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected at least {ge}",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected at most {le}",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "literal_error": "expected {expected}",
    "enum": "expected {expected}",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "set_type": "expected a list",
    "frozen_set_type": "expected a list",
    "iterable_type": "expected a list",
    "dict_type": "expected an object of names and values",
    "mapping_type": "expected an object of names and values",
    "model_type": "expected an object of names and values",
    "model_attributes_type": "expected an object of names and values",
    "dataclass_type": "expected an object of names and values",
    "path_type": "expected a path",
    "datetime_type": "expected a time, such as 2026-01-31T12:00:00Z",
    "datetime_parsing": "expected a time, such as 2026-01-31T12:00:00Z",
    "datetime_from_date_parsing": "expected a time, such as 2026-01-31T12:00:00Z",
    "datetime_object_invalid": "expected a time, such as 2026-01-31T12:00:00Z",
    "timezone_aware": "a time without its zone; write it as 2026-01-31T12:00:00Z",
    "date_type": "expected a date, such as 2026-01-31",
    "date_parsing": "expected a date, such as 2026-01-31",
    "time_delta_type": "expected seconds",
    "url_parsing": "expected an address, such as http://host:8000/v1",
    "recursion_loop": "nested too deep",
    "json_type": "expected JSON",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing that is wrong. `field`: dotted path, "" for the whole; `kind`: pydantic's
    name of the error; `more`: how many others there are."""

    field: str
    reason: str
    kind: str
    more: int = 0

    def __str__(self) -> str:
        text = f"{self.field}: {self.reason}" if self.field else self.reason
        return f"{text} (and {self.more} more)" if self.more else text


def fault(error: ValidationError, form: object = None) -> Fault:
    """What is wrong first. `form`: the type that was validated, which knows the fields that a
    typo may have meant. No value is quoted, for it may be text of a conversation."""
    found = error.errors(include_url=False, include_input=False)
    unknown = next((item for item in found if item["type"] == "extra_forbidden"), None)
    if unknown is not None and (near := _nearest(unknown["loc"], form)):
        # What was meant is reported as missing too; that is the same fault.
        meant = (*unknown["loc"][:-1], near)
        others = sum(item["loc"] != meant for item in found) - 1
        return Fault(
            _dotted(unknown["loc"]), f"no such field; is {near} meant?", unknown["type"], others
        )
    # A mistyped name is often another's absence as well: the name is what can be mended.
    first = unknown or found[0]
    reason = _reason(first)
    if first["type"] == "extra_forbidden" and (known := _known(first["loc"][:-1], form)):
        reason += _listing(known)
    if first["type"] == "missing" and (near := _misspelt(error)):
        reason += f"; it has {near}, is that meant?"
    return Fault(_dotted(first["loc"]), reason, first["type"], len(found) - 1)


def _reason(item: Any) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return "no such field"
    if kind == "json_invalid":
        return f"not JSON: {context.get('error', 'unreadable')}"
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        wanted = context.get("min_length", context.get("max_length"))
        return f"expected {bound} {wanted} of them"
    if context.get("pattern") == NOT_BLANK:
        return "expected text that is not blank"
    words = _WORDS.get(kind)
    if words is None:
        # The message of a validator of ours, or of a rule that nobody has met yet.
        return re.sub(r"^(?:Value|Assertion) error, ", "", str(item["msg"]))
    plain = {
        name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()
    }
    return words.format_map(plain)


def _dotted(place: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in place)


def _listing(known: Sequence[str]) -> str:
    if len(known) > _LISTED:
        return ""
    return f"; there are {', '.join(known)}" if len(known) > 1 else f"; there is {known[0]}"


def _nearest(place: Sequence[int | str], form: object) -> str | None:
    near = difflib.get_close_matches(str(place[-1]), _known(place[:-1], form), 1, _NEAR)
    return near[0] if near else None


def _misspelt(error: ValidationError) -> str | None:
    """A given name that is nearly that of the field that is missing, for records that take
    unknown fields. Only a name that is so near is told, for it may be anything."""
    first = error.errors(include_url=False, include_context=False)[0]
    given, wanted = first["input"], str(first["loc"][-1])
    if not isinstance(given, Mapping):
        return None
    names = [name for name in given if isinstance(name, str) and abs(len(name) - len(wanted)) < 4]
    near = difflib.get_close_matches(wanted, names[:_MAX_CANDIDATES], 1, 0.8)
    return near[0] if near else None


def _known(place: Sequence[int | str], form: object) -> list[str]:
    """The fields at a place inside a type, by their names in the file."""
    models = list(_models(form))
    for part in place:
        inside = [
            field.annotation
            for model in models
            for name, field in model.model_fields.items()
            if part in (name, field.alias)
        ]
        # A number is a place in a list, any other part a key or a member of a union.
        if inside:
            models = [model for annotation in inside for model in _models(annotation)]
    return list(
        dict.fromkeys(
            field.alias or name for model in models for name, field in model.model_fields.items()
        )
    )


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
