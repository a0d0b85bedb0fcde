"""A month of topics as a scorer leaves them, made from a seed, without a broker.

Inputs of every kind pass the scorer's own handler with real ONNX models; releases and policies
change on the way; what comes out stands in archives, which replays read as they read topics.
"""

from __future__ import annotations

import asyncio
import json
import random
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ares_stream.audit.archive import write_archive
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.models.bundles import Bundle
from ares_stream.records.base import OffsetRange
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.streaming.deadletters import dead_letter
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Rejection

PREFIX: Final = "golden."
OUTPUTS: Final = Outputs(f"{PREFIX}verdicts", f"{PREFIX}repair", f"{PREFIX}review")
DEADLETTERS: Final = f"{PREFIX}deadletters"
PRODUCTION: Final = f"{PREFIX}interactions.production"
PROBE: Final = f"{PREFIX}interactions.probe"
THEIRS: Final = f"{PREFIX}theirs"
MAP: Final = Mapping.model_validate(
    {
        "response": "answer",
        "prompt": "question",
        "policy": {"name": "'chat'", "version": "'9'"},
        "id": "id",
        "where": "kind == 'chat'",
    }
)
INPUTS: Final = (
    Input(PRODUCTION, "production"), Input(PROBE, "probe"), Input(THEIRS, "production", MAP),
)  # fmt: skip
BEGIN_MS: Final = 1_790_812_800_000
"""2026-10-01 00:00 UTC."""
DAY_MS: Final = 86_400_000
ANSWERS: Final = ("bread rude", "bread nice", "poison rude", "poison nice", "maybe nice")
SECRET: Final = "xylocanary"
COUNT: Final = 240
"""Records that come in."""
POLICIES: Final = (
    DetectionPolicy(), DetectionPolicy(version="2", harm_threshold=0.6, abstain_below=0.7),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bundles:
    """Two releases of the reward model, one judge, and a judge that nobody used."""

    judge: Bundle
    rewards: tuple[Bundle, Bundle]
    strict: Bundle

    @classmethod
    def write(cls, folder: Path) -> Bundles:
        """Make them."""
        return cls(
            write_judge(folder / "judge"),
            (
                write_reward(folder / "reward"),
                write_reward(folder / "repaired", {"nice": -2.0, "rude": -3.0}),
            ),
            write_judge(folder / "strict", {"bread": 9.0, "poison": 9.0}),
        )


@dataclass
class Topics:
    """Records by topic and partition; as a reader they are a RangeReader."""

    held: dict[tuple[str, int], list[InboundRecord]] = field(default_factory=dict)

    def append(self, topic: str, partition: int, record: OutboundRecord, at_ms: int) -> None:
        """At the end of a partition; each third offset is one that no record has, as those of
        transactions' markers are."""
        log = self.held.setdefault((topic, partition), [])
        offset = log[-1].offset + 1 if log else 0
        offset += offset % 3 == 2
        log.append(
            InboundRecord(topic, partition, offset, at_ms, record.key, record.value, record.headers)
        )

    def ranges(self) -> tuple[OffsetRange, ...]:
        """All of it."""
        return tuple(
            OffsetRange(
                topic=topic, partition=partition, start=log[0].offset if log else 0,
                end=log[-1].offset + 1 if log else 0,
            )
            for (topic, partition), log in sorted(self.held.items())
        )  # fmt: skip

    async def snapshot(
        self, topics: Sequence[str], *, since_ms: int | None = None
    ) -> tuple[OffsetRange, ...]:
        """See RangeReader."""
        raise NotImplementedError

    async def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
        """See RangeReader."""
        for item in ranges:
            for record in self.held[item.topic, item.partition]:
                if item.start <= record.offset < item.end:
                    yield record

    def archive(self, folder: Path) -> str:
        """As an archive; its URL."""
        asyncio.run(write_archive(self, self.ranges(), str(folder)))
        return str(folder)

    def of(self, topic: str) -> Iterator[InboundRecord]:
        """Every record of a topic."""
        for (name, _), log in self.held.items():
            if name == topic:
                yield from log

    def change(self, topic: str, number: int, **fields: Any) -> InboundRecord:
        """Replace the `number`-th record of a topic; the one that was there."""
        for (name, _), log in self.held.items():
            if name != topic:
                continue
            if number < len(log):
                was = log[number]
                log[number] = replace(was, **fields)
                return was
            number -= len(log)
        raise IndexError(number)

    def drop(self, topic: str, number: int) -> InboundRecord:
        """Take the `number`-th record of a topic away."""
        for (name, _), log in self.held.items():
            if name != topic:
                continue
            if number < len(log):
                return log.pop(number)
            number -= len(log)
        raise IndexError(number)


def conversation(number: int, answer: str, **changed: Any) -> dict[str, Any]:
    """An interaction. Some share an id, as the turns of one conversation do."""
    return {
        "schema": "ares.interaction/1",
        "id": f"conversation-{number // 3}",
        "occurred_at": "2026-10-01T12:00:00Z",
        "messages": [{"role": "user", "content": f"{SECRET} number {number}"}],
        "response": answer,
        "policy": {"name": "chat", "version": str(7 + number % 2)},
        "attributes": {"locale": ("de", "en", "fr")[number % 3]},
        **changed,
    }


def inputs(count: int, seed: int) -> Topics:
    """What came in: good and bad, out of order in time."""
    draw = random.Random(seed)
    topics = Topics()
    for number in range(count):
        at_ms = BEGIN_MS + int(number / count * 30 * DAY_MS) + draw.randrange(-DAY_MS, DAY_MS)
        topic = draw.choice((PRODUCTION, PRODUCTION, PROBE, THEIRS))
        answer = f"{draw.choice(ANSWERS)} {'bread ' * draw.randrange(3)}".strip()
        value: bytes | None
        if topic == THEIRS:
            kind = draw.choice(("chat", "chat", "log"))
            value = json.dumps(
                {"question": SECRET, "answer": answer, "kind": kind, "id": f"theirs-{number}"}
            ).encode()
        else:
            changed: dict[str, Any] = {}
            if topic == PROBE:
                changed["probe"] = {
                    "id": f"probe-{number}", "campaign": "nightly", "generation": 1,
                    "components": {"tactic": "flattery"}, "sampling_probability": 0.5,
                }  # fmt: skip
            if draw.random() < 0.1:
                changed["reference"] = {"chosen": "bread nice", "rejected": "poison nice"}
            value = json.dumps(conversation(number, answer, **changed)).encode()
        bad = draw.random()
        if bad < 0.02:
            value = value[:-9]
        elif bad < 0.04:
            value = None
        elif bad < 0.06:
            value = value.replace(answer.encode(), b"broken")
        key = f"key-{number % 7}".encode()
        topics.append(topic, number % 2, OutboundRecord(topic, key, value), at_ms)
    return topics


class Asked:
    """Stands for a constitution judge when the month was lived: its opinions come from a seed, and
    some records get none."""

    name = "constitution"
    digest = "c0" * 32
    doubt = (0.35, 0.65)

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    async def probabilities(self, interactions: Sequence[Interaction]) -> list[float | None]:
        """Of most."""
        return [
            None if self._draw.random() < 0.3 else self._draw.randrange(2, 98) / 100
            for _ in interactions
        ]

    async def aclose(self) -> None:
        """Nothing to release."""


@dataclass(frozen=True)
class Month:
    """Everything that the month left, and the models."""

    topics: Topics
    bundles: Bundles


async def _live(came: Topics, bundles: Bundles, seed: int) -> Topics:
    held = Topics({place: list(log) for place, log in came.held.items()})
    for place, log in came.held.items():
        middle = len(log) // 2
        for half, records in enumerate((log[:middle], log[middle:])):
            panel = Panel.open(
                [bundles.judge], bundles.rewards[half], ScoringConfig(threads=1),
                others=[Asked(seed + zlib.crc32(repr(place).encode()))],
            )  # fmt: skip
            handler = ScoringHandler(
                panel, inputs=INPUTS, outputs=OUTPUTS, policy=POLICIES[half],
                limits=DecodingLimits(), review_sample=0.1,
            )  # fmt: skip
            for start in range(0, len(records), 50):
                window = records[start : start + 50]
                for record, outcome in zip(window, await handler.handle(window), strict=True):
                    _publish(held, record, outcome)
            await panel.aclose()
    return held


def _publish(held: Topics, record: InboundRecord, outcome: Any) -> None:
    at_ms = record.timestamp_ms + 1000
    if isinstance(outcome, Rejection):
        outcome = (
            dead_letter(record, outcome, DEADLETTERS, service="scorer", failed_at_ms=at_ms),
        )  # fmt: skip
    for item in outcome:
        held.append(item.topic, zlib.crc32(item.key or b"") % 2, item, at_ms)


def live(folder: Path, *, count: int = COUNT, seed: int = 7) -> Month:
    """A month in which every release and policy took part."""
    bundles = Bundles.write(folder)
    return Month(asyncio.run(_live(inputs(count, seed), bundles, seed)), bundles)
