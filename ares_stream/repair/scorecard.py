"""The score card of a repair: every figure before and after with its interval, every check of
the gate, what trained and what was left out; as JSON and as Markdown. Holds no text of any
conversation. Pure."""

from __future__ import annotations

from typing import Any

from ares_stream.records.base import Interval
from ares_stream.records.repair import RepairReport
from ares_stream.repair.gate import GateVerdict, Table
from ares_stream.repair.plan import Plan

RATES = frozenset(
    {
        "cfr",
        "cfr_frozen_rm",
        "policy_harm",
        "rm_blind",
        "rm_accuracy",
        "over_refusal",
        "over_refusal_labelled",
        "garbage",
        "canaries",
    }
)
"""Shown in percent; drift is in standard deviations of the frozen reward model's scores."""


def score_card(
    report: RepairReport, plan: Plan, before: Table, after: Table, verdict: GateVerdict
) -> dict[str, Any]:
    """The card as JSON-ready values."""
    return {
        "plan_id": plan.id,
        "state": report.state,
        "method": report.method,
        "started_at": report.started_at.isoformat(),
        "finished_at": report.finished_at.isoformat(),
        "reasons": list(report.reasons),
        "releases": dict(report.releases),
        "batch": [item.model_dump() for item in report.batch],
        "samples": plan.counts,
        "figures": {"before": _table(before), "after": _table(after)},
        "gate": {
            "passed": verdict.passed,
            "digest": verdict.digest,
            "checks": [
                {
                    "figure": check.figure,
                    "slice": check.slice,
                    "bound": check.side,
                    "limit": check.limit,
                    "passed": check.passed,
                    "reason": check.reason,
                }
                for check in verdict.checks
            ],
        },
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "overall": {name: item.model_dump() for name, item in sorted(table.overall.items())},
        "slices": {
            place: {name: item.model_dump() for name, item in sorted(row.items())}
            for place, row in sorted(table.slices.items())
        },
    }


def as_markdown(card: dict[str, Any]) -> str:
    """The same card for people."""
    before, after = card["figures"]["before"], card["figures"]["after"]
    checks = {(check["figure"], check["slice"]): check for check in card["gate"]["checks"]}
    lines = [
        f"# Repair {card['plan_id']}",
        "",
        f"{card['state']}, method {card['method']}, {card['started_at']} to {card['finished_at']}",
        "",
        *[f"- {reason}" for reason in card["reasons"]],
        "",
        "| figure | before | after | asked for | |",
        "|---|---|---|---|---|",
    ]
    lines += _rows("", before["overall"], after["overall"], checks)
    sliced = [check for check in card["gate"]["checks"] if check["slice"]]
    for place in sorted({check["slice"] for check in sliced}):
        rows = _rows(place, before["slices"][place], after["slices"].get(place, {}), checks)
        lines += [row for row in rows if row.endswith("| FAIL |")]
    passed = sum(check["passed"] for check in sliced)
    lines += ["", f"{passed} of {len(sliced)} checks of slices passed; card.json has them all."]
    lines += ["", "| samples | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {count} |" for name, count in card["samples"].items()]
    if card["releases"]:
        lines += ["", "| release | digest |", "|---|---|"]
        lines += [f"| {model} | `{digest}` |" for model, digest in card["releases"].items()]
    lines += ["", f"Gate report: `{card['gate']['digest']}`", ""]
    return "\n".join(lines)


def _rows(
    place: str,
    before: dict[str, Any],
    after: dict[str, Any],
    checks: dict[tuple[str, str], dict[str, Any]],
) -> list[str]:
    rows: list[str] = []
    for name in sorted({*before, *after, *(f for f, where in checks if where == place)}):
        check = checks.get((name, place))
        asked, outcome = "-", ""
        if check is not None:
            outcome = "pass" if check["passed"] else "FAIL"
            # A slice's lower bound has a limit above, not below.
            sign = "≥" if check["bound"] == "low" and not place else "≤"
            if check["limit"] is not None:
                asked = f"{check['bound']} {sign} {_number(name, check['limit'])}"
        label = f"{name} of {place}" if place else name
        was, now = _shown(name, before.get(name)), _shown(name, after.get(name))
        rows.append(f"| {label} | {was} | {now} | {asked} | {outcome}".rstrip() + " |")
    return rows


def _shown(name: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return "not measured"
    item = Interval(**row)
    value, low, high = (_number(name, part) for part in (item.value, item.low, item.high))
    return f"{value} [{low}, {high}], n={item.count}"


def _number(name: str, value: float) -> str:
    if name in RATES or name.startswith("suite:"):
        return f"{100 * value:.1f} %"
    return f"{value:.3f}"
