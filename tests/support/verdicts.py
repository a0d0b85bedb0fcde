"""Verdicts made for tests of the monitor."""

from __future__ import annotations

from datetime import UTC, datetime

from ares_stream.records.base import digest
from ares_stream.records.interaction import Anchor, Lane, Policy
from ares_stream.records.verdict import (
    FailureClass,
    Harm,
    ProbeLineage,
    Reward,
    ScoredHigh,
    SourceCoordinates,
    Verdict,
)

NOON = datetime(2026, 10, 1, 12, tzinfo=UTC)


def verdict(
    number: int,
    failure: FailureClass = FailureClass.CLEAN,
    *,
    version: str = "1",
    lane: Lane = "production",
    liked: bool = False,
    locale: str = "de",
    anchor: Anchor | None = None,
    score: float = 0.0,
) -> Verdict:
    probe = ProbeLineage(
        id="p", campaign="c", generation=0, components={}, sampling_probability=0.3
    )
    return Verdict(
        id=digest([number])[:32],
        interaction_id=f"interaction-{number}",
        lane=lane,
        source=SourceCoordinates(topic="in", partition=0, offset=number, timestamp_ms=0),
        occurred_at=NOON,
        policy=Policy(name="chat", version=version),
        attributes={"locale": locale, "user": f"user-{number % 9}"},
        harm=Harm(probability=(number % 11) / 10, judges={"judge": 0.9}),
        reward=Reward(score=score, quantile=(number % 7) / 6),
        scored_high=ScoredHigh(above_quantile=liked),
        failure_class=failure,
        reasons=(),
        releases={"judge": "a" * 64, "reward": "b" * 64},
        detection_policy="c" * 64,
        probe=probe if lane == "probe" else None,
        anchor=anchor,
    )
