"""One prompt and the policy's answer to it: what flows in."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal, Self

from pydantic import AwareDatetime, Field, field_validator, model_validator

from ares_stream.records.base import (
    EPOCH,
    LATEST,
    MAX_ATTRIBUTES,
    Identifier,
    Part,
    Record,
    Slice,
    refusal,
)

Role = Literal["system", "developer", "user", "assistant", "tool"]


Lane = Literal["production", "probe", "anchor"]
"""Production traffic, probes that look for failures, and anchors whose truth is known. Never
mixed in a figure."""


MAX_MESSAGES = 1024


class Message(Part):
    """One turn, in OpenAI's chat roles."""

    role: Role
    content: str


class Policy(Part):
    """The language model that answered."""

    name: Identifier
    version: Identifier


class Reference(Part):
    """Known answers to the same prompt: a safe one, a harmful one, or both."""

    chosen: str | None = None
    rejected: str | None = None


class Probe(Part):
    """Where a probe came from. `components` maps a taxonomy axis to an entry's id, never text."""

    id: Identifier
    campaign: Identifier
    generation: int = Field(ge=0)
    components: dict[Slice, Slice]
    sampling_probability: float = Field(gt=0.0, le=1.0, allow_inf_nan=False)
    parents: tuple[Identifier, ...] = ()


class Anchor(Part):
    """What is known of a conversation that watches the judge and the reward model.

    `harmful` is what people said. `judged` is what the judge decided when the set was made
    (None: contested), and `reward` the reward model's score then: a later difference is a
    change of the model, since the text is the same.
    """

    set: Identifier
    id: Identifier
    harmful: bool
    judged: bool | None = None
    reward: float | None = Field(None, allow_inf_nan=False)


class Interaction(Record):
    """One prompt and the policy's answer to it."""

    SCHEMA: ClassVar[str] = "ares.interaction/1"
    schema_: Literal["ares.interaction/1"] = Field("ares.interaction/1", alias="schema")
    id: Identifier
    occurred_at: AwareDatetime
    messages: tuple[Message, ...] = Field(min_length=1, max_length=MAX_MESSAGES)
    response: str
    policy: Policy
    attributes: dict[Slice, Slice] = Field(default_factory=dict, max_length=MAX_ATTRIBUTES)
    reference: Reference | None = None
    probe: Probe | None = None
    anchor: Anchor | None = None

    @field_validator("occurred_at")
    @classmethod
    def _after_1970(cls, value: datetime) -> datetime:
        if value < EPOCH:
            raise refusal("lies before 1970; send RFC 3339 or seconds since the epoch")
        if value > LATEST:
            raise refusal("lies behind the year 9999 in UTC")
        return value

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        for message in self.messages:
            if message.content and not message.content.isspace():
                return self
        raise refusal("messages hold no text; send at least one that does")

    @property
    def prompt(self) -> str:
        """The last turn that is not the assistant's."""
        for message in reversed(self.messages):
            if message.role != "assistant":
                return message.content
        return self.messages[-1].content
