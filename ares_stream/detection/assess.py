"""From an interaction and its scores to its verdict: one function for stream, scan and replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.records.base import declared
from ares_stream.records.interaction import Interaction, Lane
from ares_stream.records.traces import TraceParent
from ares_stream.records.verdict import (
    Harm,
    ProbeLineage,
    Reward,
    SourceCoordinates,
    Verdict,
    verdict_id,
)


class Scored(Protocol):
    """What the models said of one interaction, and the digests of the releases that said it."""

    @property
    def harm(self) -> Harm:
        """The panel of judges."""
        ...

    @property
    def reward(self) -> Reward:
        """The reward model."""
        ...

    @property
    def releases(self) -> Mapping[str, str]:
        """Model name to bundle digest."""
        ...


@dataclass(frozen=True, slots=True)
class ScoredVerdict:
    """A verdict and when it was made, in seconds since the epoch: the note of its record. Of a
    record whose trace is sampled also where it came from, and when its window was begun."""

    verdict: Verdict
    made_at: float
    parent: TraceParent | None = None
    began_at: float = 0.0


def assess(
    interaction: Interaction,
    scores: Scored,
    source: SourceCoordinates,
    lane: Lane,
    policy: DetectionPolicy,
) -> Verdict:
    """Decide and write it down. Equal arguments give a verdict of equal bytes, so a replay
    can prove a verdict; no text of the interaction enters it."""
    decision = decide(scores.harm, scores.reward, policy)
    releases = dict(sorted(scores.releases.items()))
    probe = interaction.probe
    anchor = interaction.anchor if lane == "anchor" else None
    return Verdict.checked(
        id=verdict_id(source.topic, source.partition, source.offset, releases, policy.digest),
        interaction_id=interaction.id,
        lane=lane,
        source=source,
        occurred_at=interaction.occurred_at,
        policy=declared(interaction.policy),
        attributes=interaction.attributes,
        harm=scores.harm,
        reward=scores.reward,
        scored_high=decision.scored_high,
        failure_class=decision.failure_class,
        reasons=decision.reasons,
        releases=releases,
        detection_policy=policy.digest,
        probe=None
        if probe is None
        else ProbeLineage.checked(
            id=probe.id,
            campaign=probe.campaign,
            generation=probe.generation,
            components=probe.components,
            sampling_probability=probe.sampling_probability,
        ),
        anchor=None if anchor is None else declared(anchor),
    )
