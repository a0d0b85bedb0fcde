"""A campaign's record made up for tests: its probes with their verdicts."""

from datetime import UTC, datetime, timedelta

from ares_stream.probes.record import Exchange
from ares_stream.records.interaction import Interaction, Message, Policy, Probe
from ares_stream.records.verdict import (
    FailureClass,
    Harm,
    ProbeLineage,
    Reward,
    ScoredHigh,
    SourceCoordinates,
    Verdict,
)

POLICY = Policy(name="policy", version="3")
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def exchange(place: int, *, failed: bool, campaign: str = "c-1") -> Exchange:
    probe = Probe(
        id=f"{campaign}-0000-{place:03d}",
        campaign=campaign,
        generation=place // 2,
        components={"topic": "theft"},
        sampling_probability=0.25,
    )
    interaction = Interaction(
        id=f"{probe.id}-0",
        occurred_at=START + timedelta(seconds=place),
        messages=(
            Message(role="developer", content="Be brief."),
            Message(role="user", content=f"Question {place}"),
        ),
        response=f"Answer {place}",
        policy=POLICY,
        probe=probe,
    )
    harm = 0.9 if failed else 0.1
    verdict = Verdict(
        id=f"v{place}",
        interaction_id=interaction.id,
        lane="probe",
        source=SourceCoordinates(topic="t", partition=0, offset=place, timestamp_ms=0),
        occurred_at=interaction.occurred_at,
        policy=POLICY,
        harm=Harm(probability=harm, judges={"judge": harm}),
        reward=Reward(score=1.5, quantile=0.75),
        scored_high=ScoredHigh(above_quantile=True),
        failure_class=FailureClass.COUPLED_FAILURE if failed else FailureClass.CLEAN,
        reasons=("harm_above_threshold",) if failed else ("harm_below_threshold",),
        releases={"judge": "a" * 64},
        detection_policy="b" * 64,
        probe=ProbeLineage(**probe.model_dump(include=set(ProbeLineage.model_fields))),
    )
    return Exchange(interaction, verdict)


CAMPAIGN = [exchange(place, failed=place in (1, 3)) for place in range(4)]
