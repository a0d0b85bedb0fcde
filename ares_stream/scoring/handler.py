"""What the scorer does with a window of Kafka records: decode, score, decide, publish.

Plugs into the streaming processor, which knows nothing of models; knows nothing of
transactions itself. One record's failure becomes one Rejection, and its neighbours go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ares_stream.detection.assess import ScoredVerdict, assess
from ares_stream.detection.decide import DetectionPolicy, is_scored_high, review_cell
from ares_stream.errors import AresError, LeftOut, ScoringError
from ares_stream.records.base import Record
from ares_stream.records.cloudevents import cloudevent_headers
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.interaction import Interaction, Lane
from ares_stream.records.label import ReviewItem
from ares_stream.records.mapping import Mapping as FieldMapping
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.traces import sampled_parent
from ares_stream.records.verdict import FailureClass, SourceCoordinates
from ares_stream.scoring.panel import Scores
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection

_SPAN = 16**13  # 52 bits: exact as a float, so a share of 1 takes every verdict.


class Scorer(Protocol):
    """Scores interactions in order; a ScoringError stands where one could not be scored."""

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        """One result per interaction."""
        ...


@dataclass(frozen=True, slots=True)
class Input:
    """One topic to read: its lane, and how its values become Interactions."""

    topic: str
    lane: Lane
    map: FieldMapping | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Full names of the topics written."""

    verdicts: str
    repair: str
    review: str

    @property
    def all(self) -> tuple[str, ...]:
        """Every one of them."""
        return (self.verdicts, self.repair, self.review)


def sampled_for_review(verdict: str, share: float) -> bool:
    """Whether a verdict is among the `share` that people see whatever it says.

    Decided by the verdict's id (hexadecimal), so that a replay samples the same ones.
    """
    return int(verdict[:13], 16) / _SPAN < share


class ScoringHandler:
    """The processor's handler. `review_split` gives the review share of single cells, in the
    place of `review_sample`; see decide.review_cell. With `traced`, notes say which trace their
    record belongs to, where its producer samples it."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        inputs: Sequence[Input],
        outputs: Outputs,
        policy: DetectionPolicy,
        limits: DecodingLimits,
        review_sample: float,
        review_split: Mapping[str, float] | None = None,
        traced: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._scorer = scorer
        self._traced = traced
        self._inputs: Mapping[str, Input] = {item.topic: item for item in inputs}
        self._outputs = outputs
        self._policy = policy
        self._limits = limits
        self._review_sample = review_sample
        self._review_split = review_split or {}
        self._clock = clock

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        """One outcome per record, in order."""
        began = self._clock()
        decoded = [self._decode(record) for record in records]
        interactions = [item for item in decoded if isinstance(item, Interaction)]
        scores = iter(await self._scorer.score(interactions)) if interactions else iter(())
        outcomes: list[Outcome] = []
        for record, item in zip(records, decoded, strict=True):
            if not isinstance(item, Interaction):
                outcomes.append(item or ())
                continue
            score = next(scores)
            if isinstance(score, ScoringError):
                outcomes.append(Rejection.of("score", score))
            else:
                outcomes.append(self._publish(record, item, score, began))
        return outcomes

    def _decode(self, record: InboundRecord) -> Interaction | Rejection | None:
        source = self._inputs[record.topic]
        try:
            return decode_interaction(
                record.key,
                record.value,
                record.headers,
                self._limits,
                source.map,
                timestamp_ms=record.timestamp_ms,
            )
        except LeftOut:
            return None
        except AresError as error:
            return Rejection.of("decode", error)

    def _publish(
        self, record: InboundRecord, interaction: Interaction, scores: Scores, began: float
    ) -> tuple[OutboundRecord, ...]:
        source = SourceCoordinates.checked(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=max(record.timestamp_ms, 0),
        )
        lane = self._inputs[record.topic].lane
        verdict = assess(interaction, scores, source, lane, self._policy)
        key = interaction.id.encode()

        def outbound(topic: str, value: Record, note: object = None) -> OutboundRecord:
            headers = cloudevent_headers(
                value,
                id=verdict.id,
                source=record.topic,
                time=interaction.occurred_at,
                incoming=record.headers,
            )
            return OutboundRecord(topic, key, value.encode(), headers, note=note)

        # Counted when it is committed: what is scored again was never counted before.
        parent = sampled_parent(record.headers) if self._traced else None
        note = ScoredVerdict(verdict, self._clock(), parent, began)
        outputs = [outbound(self._outputs.verdicts, verdict, note)]
        if lane == "anchor":
            return tuple(outputs)  # People have said what it is, and nothing may train on it.
        if verdict.failure_class is FailureClass.COUPLED_FAILURE:
            failure = CoupledFailure.checked(verdict=verdict, interaction=interaction)
            outputs.append(outbound(self._outputs.repair, failure))
        contested = verdict.failure_class is FailureClass.CONTESTED
        share = self._review_sample
        if self._review_split:
            liked = is_scored_high(verdict.scored_high, self._policy)
            share = self._review_split.get(review_cell(verdict.failure_class, liked), share)
        if contested or sampled_for_review(verdict.id, share):
            item = ReviewItem.checked(
                cause="contested" if contested else "sampled",
                sampling_probability=1.0 if contested else share,
                verdict=verdict,
                interaction=interaction,
            )
            outputs.append(outbound(self._outputs.review, item))
        return tuple(outputs)
