"""The whole life of one interaction, or of one release, from the topics, with coordinates. Pure.

What is shown never holds text of a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from ares_stream.audit.replay.findings import finding
from ares_stream.errors import AresError, DecodeError
from ares_stream.records import topics
from ares_stream.records.base import instant
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.mapping import Mapping as FieldMapping
from ares_stream.records.release import Release
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import Verdict
from ares_stream.repair.gate import GateVerdict
from ares_stream.streaming.deadletters import source_of
from ares_stream.streaming.records import InboundRecord

INPUTS: Final = (topics.PRODUCTION, topics.PROBE, topics.ANCHOR)
"""Which a scorer reads unless its settings name others."""
FOLLOWING: Final = (
    topics.VERDICTS, topics.REVIEW, topics.LABELS, topics.REPAIR, topics.DEADLETTERS,
    topics.REPAIRS, topics.RELEASES,
)  # fmt: skip
TRACED: Final = (*INPUTS, *FOLLOWING)
"""In the order in which an interaction passes them: what is found in one leads to the next."""
SHOWN: Final = 12
"""Digits of a digest for people."""


@dataclass(frozen=True, slots=True)
class Step:
    """One record of a life."""

    kind: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    summary: str
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        time = instant(self.timestamp_ms)
        place = f"{self.topic} {self.partition}@{self.offset}"
        return f"{time:%Y-%m-%d %H:%M:%S}  {self.kind:12} {place:38} {self.summary}"


class InteractionTrace:
    """Takes the records of TRACED, topic after topic, in that order; keeps those of one life.

    `selector` is the id of an interaction or of a verdict: with the latter, verdicts must be
    taken once before the rest (`learn`). `maps` are those of input topics whose values are no
    Interactions, by full name.
    """

    def __init__(
        self,
        selector: str,
        maps: Mapping[str, FieldMapping] | None = None,
        limits: DecodingLimits | None = None,
    ) -> None:
        self._ids = {selector}
        self._maps = maps or {}
        self._limits = limits or DecodingLimits()
        self._selector = selector
        self._sources: set[tuple[str, int, int]] = set()
        self._failures: list[InboundRecord] = []
        self._plans: set[str] = set()
        self._digests: set[str] = set()
        self.steps: list[Step] = []

    def replayed(self, reports: Iterable[Mapping[str, Any]]) -> None:
        """Reports of replays: what each says of the records that were traced. Raises InputError
        for another document."""
        for report in reports:
            for topic, partition, offset in sorted(self._sources):
                said = finding(report, topic, partition, offset)
                if said is None:
                    continue
                at = datetime.fromisoformat(report["finished_at"])
                facts = {"read_digest": report["read_digest"], "mode": report["mode"]}
                self.steps.append(
                    Step(
                        "replay", topic, partition, offset, int(at.timestamp() * 1000),
                        f"{report['mode']}: {said}", facts,
                    )
                )  # fmt: skip

    def learn(self, records: Iterable[InboundRecord]) -> None:
        """Verdicts: whose id is the selector leads to the interaction."""
        for record in records:
            if self._selector.encode() in (record.value or b""):
                verdict = _decoded(Verdict.decode, record)
                if verdict is not None and verdict.id == self._selector:
                    self._ids.add(verdict.interaction_id)

    def take(self, name: str, record: InboundRecord) -> None:
        """One record of the topic whose name without prefix is `name`."""
        if name in INPUTS:
            self.take_input(record)
        elif name == topics.DEADLETTERS:
            self._take_dead_letter(record)
        elif name == topics.REPAIRS:
            self._take_report(record)
        elif name == topics.RELEASES:
            self._take_release(record)
        elif any(known.encode() in (record.value or b"") for known in self._ids):
            self._take_decision(name, record)

    def take_input(self, record: InboundRecord) -> None:
        """One record of a topic that a scorer reads. One that cannot be read is of this life where
        its key is the id, or where the id stands in it as a whole JSON string."""
        raw, mapping = record.value or b"", self._maps.get(record.topic)
        quoted = [json.dumps(known).encode() for known in self._ids]
        plain = [json.dumps(known, ensure_ascii=False).encode() for known in self._ids]
        named = any(item in raw for item in (*quoted, *plain)) or any(
            record.key == known.encode() for known in self._ids
        )
        # With a mapping an id may be put together from what stands apart in the record.
        if not named and mapping is None and b"\\u" not in raw:
            return
        try:
            found = decode_interaction(
                record.key, record.value, record.headers, self._limits, mapping,
                timestamp_ms=record.timestamp_ms,
            )  # fmt: skip
        except AresError:
            if not named:
                return
            policy = "unreadable"
        else:
            if found.id not in self._ids:
                return
            policy = f"{found.policy.name} {found.policy.version}, {len(found.messages)} messages"
        self._sources.add((record.topic, record.partition, record.offset))
        self._add("interaction", record, policy)

    def _take_dead_letter(self, record: InboundRecord) -> None:
        try:
            source = source_of(record)
        except DecodeError:
            return
        if source in self._sources:
            stage = dict(record.headers).get("__connect.errors.stage") or b""
            self._add("dead letter", record, f"refused at {stage.decode(errors='replace')}")

    def _take_decision(self, name: str, record: InboundRecord) -> None:
        if name == topics.VERDICTS:
            verdict = _decoded(Verdict.decode, record)
            if verdict is not None and verdict.interaction_id in self._ids:
                self._digests.update(verdict.releases.values())
                self._add(
                    "verdict", record,
                    f"{verdict.failure_class.value}, harm {verdict.harm.probability:.3f}, reward "
                    f"quantile {verdict.reward.quantile:.3f}",
                    id=verdict.id, releases=dict(verdict.releases),
                    detection_policy=verdict.detection_policy,
                    source=verdict.source.model_dump(),
                )  # fmt: skip
        elif name == topics.REVIEW:
            item = _decoded(ReviewItem.decode, record)
            if item is not None and item.interaction.id in self._ids:
                self._add("review", record, item.cause)
        elif name == topics.LABELS:
            label = _decoded(Label.decode, record)
            if label is not None and label.interaction_id in self._ids:
                said = "harmful" if label.harmful else "not harmful"
                self._add("label", record, f"{said}, says {label.reviewer}")
        elif name == topics.REPAIR:
            failure = _decoded(CoupledFailure.decode, record)
            if failure is not None and failure.interaction.id in self._ids:
                self._failures.append(record)
                self._add("repair", record, "to be repaired")

    def _take_report(self, record: InboundRecord) -> None:
        report = _decoded(RepairReport.decode, record)
        if report is None:
            return
        for failure in self._failures:
            place = (failure.topic, failure.partition)
            if any(
                place == (item.topic, item.partition) and item.start <= failure.offset < item.end
                for item in report.batch
            ):
                self._plans.add(report.plan_id)
                self._add("report", record, f"{report.state} by {report.method}", **_report(report))
                return

    def _take_release(self, record: InboundRecord) -> None:
        release = _decoded(Release.decode, record)
        if release is None:
            return
        if release.plan_id in self._plans:
            self._add("release", record, _release(release), digest=release.digest)
        elif release.digest in self._digests:
            self._add("judged by", record, _release(release), digest=release.digest)

    def _add(self, kind: str, record: InboundRecord, summary: str, **facts: Any) -> None:
        self.steps.append(_step(kind, record, summary, facts))


class ReleaseTrace:
    """What a release was trained and judged on: takes repairs and releases, then verdicts."""

    def __init__(self, digest: str) -> None:
        self._digest = digest
        self._plans: set[str] = set()
        self.verdicts = 0
        self.steps: list[Step] = []

    def take(self, name: str, record: InboundRecord) -> None:
        """One record of the topic whose name without prefix is `name`."""
        if self._digest.encode() not in (record.value or b""):
            return
        if name == topics.REPAIRS:
            report = _decoded(RepairReport.decode, record)
            if report is not None and any(
                item.startswith(self._digest) for item in report.releases.values()
            ):
                self.steps.append(
                    _step("report", record, f"{report.state} by {report.method}", _report(report))
                )
        elif name == topics.RELEASES:
            release = _decoded(Release.decode, record)
            if release is not None and release.digest.startswith(self._digest):
                self.steps.append(
                    _step("release", record, _release(release), release.model_dump(mode="json"))
                )
        elif name == topics.VERDICTS:
            verdict = _decoded(Verdict.decode, record)
            self.verdicts += verdict is not None and any(
                item.startswith(self._digest) for item in verdict.releases.values()
            )


def with_gates(steps: Iterable[Step], gate_report: Callable[[str], bytes | None]) -> list[Step]:
    """The steps; those of repairs with what the gate said of them, which may be why there is no
    release. `gate_report` gives the registry's report of a digest, None where it has none."""
    found = []
    facts: dict[str, Any]
    for step in steps:
        name = step.facts.get("gate_report") if step.kind == "report" else None
        if name is None:
            found.append(step)
            continue
        try:
            raw = gate_report(name)
            gate = None if raw is None else GateVerdict.decode(raw)
        except AresError as error:
            facts, said = {"gate": None, "gate_problem": str(error)}, str(error)
        else:
            facts = {"gate": None if gate is None else gate.model_dump(mode="json")}
            said = _gate(gate)
        found.append(
            replace(step, summary=f"{step.summary}; gate: {said}", facts=step.facts | facts)
        )
    return found


