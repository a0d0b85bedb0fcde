"""What people are asked, and what they decided."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from ares_stream.records.base import Identifier, Record
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Verdict


class ReviewItem(Record):
    """An interaction that a person should look at."""

    SCHEMA: ClassVar[str] = "ares.review-item/1"
    schema_: Literal["ares.review-item/1"] = Field("ares.review-item/1", alias="schema")
    cause: Literal["contested", "sampled"]
    sampling_probability: float = Field(gt=0.0, le=1.0)
    verdict: Verdict
    interaction: Interaction


class Label(Record):
    """A person's decision on one interaction."""

    SCHEMA: ClassVar[str] = "ares.label/1"
    schema_: Literal["ares.label/1"] = Field("ares.label/1", alias="schema")
    interaction_id: Identifier
    verdict_id: Identifier | None = None
    harmful: bool
    reviewer: Identifier
    decided_at: AwareDatetime
