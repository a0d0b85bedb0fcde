"""Counts and rates of verdicts by lane, policy and slice, in bounded memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from ares_stream.detection.decide import DetectionPolicy, is_scored_high
from ares_stream.detection.intervals import (
    IntervalRule,
    WeightedSums,
    confidence_sequence,
    coupling_lift,
)
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Lane
from ares_stream.records.verdict import FailureClass, Verdict


class SliceKey(NamedTuple):
    """What is counted together. `attribute` "" is everything of that lane and policy;
    `policy` "" is every policy of that lane."""

    lane: Lane
    policy: str
    attribute: str
    label: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of one slice. Rates are of all its verdicts, contested ones included."""

    key: SliceKey
    total: int
    classes: dict[FailureClass, int]
    cfr: Interval
    harm: Interval
    lift: Interval | None
    weighted_cfr: Interval | None
    effective_size: float | None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; intervals as {value, low, high, count}."""

        def interval(item: Interval | None) -> dict[str, Any] | None:
            return None if item is None else item.model_dump()

        return {
            **self.key._asdict(),
            "total": self.total,
            "classes": {name.value: count for name, count in self.classes.items()},
            "cfr": interval(self.cfr),
            "harm": interval(self.harm),
            "lift": interval(self.lift),
            "weighted_cfr": interval(self.weighted_cfr),
            "effective_size": self.effective_size,
        }


class _Counts:
    __slots__ = ("both", "classes", "harmful", "liked", "total", "weighted")

    def __init__(self) -> None:
        self.total = 0
        self.classes = dict.fromkeys(FailureClass, 0)
        # Of the verdicts that are not contested:
        self.harmful = self.liked = self.both = 0
        self.weighted = WeightedSums()


class Tally:
    """Counts verdicts by lane, policy version and attribute label in bounded memory.

    The lanes are never added together: probes look for failures, production does not. A new
    slice past `max_slices` is counted under OTHER, so that a label per user cannot fill the
    memory.
    """

    OTHER = "(other)"

    def __init__(self, policy: DetectionPolicy | None = None, *, max_slices: int = 2_000) -> None:
        self._policy = policy or DetectionPolicy()
        self._max_slices = max_slices
        self._counts: dict[SliceKey, _Counts] = {}

    def add(self, verdict: Verdict) -> None:
        """Count one verdict in every slice that it belongs to."""
        lane = verdict.lane
        policy = f"{verdict.policy.name}@{verdict.policy.version}"
        self._count(SliceKey(lane, "", "", ""), verdict)
        self._count(SliceKey(lane, policy, "", ""), verdict)
        for attribute, label in verdict.attributes.items():
            self._count(SliceKey(lane, policy, attribute, label), verdict)

    def _count(self, key: SliceKey, verdict: Verdict) -> None:
        if key not in self._counts and len(self._counts) >= self._max_slices and key.policy:
            other = self.OTHER if key.attribute else ""
            key = SliceKey(key.lane, self.OTHER, other, other)
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = _Counts()
        failure = verdict.failure_class
        counts.total += 1
        counts.classes[failure] += 1
        if failure is not FailureClass.CONTESTED:
            harmful = failure in (FailureClass.COUPLED_FAILURE, FailureClass.POLICY_FAILURE)
            liked = is_scored_high(verdict.scored_high, self._policy)
            counts.harmful += harmful
            counts.liked += liked
            counts.both += harmful and liked
        if verdict.probe is not None:
            counts.weighted.add(
                failure is FailureClass.COUPLED_FAILURE, verdict.probe.sampling_probability
            )

    def rate(
        self, lane: Lane, policy: str = "", rule: IntervalRule = confidence_sequence
    ) -> Interval:
        """A lane's CFR, of one policy ("name@version") or of all."""
        counts = self._counts.get(SliceKey(lane, policy, "", "")) or _Counts()
        return rule(counts.classes[FailureClass.COUPLED_FAILURE], counts.total)

    def estimates(self, rule: IntervalRule = confidence_sequence) -> tuple[Estimate, ...]:
        """Every slice, totals first, then by name. `rule` is confidence_sequence for what is
        watched, wilson for a report on a finished file."""
        return tuple(self._estimate(key, rule) for key in sorted(self._counts))

    def _estimate(self, key: SliceKey, rule: IntervalRule) -> Estimate:
        counts = self._counts[key]
        decided = counts.total - counts.classes[FailureClass.CONTESTED]
        weighted = counts.weighted if counts.weighted.draws else None
        return Estimate(
            key=key,
            total=counts.total,
            classes=dict(counts.classes),
            cfr=rule(counts.classes[FailureClass.COUPLED_FAILURE], counts.total),
            harm=rule(counts.harmful, counts.total),
            lift=coupling_lift(counts.both, counts.harmful, counts.liked, decided),
            weighted_cfr=None if weighted is None else weighted.interval(),
            effective_size=None if weighted is None else weighted.effective_size,
        )
