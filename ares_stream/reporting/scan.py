"""Scores a file of conversations without Kafka: the stream's decoding, scoring and decisions.

A line that cannot be read or scored is told and counted, and its neighbours go on. Memory is
bounded by one window of lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ares_stream.detection.assess import Scored, assess
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.intervals import wilson
from ares_stream.errors import InputError, ScoringError
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.interaction import Interaction, Lane
from ares_stream.records.mapping import Mapping
from ares_stream.records.verdict import FailureClass, SourceCoordinates, Verdict
from ares_stream.reporting.page import Findings, Report, Section, table_section

WINDOW_RECORDS = 256
WINDOW_BYTES = 8 * 1024 * 1024
MAX_TOLD = 100
"""Bad lines kept with their reasons; further ones are counted."""

Line = tuple[int, bytes]


class Scorer(Protocol):
    """Scores interactions in order; a ScoringError stands where one could not be scored."""

    async def score(self, interactions: Sequence[Interaction]) -> Sequence[Scored | ScoringError]:
        """One result per interaction."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """What is scanned: its name for people, SHA-256 of its content, number of lines, and the
    time that stands for interactions without one, in milliseconds since the epoch."""

    name: str
    digest: str
    lines: int
    timestamp_ms: int

    @property
    def topic(self) -> str:
        """What stands for the topic in verdicts: the same for the same content anywhere."""
        return f"file:{self.digest[:12]}"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that has no verdict, and why; the reason quotes nothing of it."""

    line: int
    stage: str
    reason: str


@dataclass(slots=True)
class ScanResult:
    """What a scan found. `bad` holds the first MAX_TOLD bad lines, `bad_count` counts all."""

    source: Source
    policy: DetectionPolicy
    findings: dict[Lane, Findings]
    scored: int = 0
    bad_count: int = 0
    bad: list[BadLine] = field(default_factory=list)

    @property
    def main(self) -> Findings:
        """Findings of the lane with more verdicts; the rates of both lanes are in either."""
        return max(
            self.findings.values(), key=lambda item: whole.total if (whole := item.total()) else 0
        )

    def summary(self) -> dict[str, Any]:
        """JSON-ready, without any text of the conversations. Intervals are Wilson's, 95 %."""
        whole = self.main.total(wilson)
        return {
            "schema": "ares.scan-summary/1",
            "input": {
                "name": self.source.name,
                "sha256": self.source.digest,
                "lines": self.source.lines,
            },
            "scored": self.scored,
            "refused": self.bad_count,
            "refused_lines": [
                {"line": item.line, "stage": item.stage, "reason": item.reason} for item in self.bad
            ],
            "classes": {name.value: whole.classes[name] if whole else 0 for name in FailureClass},
            "coupled_failure_rate": whole.cfr.model_dump() if whole else None,
            "rates": [item.as_json() for item in self.main.tally.estimates(wilson)],
            "releases": self.main.releases,
            "detection_policy": {
                "digest": self.policy.digest,
                **self.policy.model_dump(mode="json"),
            },
        }

    def report(self) -> Report:
        """The page for people; see ares_stream.reporting.page.render."""
        sections: list[Section] = list(self.main.sections(wilson))
        if self.bad_count:
            rows = [[str(item.line), item.stage, item.reason] for item in self.bad]
            note = f"{self.bad_count:,} lines have no verdict."
            sections.append(table_section("Refused lines", ["line", "stage", "reason"], rows, note))
        return Report(
            title="Scan report",
            subtitle=f"{self.source.name}: {self.scored:,} of {self.source.lines:,} lines scored",
            tiles=self.main.tiles(wilson),
            sections=tuple(sections),
            provenance={
                "input": f"sha256 {self.source.digest}",
                **{f"model {name}": digest for name, digest in self.main.releases.items()},
                "detection policy": self.policy.digest,
            },
        )


async def scan(
    lines: Iterable[Line],
    source: Source,
    scorer: Scorer,
    *,
    policy: DetectionPolicy,
    limits: DecodingLimits,
    mapping: Mapping | None = None,
    on_verdict: Callable[[Verdict], None],
    on_bad: Callable[[BadLine], None],
    on_progress: Callable[[int], None],
) -> ScanResult:
    """Score every line. Verdicts come in the order of the lines.

    An interaction with probe lineage is of the probe lane, any other of production. The
    source of a verdict is partition 0 at offset line - 1. `on_progress` hears of the number
    of the last line that was settled.
    """
    findings: dict[Lane, Findings] = {
        "production": Findings(policy, lane="production"),
        "probe": Findings(policy, lane="probe"),
    }
    result = ScanResult(source=source, policy=policy, findings=findings)

    def refuse(number: int, stage: str, error: Exception) -> None:
        item = BadLine(number, stage, str(error))
        result.bad_count += 1
        if len(result.bad) < MAX_TOLD:
            result.bad.append(item)
        on_bad(item)

    for window in _windows(lines):
        decoded: list[tuple[int, Interaction]] = []
        for number, line in window:
            key = f"{source.digest[:12]}-{number}".encode()
            try:
                interaction = decode_interaction(
                    key, line, (), limits, mapping, timestamp_ms=source.timestamp_ms
                )
            except InputError as error:
                refuse(number, "decode", error)
            else:
                decoded.append((number, interaction))
        scores = await scorer.score([item for _, item in decoded]) if decoded else ()
        for (number, interaction), scored in zip(decoded, scores, strict=True):
            if isinstance(scored, ScoringError):
                refuse(number, "score", scored)
                continue
            lane: Lane = "production" if interaction.probe is None else "probe"
            verdict = assess(
                interaction,
                scored,
                SourceCoordinates.checked(
                    topic=source.topic,
                    partition=0,
                    offset=number - 1,
                    timestamp_ms=int(interaction.occurred_at.timestamp() * 1000),
                ),
                lane,
                policy,
            )
            result.scored += 1
            on_verdict(verdict)
            for item in findings.values():
                item.add(verdict, interaction)
        on_progress(window[-1][0])
    return result


def _windows(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Consecutive lines, up to WINDOW_RECORDS and about WINDOW_BYTES."""
    window: list[Line] = []
    size = 0
    for number, line in lines:
        window.append((number, line))
        size += len(line)
        if len(window) >= WINDOW_RECORDS or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window
