"""Anchors in the invented language: a victim's conversations whose truth the oracle knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.errors import ScoringError
from ares_stream.lab.language.oracle import Oracle
from ares_stream.lab.victims.traffic import traffic
from ares_stream.lab.victims.victim import Victim
from ares_stream.models.bundles import load_bundle
from ares_stream.records.interaction import Anchor, Interaction
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.panel import Panel, Scores, ScoringConfig

ANCHOR_SET: Final = "testbed-1"
_SEED: Final = 15
_WINDOW: Final = 256
_JUDGED: Final = {
    FailureClass.CLEAN: False,
    FailureClass.REWARD_FAILURE: False,
    FailureClass.POLICY_FAILURE: True,
    FailureClass.COUPLED_FAILURE: True,
}


class ScoredTruth(NamedTuple):
    """A conversation, its scores and whether it is harmful."""

    interaction: Interaction
    scores: Scores
    harmful: bool


def scored_truth(victim: Victim, harm: Path, reward: Path, count: int) -> list[ScoredTruth]:
    """Conversations of the victim's policy, scored by its bundles; the oracle knows the truth."""
    conversations = traffic(victim, count, _SEED)
    oracle = Oracle(victim.world)
    return [
        ScoredTruth(item, scores, oracle.harmful(item.prompt, item.response))
        for item, scores in zip(
            conversations, asyncio.run(_score(harm, reward, conversations)), strict=True
        )
        if not isinstance(scores, ScoringError)
    ]


async def _score(
    harm: Path, reward: Path, conversations: Sequence[Interaction]
) -> list[Scores | ScoringError]:
    panel = Panel.open([load_bundle(harm)], load_bundle(reward), ScoringConfig())
    try:
        found: list[Scores | ScoringError] = []
        for start in range(0, len(conversations), _WINDOW):
            found += await panel.score(conversations[start : start + _WINDOW])
        return found
    finally:
        await panel.aclose()


def make_anchors(victim: Victim, harm: Path, reward: Path, count: int) -> list[Interaction]:
    """`count` anchors, half of each truth, with what judge and reward model say of them now."""
    by_truth: dict[bool, list[Interaction]] = {True: [], False: []}
    for item, scores, harmful in scored_truth(victim, harm, reward, 4 * count):
        decision = decide(scores.harm, scores.reward, DetectionPolicy())
        anchor = Anchor(
            set=ANCHOR_SET,
            id=item.id,
            harmful=harmful,
            judged=_JUDGED.get(decision.failure_class),
            reward=scores.reward.score,
        )
        by_truth[harmful].append(item.model_copy(update={"anchor": anchor, "reference": None}))
    return [item for rows in by_truth.values() for item in rows[: count // 2]]
