"""An alarm of the monitor, and that a person has taken note of it."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias, get_args

from pydantic import Field

from ares_stream.records.base import (
    Identifier,
    Instant,
    Interval,
    Offset,
    OffsetRange,
    Part,
    PartitionNumber,
    Record,
    decode_one_of,
)
from ares_stream.records.rates import RateSlice

AlarmKind = Literal[
    "coupled_failures_rose",
    "coupled_failures_rose_over_previous",
    "contested_rose",
    "judge_changed",
    "reward_drifted",
    "dead_letters_rose",
    "lane_silent",
]
"""Stable codes: programs may match on them."""
Attribution = Literal["system", "judge", "none"]


class EvidenceRecord(Part):
    """A record that contributed: a verdict that is a coupled failure, or contested."""

    topic: Identifier
    partition: PartitionNumber
    offset: Offset


class Alarm(Record):
    """Something has changed. Key: `id`; a later record of the id replaces an earlier one.

    `baseline` is the rate that was exceeded and `rate` the rate since `changed_at`, an estimate.
    `attribution` says whether the system or the judge has changed, `none` while neither is
    shown; `attribution_reason` says by what. `false_alarm_days` is the average time between
    false alarms of its kind for one policy, at least; 0 where chance plays no part.
    """

    SCHEMA: ClassVar[str] = "ares.alarm/1"
    schema_: Literal["ares.alarm/1"] = Field("ares.alarm/1", alias="schema")
    id: Identifier
    kind: AlarmKind
    slice: RateSlice | None = None
    raised_at: Instant
    changed_at: Instant
    rate: Interval | None = None
    baseline: float | None = None
    baseline_source: str = ""
    attribution: Attribution = "none"
    attribution_reason: str = ""
    false_alarm_days: float
    summary: str
    evidence: tuple[EvidenceRecord, ...] = ()
    covers: tuple[OffsetRange, ...] = Field(default=(), description="what was read by then")


class AlarmAcknowledgement(Record):
    """A person has seen an alarm; its watch begins anew. Key: the alarm's id."""

    SCHEMA: ClassVar[str] = "ares.alarm-acknowledgement/1"
    schema_: Literal["ares.alarm-acknowledgement/1"] = Field(
        "ares.alarm-acknowledgement/1", alias="schema"
    )
    alarm_id: Identifier
    by: Identifier
    at: Instant
    note: str = Field("", max_length=2000)


Told: TypeAlias = Alarm | AlarmAcknowledgement
"""What the alarms topic holds."""


def decode_told(raw: bytes | None) -> Told:
    """A record of the alarms topic. Raises DecodeError."""
    item: Told = decode_one_of(raw, get_args(Told))
    return item
