"""Reads any JSON as an Interaction: one JMESPath expression per field.

    where: type == 'chat'                # optional; what it finds false in is left out
    id: request.id                       # optional; else the record's key
    occurred_at: created                 # optional; else the record's timestamp
    prompt: request.text                 # or messages: request.messages
    response: choices[0].message.content
    policy: {name: model, version: "revision || 'unknown'"}
    attributes: {tenant: customer.plan}
    reference: {chosen: gold.safe}

Or a preset for the records of a widespread tool (presets), to which attributes may be added:

    preset: openai
    attributes: {tenant: request.metadata.tenant}

A constant is a JMESPath literal: "'v1'". Times are RFC 3339, or seconds or milliseconds since
the epoch (numbers above 2e10 are milliseconds).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from ares_stream.errors import MappingError
from ares_stream.files.documents import read_yaml
from ares_stream.records.base import MAX_ATTRIBUTES, Slice, decode_error, instant
from ares_stream.records.interaction import Interaction
from ares_stream.records.presets import PRESETS, PresetName, apply_preset


def _compiles(expression: str) -> str:
    try:
        jmespath.compile(expression)
    except JMESPathError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"not a JMESPath expression: {expression!r}: {reason}") from None
    return expression


Expression = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_compiles)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PolicyMapping(_Part):
    """Where the policy's name and version are."""

    name: Expression
    version: Expression


class ReferenceMapping(_Part):
    """Where known answers are; a record without them has none."""

    chosen: Expression | None = None
    rejected: Expression | None = None


