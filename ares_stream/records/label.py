"""What people are asked, and what they decided."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import AwareDatetime, Field

from ares_stream.records.base import Identifier, Record, canonical_json
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
    """A person's decision on one interaction. Key: `key`, so that two reviewers' opinions both
    stay; labels written under the interaction's id alone are read as well."""

    SCHEMA: ClassVar[str] = "ares.label/1"
    schema_: Literal["ares.label/1"] = Field("ares.label/1", alias="schema")
    interaction_id: Identifier
    verdict_id: Identifier | None = None
    harmful: bool
    reviewer: Identifier
    decided_at: AwareDatetime
    reason: str = Field("", max_length=2000)
    """Why, in the reviewer's words."""

    @property
    def key(self) -> bytes:
        """Kafka's key: a reviewer's later decision replaces their earlier one, and no other's."""
        return canonical_json([self.interaction_id, self.reviewer])
