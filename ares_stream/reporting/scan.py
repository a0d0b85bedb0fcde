"""Scores a file of conversations without Kafka: the stream's decoding, scoring and decisions.

A line that cannot be read or scored is told and counted, and its neighbours go on. Memory is
bounded by one window of lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from ares_stream.detection.assess import Scored, assess
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import InputError, LeftOut, ScoringError
from ares_stream.records.base import Interval
from ares_stream.records.decoding import DecodingLimits, decode_interactions
from ares_stream.records.interaction import Interaction, Lane
from ares_stream.records.mapping import Mapping as RecordMapping
from ares_stream.records.rates import Rates
from ares_stream.records.verdict import FailureClass, SourceCoordinates, Verdict
from ares_stream.reporting import charts
from ares_stream.reporting.judged import PROMPT, Judged, JudgedCounts
from ares_stream.reporting.page import EVERYTHING, Findings, Report, Section, Tile, table_section

WINDOW_RECORDS = 256
WINDOW_BYTES = 8 * 1024 * 1024
MAX_REPORTED = 100
"""Bad lines kept with their reasons; further ones are counted."""

FEW_REFERENCE: Final = 200
"""Reference answers below which a quantile near the middle is known to worse than 7 points."""

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


@dataclass(frozen=True, slots=True)
class Reference:
    """The reward bundle's reference: how many answers, and the digest that names the set."""

    count: int
    version: str

    @property
    def few(self) -> bool:
        """Whether a quantile among so few says little."""
        return self.count < FEW_REFERENCE

    @property
    def note(self) -> str:
        """What a reward quantile is a place among, and a warning where the answers are few."""
        text = (
            f"Reward quantiles are places among the {self.count:,} reference answers of the bundle"
        )
        text += (
            f" (set {self.version[:12]}); that these are good answers to harmless prompts is the "
        )
        text += "claim of whoever made it."
        if self.few:
            text += f" {self.count} are few (below {FEW_REFERENCE}): a quantile is uncertain by "
            text += f"{1 / math.sqrt(self.count):.0%} either way."
        return text


@dataclass(slots=True)
class ScanResult:
    """What a scan found. `bad` holds the first MAX_REPORTED bad lines, `bad_count` counts all."""

    source: Source
    policy: DetectionPolicy
    findings: dict[Lane, Findings]
    counts: dict[Lane, JudgedCounts]
    reference: Reference | None = None
    scored: int = 0
    several: bool = False
    """Whether a line held several conversations; `scored` counts each."""
    bad_count: int = 0
    left_out: int = 0
    """Lines that the mapping's `where` leaves out."""
    bad: list[BadLine] = field(default_factory=list)

    @property
    def main(self) -> Findings:
        """Findings of the lane with more verdicts; the rates of both lanes are in either."""
        return max(self.findings.values(), key=lambda item: item.seen)

    def judged(self) -> Judged:
        """The main lane's rate with what labels say of it."""
        return self.counts[self.main.lane].judged()

    def rates(self) -> list[Rates]:
        """What the monitor would say of these verdicts: each version as a whole and its slices.

        Where labels of too few prompts correct no rate of the whole, they correct no slice."""
        judged = self.judged()
        found = self.main.ledger.rates()
        if judged.rate.corrected is not None:
            return found
        return [_uncorrected(item, judged.rate.reason) for item in found]

    def summary(self) -> dict[str, Any]:
        """JSON-ready, without any text of the conversations. The rates of the whole are for one
        look (Wilson, or by cluster); those under `rates` are the monitor's."""
        whole = self.main.total()
        judged = self.judged().as_json()
        if whole is None:
            judged |= {"coupled_failure_rate": None, "contested_as_harmful": None}
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
            "classes": {
                name.value: round(whole.classes[name].value * whole.total) if whole else 0
                for name in FailureClass
            },
            **judged,
            "reward_reference": None
            if self.reference is None
            else {"count": self.reference.count, "version": self.reference.version},
            "rates": [item.as_report() for item in self.rates()],
            "folded": dict(sorted(self.main.ledger.folded.items())),
            "releases": self.main.releases,
            "detection_policy": {
                "digest": self.policy.digest,
                **self.policy.model_dump(mode="json"),
            },
        }

    def report(self) -> Report:
        """The page for people; see ares_stream.reporting.page.render."""
        main, judged = self.main, self.judged()
        reference = self.reference.note if self.reference else ""
        sections: list[Section] = list(main.sections(reference))
        if judged.labels:
            sections.insert(1, _judge_section(judged))
        if self.bad_count:
            rows = [[str(item.line), item.stage, item.reason] for item in self.bad]
            note = f"{self.bad_count:,} lines have no verdict."
            sections.append(table_section("Refused lines", ["line", "stage", "reason"], rows, note))
        tiles = main.tiles()
        if main.total() is not None:
            tiles = (tiles[0], *_rate_tiles(judged), *tiles[2:])
        return Report(
            title="Scan report",
            subtitle=f"{self.source.name}: {self.scored:,} "
            + (f"conversations in {self.source.lines:,} lines" if self.several else "")
            + ("" if self.several else f"of {self.source.lines:,} lines scored"),
            tiles=tiles,
            sections=tuple(sections),
            provenance={
                "input": f"sha256 {self.source.digest}",
                **{f"model {name}": digest for name, digest in self.main.releases.items()},
                "detection policy": self.policy.digest,
            },
        )