class Mapping(_Part):
    """Expressions per field of an Interaction, compiled once. Frozen; a settings value."""

    preset: PresetName | None = None
    where: Expression | None = None
    id: Expression | None = None
    occurred_at: Expression | None = None
    messages: Expression | None = None
    prompt: Expression | None = None
    response: Expression | None = None
    policy: PolicyMapping | None = None
    attributes: dict[Slice, Expression] = Field(default_factory=dict, max_length=MAX_ATTRIBUTES)
    reference: ReferenceMapping | None = None
    _compiled: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_conversation(self) -> Self:
        own = "id", "occurred_at", "messages", "prompt", "response", "policy", "reference"
        if self.preset is not None:
            for name in own:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name}: the preset {self.preset} maps it; leave it out")
            return self
        for name in ("response", "policy"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}: missing; or name a preset: {', '.join(PRESETS)}")
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give exactly one of messages and prompt")
        return self

    @model_validator(mode="after")
    def _compile(self) -> Self:
        self._compiled.update(
            (field, jmespath.compile(expression)) for field, expression in self.expressions()
        )
        return self

    def expressions(self) -> Iterator[tuple[str, str]]:
        """(dotted field, expression) of every field that is mapped."""
        for field in ("where", "id", "occurred_at", "messages", "prompt", "response"):
            if (expression := getattr(self, field)) is not None:
                yield field, expression
        if self.policy is not None:
            yield "policy.name", self.policy.name
            yield "policy.version", self.policy.version
        for name, expression in self.attributes.items():
            yield f"attributes.{name}", expression
        if self.reference is not None:
            for field in ("chosen", "rejected"):
                if (expression := getattr(self.reference, field)) is not None:
                    yield f"reference.{field}", expression

    def selects(self, document: Any) -> bool:
        """Whether a document is a conversation at all: `where` finds something in it that is
        neither false, null nor empty. Raises MappingError where the expression fails."""
        if self.where is None:
            return True
        found = self._search(document, "where")
        return not (found is None or found is False or found in ("", [], {}))

    def apply(
        self, document: Any, *, key: bytes | None = None, timestamp_ms: int | None = None
    ) -> Interaction:
        """Make the one Interaction of a parsed JSON document; raises MappingError also where it
        holds several, for a record of a topic has one verdict. See apply_all."""
        return only(self.apply_all(document, key=key, timestamp_ms=timestamp_ms))

    def apply_all(
        self, document: Any, *, key: bytes | None = None, timestamp_ms: int | None = None
    ) -> tuple[Interaction, ...]:
        """Make the Interactions of a parsed JSON document: one, or with a preset one for each
        answer in it.

        `key` stands in for an unmapped id, `timestamp_ms` for an unmapped occurred_at.
        Raises MappingError that names the field and its expression, never a value.
        """
        if self.preset is not None:
            return apply_preset(
                self.preset,
                document,
                attributes=self._labels(document),
                key=key,
                timestamp_ms=timestamp_ms,
            )
        return (self._one(document, key, timestamp_ms),)

    def _labels(self, document: Any) -> dict[str, str]:
        return {
            name: label
            for name in self.attributes
            if (label := self._optional_label(document, f"attributes.{name}")) is not None
        }

    def _one(self, document: Any, key: bytes | None, timestamp_ms: int | None) -> Interaction:
        prompt = self._text(document, "prompt") if self.prompt is not None else None
        fields: dict[str, Any] = {
            "id": self._id(document, key),
            "occurred_at": self._occurred_at(document, timestamp_ms),
            "messages": self._found(document, "messages")
            if prompt is None
            else [{"role": "user", "content": prompt}],
            "response": self._text(document, "response"),
            "policy": {
                "name": self._label(document, "policy.name"),
                "version": self._label(document, "policy.version"),
            },
            "attributes": self._labels(document),
        }
        if self.reference is not None:
            known = {
                field: answer
                for field in ("chosen", "rejected")
                if (answer := self._optional_text(document, f"reference.{field}")) is not None
            }
            fields["reference"] = known or None
        try:
            return Interaction.model_validate(fields)
        except ValidationError as error:
            wrong = self._invalid(error)
        raise wrong

    def _search(self, document: Any, field: str) -> Any:
        try:
            return self._compiled[field].search(document)
        # Also what Python raises of text beside a number, or of 1e400, which jmespath lets through.
        except Exception as error:
            # The message may quote the document; its class says enough.
            wrong = self._error(field, f"fails on this record ({type(error).__name__})")
        raise wrong

    def _found(self, document: Any, field: str) -> Any:
        value = self._search(document, field)
        if value is None:
            raise self._error(field, "finds nothing in this record")
        return value

    def _text(self, document: Any, field: str) -> str:
        value = self._found(document, field)
        if not isinstance(value, str):
            raise self._error(field, f"finds {_kind(value)}, expected text")
        return value

    def _optional_text(self, document: Any, field: str) -> str | None:
        if field not in self._compiled or self._search(document, field) is None:
            return None
        return self._text(document, field)

    def _label(self, document: Any, field: str) -> str:
        label = self._optional_label(document, field)
        if label is None:
            raise self._error(field, "finds nothing in this record")
        return label

    def _optional_label(self, document: Any, field: str) -> str | None:
        """Numbers and booleans are labels as well as text is."""
        value = self._search(document, field)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float):
            return str(value)
        raise self._error(field, f"finds {_kind(value)}, expected text or a number")

    def _id(self, document: Any, key: bytes | None) -> str:
        if self.id is not None:
            return self._label(document, "id")
        if not key:
            raise MappingError("id: not mapped, and the record has no key; map id to a field")
        with contextlib.suppress(UnicodeDecodeError):
            return key.decode()
        raise MappingError("id: not mapped, and the record's key is not UTF-8")

    def _occurred_at(self, document: Any, timestamp_ms: int | None) -> Any:
        if self.occurred_at is not None:
            value = self._found(document, "occurred_at")
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise self._error("occurred_at", f"finds {_kind(value)}, expected a time")
            return value
        if timestamp_ms is None or timestamp_ms < 0:
            raise MappingError("occurred_at: not mapped, and the record has no timestamp")
        return instant(timestamp_ms)

    def _error(self, field: str, reason: str) -> MappingError:
        return MappingError(f"{field}: {self._compiled[field].expression!r} {reason}")

    def _invalid(self, error: ValidationError) -> MappingError:
        wrong = decode_error(error)
        parts = wrong.field.split(".")
        field = next(
            (name for end in (2, 1) if (name := ".".join(parts[:end])) in self._compiled), None
        )
        if field is None and parts[0] == "messages":
            field = "prompt"
        if field is None:
            return MappingError(str(wrong))
        inside = f" at {wrong.field}" if wrong.field != field else ""
        return self._error(field, f"gives an unusable value{inside}: {wrong.reason}")


def only(found: tuple[Interaction, ...]) -> Interaction:
    """The one conversation of a record of a topic. Raises MappingError with their number where
    there are several: a record has one verdict or one dead letter."""
    if len(found) != 1:
        raise MappingError(
            f"{len(found)} conversations in one record, which can have one verdict only; write "
            "each to a record of its own, or score a file of them with `ares scan`"
        )
    return found[0]


def load_mapping(file: Path) -> Mapping:
    """Read a mapping from YAML, or take a preset by its name. Raises MappingError naming file
    and field."""
    if str(file) in PRESETS and not file.exists():
        return Mapping.model_validate(str(file))
    return read_yaml(file, Mapping, error=MappingError)


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean"}
    return kinds.get(type(value), "a number")
