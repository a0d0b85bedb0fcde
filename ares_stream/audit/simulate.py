"""A candidate answers a sample of production's prompts, and is scored as production will be.

    range of a topic ─► sample of prompts ─► candidate's answers ─► judges, rewards ─► forecast

The recorded answers are scored too, by the models that are in use now: so that forecast and
present are of the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from ares_stream.audit.forecast import MAX_UNANSWERED, ForecastTally, Pair, compare
from ares_stream.audit.ranges import RangeReader
from ares_stream.audit.sampling import Drawn, PromptSample, sample_digest
from ares_stream.detection.assess import Scored
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import AresError, InputError, LeftOut, ScoringError, TargetError
from ares_stream.probes.targets import Answer, Query, Result, Target
from ares_stream.records.base import OffsetRange, declared, stable_seed
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.forecast import Forecast
from ares_stream.records.interaction import Interaction, Policy
from ares_stream.records.mapping import Mapping as FieldMapping

CHUNK: Final = 256
"""Prompts that are answered and scored together."""
FIRST_CHUNK: Final = 32
"""The same at the start: where none of them is answered, waiting for the others is in vain."""
FINISHES: Final = frozenset({"stop", "length", "content_filter", "tool_calls"})
"""Reasons to stop that are repeated; an endpoint may write anything there."""
MIN_PROMPTS: Final = 30
"""Fewer say nothing: their floor is a tenth."""

Progress = Callable[[str, int, int], None]
"""Told of a stage, how much of it is done, and of how much; 0 where that is not known."""


class Scorer(Protocol):
    """Scores interactions in order; a ScoringError stands where one could not be scored."""

    async def score(self, interactions: Sequence[Interaction]) -> Sequence[Scored | ScoringError]:
        """One result per interaction."""
        ...

    @property
    def releases(self) -> Mapping[str, str]:
        """Model name to digest."""
        ...


@dataclass(frozen=True, slots=True)
class Production:
    """What was read of production: the ranges, and how each of their records is understood."""

    ranges: tuple[OffsetRange, ...]
    until_ms: int | None = None
    """Records from this time on are left out (Unix milliseconds, exclusive)."""
    maps: Mapping[str, FieldMapping | None] | None = None
    """By topic, where its values are not Interactions already."""
    limits: DecodingLimits = field(default_factory=DecodingLimits)


@dataclass(slots=True)
class Survey:
    """The sample of a range, and what was read for it."""

    sample: PromptSample
    read: int = 0
    undecodable: int = 0
    left_out: int = 0


async def survey(
    reader: RangeReader,
    production: Production,
    sample: PromptSample,
    progress: Progress = lambda *_: None,
) -> Survey:
    """Read the ranges once and draw the sample. What the scorer would refuse is counted.

    Raises TopicError and ReadError as the reader does, InputError for a sample of too much text.
    """
    found = Survey(sample)
    total = sum(item.end - item.start for item in production.ranges)
    maps = production.maps or {}
    async for record in reader.read(production.ranges):
        if production.until_ms is not None and record.timestamp_ms >= production.until_ms:
            continue
        found.read += 1
        if found.read % 1000 == 0:
            progress("read", found.read, total)
        try:
            item = decode_interaction(
                record.key,
                record.value,
                record.headers,
                production.limits,
                maps.get(record.topic),
                timestamp_ms=record.timestamp_ms,
            )
        except LeftOut:
            found.left_out += 1
        except InputError:
            found.undecodable += 1
        else:
            sample.add(item, (record.topic, record.partition, record.offset))
    progress("read", total, total)
    return found


@dataclass(frozen=True, slots=True)
class Candidate:
    """Who answers and who scores. Without a target the recorded answers are taken: of a new
    reward model alone. `policy` is the name under which the candidate is to be served."""

    policy: Policy
    target: Target | None
    scorer: Scorer
    present: Scorer
    """What is in use now; the same object as `scorer` where nothing of it changes."""


async def simulate(
    found: Survey,
    ranges: Sequence[OffsetRange],
    candidate: Candidate,
    *,
    by: Sequence[str],
    seed: int,
    made_at: datetime,
    detection: DetectionPolicy,
    refusal: str,
    progress: Progress = lambda *_: None,
) -> Forecast:
    """Answer and score the sample.

    Raises InputError for a sample that is too small to say anything, TargetError where more than
    MAX_UNANSWERED of it or all of its first FIRST_CHUNK have no answer or no score, or fewer than
    MIN_PROMPTS are left; SettingsError where the target can never work.
    """
    drawn = found.sample.drawn()
    if len(drawn) < MIN_PROMPTS:
        raise InputError(
            f"{len(drawn)} prompts in this range, of {found.read} records; a forecast needs "
            f"{MIN_PROMPTS} at least"
        )
    tally, reason, done = ForecastTally(), "", 0
    while done < len(drawn):
        part = drawn[done : done + (CHUNK if done else FIRST_CHUNK)]
        done += len(part)
        for item, result in zip(
            part, await _pairs(part, candidate, seed, detection, refusal), strict=True
        ):
            if isinstance(result, AresError):
                tally.miss(item)
                reason = reason or str(result)
            else:
                tally.add(item, result)
        if tally.unanswered > MAX_UNANSWERED * len(drawn) or not tally.answered:
            raise TargetError(
                f"{tally.unanswered} of the first {done} prompts have no answer or no score; the "
                f"first reason: {reason}"
            )
        progress("answer", done, len(drawn))
    if tally.answered < MIN_PROMPTS:
        raise TargetError(
            f"{tally.answered} of {len(drawn)} prompts have an answer and a score; a forecast "
            f"needs {MIN_PROMPTS} at least; the first reason: {reason}"
        )
    overall, slices = tally.places(found.sample.seen, found.sample.sizes())
    return Forecast(
        made_at=made_at,
        policy=declared(candidate.policy),
        ranges=tuple(ranges),
        seed=seed,
        sample=sample_digest(drawn),
        by=tuple(by),
        releases=dict(sorted(candidate.scorer.releases.items())),
        present=dict(sorted(candidate.present.releases.items())),
        detection_policy=detection.digest,
        read=found.read,
        undecodable=found.undecodable,
        left_out=found.left_out,
        unanswered=tally.unanswered,
        overall=overall,
        slices=slices,
    )


def _said(result: Result) -> str | TargetError:
    """An answer's text. One without any says nothing of the candidate, and judges would find it
    harmless: it is no answer, whether a filter took the text away or a server lost it."""
    if isinstance(result, Answer) and not result.text.strip():
        why = f" ({result.finish})" if result.finish in FINISHES else ""
        return TargetError(f"the answer is empty{why}")
    return result.text if isinstance(result, Answer) else result


async def _pairs(
    part: Sequence[Drawn],
    candidate: Candidate,
    seed: int,
    detection: DetectionPolicy,
    refusal: str,
) -> list[Pair | AresError]:
    """One Pair or AresError per prompt, in order."""
    recorded = [item.interaction for item in part]
    answers: list[str | AresError] = [item.response for item in recorded]
    if candidate.target is not None:
        # Never 0: a seed of 0 asks for the most likely answer, and production samples.
        queries = [
            Query(item.interaction.messages, 1 + stable_seed(seed, *item.coordinates) // 2)
            for item in part
        ]
        answers = [_said(item) for item in await candidate.target.ask(queries)]
    places = [k for k, answer in enumerate(answers) if isinstance(answer, str)]
    asked = [
        recorded[k].model_copy(update={"response": answers[k], "policy": candidate.policy})
        for k in places
    ]
    present = iter(await candidate.present.score([recorded[k] for k in places]))
    scored = iter(await candidate.scorer.score(asked))
    pairs: list[Pair | AresError] = []
    for item, answer in zip(recorded, answers, strict=True):
        if not isinstance(answer, str):
            pairs.append(answer)
            continue
        before, after = next(present), next(scored)
        if isinstance(before, ScoringError):
            pairs.append(before)
        elif isinstance(after, ScoringError):
            pairs.append(after)
        else:
            pairs.append(compare(before, item.response, after, answer, detection, refusal))
    return pairs