def _uncorrected(item: Rates, reason: str) -> Rates:
    correction = item.figures.correction
    if not correction.corrected:
        return item
    changed = correction.model_copy(update={"corrected": False, "reason": reason, "rate": None})
    return item.model_copy(
        update={"figures": item.figures.model_copy(update={"correction": changed})}
    )


def _rate_tiles(judged: Judged) -> tuple[Tile, ...]:
    """The rate with contested answers as harmless, as harmful, and corrected, or why it is not."""
    rate = judged.rate
    rows = "" if judged.clusters is None else f"; {judged.clusters:,} clusters"
    tiles = [
        Tile(
            "coupled-failure rate",
            charts.percent(rate.raw.value),
            f"{charts.span(rate.raw)}{rows}; contested counted as harmless",
            rate.raw.value > 0,
        ),
        Tile(
            "if all contested are harmful",
            charts.percent(rate.contested_harmful.value),
            charts.span(rate.contested_harmful),
        ),
    ]
    if rate.corrected is None:
        tiles.append(Tile("corrected by labels", "no", rate.reason))
    else:
        note = f"{charts.span(rate.corrected)}; {judged.labels:,} labels"
        tiles.append(Tile("corrected by labels", charts.percent(rate.corrected.value), note, True))
    return tuple(tiles)


def _judge_section(judged: Judged) -> Section:
    """What the judge misses, where the reward model likes the answer and where it does not."""
    rows = [
        [name, *(_figure(item) for item in (error.sensitivity, error.specificity))]
        for name, error in (("liked", judged.rate.liked), ("disliked", judged.rate.disliked))
    ]
    note = (
        f"By {judged.labels:,} labels, contested counted as not flagged. A judge that misses more "
        "where the reward model likes the answer makes the uncorrected rate too low."
    )
    if judged.unmatched:
        note += f" {judged.unmatched:,} labels belong to no line of this lane."
    header = ["reward model", "harmful answers found", "safe answers left alone"]
    return table_section("The judge against people", header, rows, note)


def _figure(item: Interval | None) -> str:
    if item is None:
        return "no label says"
    return f"{charts.percent(item.value)} ({charts.span(item)}; {item.count} labels)"


async def scan(
    lines: Iterable[Line],
    source: Source,
    scorer: Scorer,
    *,
    policy: DetectionPolicy,
    limits: DecodingLimits,
    mapping: RecordMapping | None = None,
    labels: Mapping[str, bool] | None = None,
    cluster: str | None = None,
    slices: LedgerPolicy = EVERYTHING,
    reference: Reference | None = None,
    on_verdict: Callable[[Verdict], None],
    on_bad: Callable[[BadLine], None],
    on_progress: Callable[[int], None],
) -> ScanResult:
    """Score every line. Verdicts come in the order of the lines.

    `labels` are people's, by interaction id; `cluster` names the attribute whose rows are alike,
    or is "prompt"; `slices` says which attributes the monitor's rates are told by.

    An interaction with probe lineage is of the probe lane, any other of production. The source of
    a verdict is offset line - 1 of partition 0, or of 1, 2, ... for further conversations of the
    same line (see Mapping.apply_all). `on_progress` hears of the number of the last line that was
    settled.
    """
    ledger = Ledger(replace(slices, cluster=None if cluster == PROMPT else cluster))
    findings: dict[Lane, Findings] = {
        "production": Findings(policy, lane="production", ledger=ledger),
        "probe": Findings(policy, lane="probe", ledger=ledger),
    }
    counts = {lane: JudgedCounts(policy, labels, cluster) for lane in findings}
    result = ScanResult(source, policy, findings, counts, reference)

    def refuse(number: int, stage: str, error: Exception) -> None:
        item = BadLine(number, stage, str(error))
        result.bad_count += 1
        if len(result.bad) < MAX_REPORTED:
            result.bad.append(item)
        on_bad(item)

    for window in _windows(lines):
        decoded: list[tuple[int, int, Interaction]] = []
        for number, line in window:
            key = f"{source.digest[:12]}-{number}".encode()
            try:
                found = decode_interactions(
                    key, line, (), limits, mapping, timestamp_ms=source.timestamp_ms
                )
            except LeftOut:
                result.left_out += 1
            except InputError as error:
                refuse(number, "decode", error)
            else:
                decoded += [(number, place, item) for place, item in enumerate(found)]
                result.several = result.several or len(found) > 1
        scores = await scorer.score([item for *_, item in decoded]) if decoded else ()
        for (number, place, interaction), scored in zip(decoded, scores, strict=True):
            if isinstance(scored, ScoringError):
                refuse(number, "score", scored)
                continue
            lane: Lane = "production" if interaction.probe is None else "probe"
            verdict = assess(
                interaction,
                scored,
                SourceCoordinates.checked(
                    topic=source.topic,
                    partition=place,
                    offset=number - 1,
                    timestamp_ms=int(interaction.occurred_at.timestamp() * 1000),
                ),
                lane,
                policy,
            )
            result.scored += 1
            on_verdict(verdict)
            harmful = None if labels is None else labels.get(interaction.id)
            findings[lane].add(verdict, interaction, harmful)
            counts[lane].add(verdict, interaction)
        ledger.fold_windows()
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
