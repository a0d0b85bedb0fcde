"""What the repairer trains on, and how a repair ended."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ares_stream.records.base import (
    Identifier,
    Instant,
    Interval,
    OffsetRange,
    Record,
    Sha256,
    Slice,
)
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Verdict


class CoupledFailure(Record):
    """A coupled failure with its text: what the repairer trains on."""

    SCHEMA: ClassVar[str] = "ares.coupled-failure/1"
    schema_: Literal["ares.coupled-failure/1"] = Field("ares.coupled-failure/1", alias="schema")
    verdict: Verdict
    interaction: Interaction


class RepairReport(Record):
    """How one repair ended. Key: the plan's id."""

    SCHEMA: ClassVar[str] = "ares.repair-report/1"
    schema_: Literal["ares.repair-report/1"] = Field("ares.repair-report/1", alias="schema")
    plan_id: Identifier
    state: Literal["promoted", "awaiting_approval", "rejected", "failed"]
    method: Identifier
    batch: tuple[OffsetRange, ...]
    reasons: tuple[str, ...]
    before: dict[str, Interval]
    after: dict[str, Interval]
    releases: dict[Slice, Sha256] = Field(default_factory=dict)
    gate_report: Sha256 | None = None
    started_at: Instant
    finished_at: Instant
