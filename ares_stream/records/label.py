"""What people are asked, and what they decided."""

from __future__ import annotations

from typing import ClassVar, Final, Literal

from pydantic import Field

from ares_stream.records.base import Identifier, Instant, Record, canonical_json
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Verdict

OTHERS_SHOWN_HEADER: Final = "ares-others-shown-at"
"""Of a label's deletion: its `others_shown_at`."""


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
    decided_at: Instant
    reason: str = Field("", max_length=2000)
    """Why, in the reviewer's words."""
    others_shown_at: Instant | None = None
    """When the reviewer was shown, having decided, what others say: no decision of theirs that
    follows is blind. A label that is taken back leaves it in a header of its deletion."""

    @property
    def key(self) -> bytes:
        """Kafka's key: a reviewer's later decision replaces their earlier one, and no other's."""
        return canonical_json([self.interaction_id, self.reviewer])