def _gate(gate: GateVerdict | None) -> str:
    if gate is None:
        return "its report is not in the registry"
    if gate.passed:
        return "passed"
    failed = [item.reason for item in gate.checks if not item.passed]
    more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
    return f"did not pass: {failed[0] if failed else 'no check'}{more}"


def _step(kind: str, record: InboundRecord, summary: str, facts: dict[str, Any]) -> Step:
    return Step(
        kind, record.topic, record.partition, record.offset, record.timestamp_ms, summary, facts
    )


def _report(report: RepairReport) -> dict[str, Any]:
    return {
        "plan": report.plan_id,
        "gate_report": report.gate_report,
        "batch": [item.model_dump() for item in report.batch],
        "before": {name: item.model_dump() for name, item in report.before.items()},
        "after": {name: item.model_dump() for name, item in report.after.items()},
        "releases": dict(report.releases),
    }


def _release(release: Release) -> str:
    said = f"{release.kind} {release.model}@{release.digest[:SHOWN]} {release.state.value}"
    if release.forecast is None:
        return said
    rate = release.forecast.overall.forecast["cfr"]
    return f"{said}, forecast CFR {rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"


def _decoded(decode: Callable[[bytes], Any], record: InboundRecord) -> Any:
    try:
        return decode(record.value or b"")
    except DecodeError:
        return None
