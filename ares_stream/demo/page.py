"""The demo's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from ares_stream.demo.contract import DemoSummary
from ares_stream.demo.monitor import Monitored, monitor_sections
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.lab.streams import Held
from ares_stream.records.base import Interval
from ares_stream.reporting.charts import Series
from ares_stream.reporting.page import Findings, Report, Section, Tile, curve_section, table_section
from ares_stream.services.rounds import Round
from ares_stream.streaming.deadletters import reason_of


def demo_page(
    summary: DemoSummary,
    findings: Findings,
    policy: DetectionPolicy,
    held: Held,
    seen: Monitored,
) -> Report:
    """Rounds first, then what the stream held, then the count."""
    counted = summary.account
    once = Tile(
        "exactly once",
        "holds" if counted.exactly_once else "broken",
        f"{counted.sent:,} sent, {counted.lost} lost, {counted.doubled} doubled",
        grave=not counted.exactly_once,
    )
    sections: list[Section] = list(findings.sections())
    rows = [[record.key.decode(errors="replace") if record.key else "", *reason_of(record)]
            for record in held.letters[:100]]  # fmt: skip
    if rows:
        note = f"{len(held.letters):,} records could not be read; their neighbours went on."
        sections.append(table_section("Dead letters", ["key", "stage", "reason"], rows, note))
    sections += monitor_sections(seen)
    if (proven := summary.proven) is not None:
        rows = [["proof of", proven.verdict], ["in", proven.proof], ["holds for", proven.key],
                ["replay", "as recorded" if proven.holds else "differs; see replay.html"],
                *([name, f"{count:,} records"] for name, count in proven.counts.items() if count),
                ["SHA-256 of what it read", proven.read_digest]]  # fmt: skip
        note = "Proof and replay are as an auditor makes them: docs/audit.md and docs/replay.md."
        sections.append(table_section("Proven", ["what", ""], rows, note))
    if summary.rounds:
        sections[:0] = _rounds_sections(summary.rounds)
    rows = [[name, str(value)] for name, value in asdict(counted).items()]
    sections.append(
        table_section(
            "The count",
            ["what", "records"],
            rows,
            "By a reader of its own that sees committed records only.",
        )
    )
    subtitle = (
        "Synthetic conversations in an invented language; tiny models with planted weaknesses. "
        "Kafka, transactions, ONNX sessions and the count are real."
        if summary.synthetic
        else "Your conversations through a real Kafka, scored by your bundles."
    )
    return Report(
        title="Demo report",
        subtitle=subtitle,
        tiles=(*findings.tiles(), once),
        sections=tuple(sections),
        provenance={
            **{f"model {name}": digest for name, digest in findings.releases.items()},
            "detection policy": policy.digest,
        },
    )


GATED: Final = ("cfr", "cfr_frozen_rm", "policy_harm", "rm_blind", "over_refusal", "drift_fixed")
"""Figures of a repair that the page shows; its report on the topic has all."""


def _rounds_sections(rounds: Sequence[Round]) -> list[Section]:
    curve = curve_section(
        "Failures found per probe, round by round",
        [Series("confirmed coupled failures per probe", tuple(item.rate for item in rounds))],
        [f"round {item.number}" for item in rounds],
        "The same search against the policy as it was then; Wilson's 95 % intervals.",
    )
    rows = [
        [
            str(item.number),
            item.policy,
            str(item.queries),
            str(item.failures),
            str(item.unique),
            item.repair.state if item.repair else "",
        ]
        for item in rounds
    ]
    header = ["round", "policy", "queries", "failures", "unlike failures", "repair after it"]
    found = [curve, table_section("Rounds", header, rows)]
    for item in rounds:
        if (report := item.repair) is None:
            continue
        figures = [
            [name, _interval(report.before[name]), _interval(report.after[name])]
            for name in GATED
            if name in report.before and name in report.after
        ]
        note = "; ".join(report.reasons)
        title = f"Repair after round {item.number}: {report.state}"
        found.append(
            table_section(title, ["on held-out prompts", "before", "after"], figures, note)
        )
    return found


def _interval(item: Interval) -> str:
    return f"{item.value:.3f} ({item.low:.3f} to {item.high:.3f})"
