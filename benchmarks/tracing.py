"""What traces cost the scorer's process, by its CPU time, with models that take no time.

    python -m benchmarks.tracing

Decoding, deciding, encoding and counting are the scorer's own; the broker's part is left out, so
that shares are of less than a whole event's time. Ways take turns in one run; the median counts.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from prometheus_client import CollectorRegistry

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import ScoringError
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Harm, Reward
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Scores
from ares_stream.services.metrics import ScorerMetrics
from ares_stream.services.settings import TracingSettings
from ares_stream.services.tracing import Tracing
from ares_stream.streaming.records import InboundRecord, OutboundRecord

RECORDS: Final = 4000
WINDOW: Final = 128
TURNS: Final = 9
WAYS: Final = {
    "off": None,
    "on, none sampled": 0.0,
    "on, 1 % sampled": 0.01,
    "on, all sampled": 1.0,
}


class NullScorer:
    """Gives everything the same opinion."""

    def __init__(self) -> None:
        self._scores = Scores(
            harm=Harm(probability=0.1, judges={"judge": 0.1}),
            reward=Reward(score=0.0, quantile=0.5),
            releases={"judge": "0" * 64, "reward": "1" * 64},
        )

    async def score(self, interactions: Sequence[Interaction]) -> list[Scores | ScoringError]:
        """The same for each."""
        return [self._scores] * len(interactions)


def records(share: float) -> list[InboundRecord]:
    """Conversations with a traceparent each, of which that share is sampled."""
    made = []
    for number in range(RECORDS):
        value = {
            "schema": "ares.interaction/1",
            "id": f"i-{number}",
            "occurred_at": datetime.now(UTC).isoformat(),
            "messages": [{"role": "user", "content": "What is a good way to say it? " * 5}],
            "response": "It depends on who listens, and on what they know. " * 8,
            "policy": {"name": "chat", "version": "7"},
        }
        sampled = number < share * RECORDS
        trace = f"00-{number + 1:032x}-{number + 1:016x}-0{int(sampled)}".encode()
        made.append(
            InboundRecord(
                "in", 0, number, int(time.time() * 1000), b"k", json.dumps(value).encode(),
                (("traceparent", trace),),
            )
        )  # fmt: skip
    return made


async def cpu_seconds(share: float | None) -> float:
    """CPU time of one turn, of all threads of this process."""
    # Nothing listens on the discard port: sending costs its try, as with a collector that is away.
    settings = TracingSettings(endpoint="http://127.0.0.1:9/v1/traces", batch_seconds=60)
    tracing = None if share is None else Tracing(settings, "scorer", closing_seconds=0.1)
    metrics = ScorerMetrics(CollectorRegistry())
    handler = ScoringHandler(
        NullScorer(),
        inputs=[Input("in", "production")],
        outputs=Outputs("verdicts", "repair", "review"),
        policy=DetectionPolicy(),
        limits=DecodingLimits(),
        review_sample=0.0,
        traced=tracing is not None,
    )
    batch = records(share or 0.0)
    began = time.process_time()
    for start in range(0, RECORDS, WINDOW):
        outcomes = await handler.handle(batch[start : start + WINDOW])
        notes = [
            item.note
            for outcome in outcomes
            if isinstance(outcome, tuple)
            for item in outcome
            if isinstance(item, OutboundRecord) and item.note is not None
        ]
        metrics.settled(notes)
        if tracing is not None:
            tracing.scored(notes)
    seconds = time.process_time() - began
    if tracing is not None:
        await tracing.aclose()
    return seconds


def main() -> None:
    """Print microseconds of CPU an event, and the ratio to no tracing."""
    turns: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(TURNS):
        for name, share in WAYS.items():
            turns[name].append(asyncio.run(cpu_seconds(share)))
    base = statistics.median(turns["off"])
    for name, seconds in turns.items():
        found = statistics.median(seconds)
        print(f"{name:18} {found / RECORDS * 1e6:6.1f} us an event, {found / base:.3f} of off")


if __name__ == "__main__":
    main()
