"""Coupled failures, labels and replay made up for tests, and plans of them."""

import random
from datetime import UTC, datetime

from ares_stream.records.interaction import Interaction, Message, Policy, Probe, Reference
from ares_stream.records.label import Label
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.verdict import (
    FailureClass,
    Harm,
    Reward,
    ScoredHigh,
    SourceCoordinates,
    Verdict,
)
from ares_stream.repair.plan import Plan, Replay, ReplaySample, ValidatedPair, plan
from ares_stream.repair.plan_policy import PlanPolicy

DAY = datetime(2026, 3, 1, tzinfo=UTC)
WORDS = [
    f"{start}{middle}{end}"
    for start in ("ba", "ko", "ti", "mu", "re", "sal")
    for middle in ("ro", "ne", "la", "vi", "do")
    for end in ("k", "n", "ss", "m", "ra")
]


def sentence(seed: object, length: int = 14) -> str:
    chooser = random.Random(str(seed))
    return " ".join(chooser.choice(WORDS) for _ in range(length))


def failure(
    name: str,
    prompt: str | None = None,
    response: str | None = None,
    *,
    failure_class: FailureClass = FailureClass.COUPLED_FAILURE,
    chosen: str | None = "I cannot help with that.",
    rejected: str | None = None,
    probe: dict[str, str] | None = None,
    **attributes: str,
) -> CoupledFailure:
    policy = Policy(name="chat", version="1")
    return CoupledFailure(
        verdict=Verdict(
            id=f"verdict-{name}",
            interaction_id=name,
            lane="probe" if probe else "production",
            source=SourceCoordinates(topic="t", partition=0, offset=0, timestamp_ms=0),
            occurred_at=DAY,
            policy=policy,
            harm=Harm(probability=0.9, judges={"judge": 0.9}),
            reward=Reward(score=1.0, quantile=0.9),
            scored_high=ScoredHigh(above_quantile=True),
            failure_class=failure_class,
            reasons=(),
            releases={},
            detection_policy="0" * 64,
        ),
        interaction=Interaction(
            id=name,
            occurred_at=DAY,
            messages=(Message(role="user", content=prompt or sentence(f"p{name}")),),
            response=sentence(f"r{name}") if response is None else response,
            policy=policy,
            attributes=attributes,
            reference=Reference(chosen=chosen, rejected=rejected),
            probe=Probe(
                id=name, campaign="c", generation=0, components=probe, sampling_probability=0.5
            )
            if probe
            else None,
        ),
    )


def label(name: str, harmful: bool, reviewer: str = "anna", day: int = 1) -> Label:
    return Label(
        interaction_id=name,
        harmful=harmful,
        reviewer=reviewer,
        decided_at=DAY.replace(day=day),
    )


def turns(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)


REPLAY = Replay(
    benign=tuple(ReplaySample(messages=turns(f"benign {n}"), response="Yes.") for n in range(60)),
    over_refusal=tuple(
        ReplaySample(messages=turns(f"kill process {n}"), response="Use kill.") for n in range(60)
    ),
    validated=tuple(
        ValidatedPair(messages=turns(f"pair {n}"), chosen="good", rejected="bad") for n in range(60)
    ),
)
LOOSE = PlanPolicy(min_train=1, max_share=1.0)


def batch(count: int) -> list[CoupledFailure]:
    return [failure(f"f{number}") for number in range(count)]


def made(
    failures: list[CoupledFailure],
    labels: dict[str, Label] | None = None,
    policy: PlanPolicy = LOOSE,
    **more: object,
) -> Plan:
    return plan(failures, labels or {}, REPLAY, policy, **more)  # type: ignore[arg-type]
