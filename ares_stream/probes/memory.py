"""A campaign beside what the topics say of it: the prober's whole memory. No I/O.

Records are taken in any order; `advance` feeds the campaign as far as they reach.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ares_stream.errors import DecodeError
from ares_stream.probes.campaign import Ask, Judged
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.screening import Clusters
from ares_stream.probes.selection import Adaptive
from ares_stream.probes.wording import COMPOSER, MADE_BY, Wording
from ares_stream.records import topics
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import FailureClass, Verdict
from ares_stream.streaming.records import InboundRecord

UNANSWERED: Final = "unanswered"
"""Attribute of an Interaction whose query the target refused; its response is empty."""
FINISH: Final = "finish"
"""Attribute of an Interaction whose answer is empty: the endpoint's reason to stop."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a campaign stands."""

    campaign: str
    queries: int
    budget: int
    probes: int
    void: int
    failures: int
    unique: int
    generation: int
    state: str


@dataclass(slots=True)
class Calibration:
    """What the surrogate expected of the last settled generation's learnt draws, and what they
    earned; means in [0, 1]."""

    expected: float = 0.0
    earned: float = 0.0


@dataclass(slots=True)
class _Memory:
    """What the topics say of this campaign. The first record of an id counts."""

    sent: dict[str, bool] = field(default_factory=dict)
    """Interaction id → whether it earns nothing."""
    verdicts: dict[str, Judged] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)


class CampaignMemory:
    """A campaign beside what the topics say of it."""

    def __init__(self, plan: CampaignPlan, topic: str) -> None:
        self.plan = plan
        self.campaign = plan.start()
        self.wording = Wording(plan.space, plan.composer, plan.attack)
        self.components: Counter[str] = Counter()
        self.calibration = Calibration()
        self._topic = topic
        self._id = plan.id.encode()
        self._memory = _Memory()
        self._unique = Clusters()
        self._answered = 0
        self._counted = 0
        self._generation = -1
        self._expected: dict[str, float] = {}

    def take(self, record: InboundRecord) -> bool:
        """Remember a record; True when it is of this campaign. Raises DecodeError for one that
        names it and cannot be read, or that it cannot have asked."""
        if record.value is None or self._id not in record.value:
            return False
        memory = self._memory
        if record.topic == self._topic:
            interaction = Interaction.decode(record.value)
            probe = interaction.probe
            if probe is None or probe.campaign != self.plan.id:
                return False
            name, _, attempt = interaction.id.rpartition("-")
            if name != probe.id or not attempt.isdecimal():
                raise DecodeError("is not the id of an attempt of its probe", field="id")
            if not self.plan.space.has(probe.components):
                raise DecodeError("are not of the campaign's space", field="probe.components")
            self.sent(interaction)
        elif record.topic.endswith(topics.VERDICTS):
            verdict = Verdict.decode(record.value)
            if verdict.probe is None or verdict.probe.campaign != self.plan.id:
                return False
            memory.verdicts.setdefault(verdict.interaction_id, judged(verdict))
        elif record.key is not None:
            memory.dead.add(record.key.decode(errors="replace"))
        return True

    def sent(self, interaction: Interaction) -> None:
        """Remember an Interaction that is published."""
        self.wording.recall(interaction)
        attributes = interaction.attributes
        void = UNANSWERED in attributes or self.wording.is_rubbish(
            interaction.response, attributes.get(MADE_BY, COMPOSER)
        )
        if interaction.id not in self._memory.sent:
            self._answered += not (UNANSWERED in attributes or _is_silence(interaction))
        self._memory.sent.setdefault(interaction.id, void)

    def sent_and_answered(self) -> tuple[int, int]:
        """Queries that were published, and those of them that the target answered."""
        return len(self._memory.sent), self._answered

    def unsent(self) -> list[Ask]:
        """Queries to ask now, in order."""
        return [
            ask
            for ask in self.campaign.pending()
            if ask.id not in self._memory.sent and self.wording.words(ask).cause is None
        ]

    def unjudged(self) -> int:
        """Queries of this stage whose result is not known."""
        return sum(self._result(ask) is None for ask in self.campaign.pending())

    def advance(self) -> None:
        """Feed the campaign as far as the memory reaches."""
        while not self.campaign.done:
            self._begin_generation()
            results = {
                ask.id: result
                for ask in self.campaign.pending()
                if (result := self._result(ask)) is not None
            }
            if not results:
                return
            self.campaign.judge(results)
            self._count_failures()
            if self.campaign.generation != self._generation:
                self.wording.learn(self.campaign.settled)

    def progress(self) -> Progress:
        """Where the campaign stands."""
        campaign = self.campaign
        return Progress(
            campaign.id,
            campaign.queries,
            campaign.policy.budget,
            campaign.probes,
            campaign.void,
            len(campaign.failures),
            len(self._unique),
            campaign.generation,
            campaign.state(),
        )

    def _result(self, ask: Ask) -> Judged | None:
        memory = self._memory
        nothing = Judged(0.0, 0.0, failed=False, void=True)
        if self.wording.words(ask).cause is not None:
            return nothing
        verdict = memory.verdicts.get(ask.id)
        if verdict is None or ask.id not in memory.sent:
            # A dead letter beside a verdict is of another record with the probe's key.
            return nothing if ask.id in memory.dead else None
        if memory.sent[ask.id]:
            return Judged(0.0, 0.0, failed=False, void=True, release=verdict.release)
        return verdict

    def _begin_generation(self) -> None:
        """Once per generation: compose its words in order, and note what is expected of it."""
        campaign = self.campaign
        if campaign.generation == self._generation:
            return
        self._note_calibration()
        self._generation = campaign.generation
        asks = campaign.pending()
        for ask in asks:
            words = self.wording.words(ask)
            self.components.update(f"{axis}={name}" for axis, name in words.ids.items())
        selector = campaign.selector
        learnt = [ask for ask in asks if ask.source == "learnt"]
        self._expected = {}
        if learnt and isinstance(selector, Adaptive):
            expected = selector.predict(np.asarray([ask.number for ask in learnt]))
            self._expected = {
                f"{ask.probe}-0": float(value) for ask, value in zip(learnt, expected, strict=True)
            }

    def _note_calibration(self) -> None:
        known = {
            id: self._memory.verdicts[id] for id in self._expected if id in self._memory.verdicts
        }
        if known:
            count = len(known)
            self.calibration = Calibration(
                sum(self._expected[id] for id in known) / count,
                sum(item.harm * item.reward for item in known.values()) / count,
            )

    def _count_failures(self) -> None:
        for failure in self.campaign.failures[self._counted :]:
            self._unique.add(self.wording.of(failure.probe).text)
        self._counted = len(self.campaign.failures)


def _is_silence(interaction: Interaction) -> bool:
    """Whether nothing was said, which a judge would find harmless. A content filter's empty answer
    is a refusal of the system that is tested."""
    filtered = interaction.attributes.get(FINISH) == "content_filter"
    return not filtered and not interaction.response.strip()


def judged(verdict: Verdict) -> Judged:
    """What a campaign learns from a verdict. A contested answer is no failure; an answer that
    is scored high counts as fully liked."""
    high = verdict.scored_high
    liked = high.above_quantile or bool(high.above_reference)
    return Judged(
        verdict.harm.probability,
        1.0 if liked else verdict.reward.quantile,
        verdict.failure_class is FailureClass.COUPLED_FAILURE,
        release=digest([dict(verdict.releases), verdict.policy.name, verdict.policy.version])[:16],
    )
