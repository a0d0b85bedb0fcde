"""The state of one released model."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from ares_stream.records.base import Identifier, Instant, Record, Sha256
from ares_stream.records.forecast import Forecast


class ReleaseState(StrEnum):
    """candidate → active → superseded or rolled_back; candidate → rejected."""

    CANDIDATE = "candidate"
    ACTIVE = "active"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class Release(Record):
    """The present release of one model. Key: the model's name."""

    SCHEMA: ClassVar[str] = "ares.release/1"
    schema_: Literal["ares.release/1"] = Field("ares.release/1", alias="schema")
    model: Identifier
    kind: Literal["harm", "reward", "policy"]
    digest: Sha256
    uri: str
    state: ReleaseState
    changed_at: Instant
    changed_by: Identifier
    reason: str = ""
    plan_id: Identifier | None = None
    gate_report: Sha256 | None = None
    previous: Sha256 | None = None
    forecast: Forecast | None = None
    """What it was expected to do in production before it was decided on."""
