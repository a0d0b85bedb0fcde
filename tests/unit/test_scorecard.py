"""The score card shows every figure with its interval and every check, and no conversation."""

import json
from datetime import UTC, datetime

from ares_stream.detection.intervals import wilson
from ares_stream.records.base import OffsetRange
from ares_stream.records.repair import RepairReport
from ares_stream.repair.gate import GatePolicy, Table, decide
from ares_stream.repair.scorecard import as_markdown, score_card
from tests.support.failures import batch, made
from tests.support.gate_tables import INCUMBENT, REPAIRED

BEFORE = Table(
    overall=INCUMBENT,
    slices={"topic=a": {"policy_harm": wilson(2, 10)}, "topic=b": {"policy_harm": wilson(1, 2)}},
)
AFTER = Table(
    overall=REPAIRED | {"suite:canaries": wilson(19, 20)},
    slices={"topic=a": {"policy_harm": wilson(10, 10)}},
)
PLAN = made(batch(12))
VERDICT = decide(BEFORE, AFTER, GatePolicy())
REPORT = RepairReport(
    plan_id=PLAN.id,
    state="rejected",
    method="joint",
    batch=(OffsetRange(topic="ares.repair", partition=0, start=3, end=40),),
    reasons=VERDICT.reasons,
    before=BEFORE.overall,
    after=AFTER.overall,
    releases={"rm": "a" * 64},
    started_at=datetime(2026, 3, 1, tzinfo=UTC),
    finished_at=datetime(2026, 3, 1, 1, tzinfo=UTC),
)
CARD = score_card(REPORT, PLAN, BEFORE, AFTER, VERDICT)


def test_the_card_holds_every_figure_with_its_interval() -> None:
    for when, table in (("before", BEFORE), ("after", AFTER)):
        shown = CARD["figures"][when]["overall"]
        assert set(shown) == set(table.overall)
        assert all(set(row) == {"value", "low", "high", "count"} for row in shown.values())
    assert json.loads(json.dumps(CARD)) == CARD


def test_the_card_holds_every_check_and_what_trained() -> None:
    failed = [check["figure"] for check in CARD["gate"]["checks"] if not check["passed"]]
    assert failed == [check.figure for check in VERDICT.checks if not check.passed] != []
    assert CARD["gate"]["digest"] == VERDICT.digest
    assert CARD["samples"] == PLAN.counts


def test_the_page_shows_rates_in_percent_drift_in_deviations_and_failed_checks() -> None:
    lines = as_markdown(CARD).splitlines()
    (cfr,) = [line for line in lines if line.startswith("| cfr |")]
    assert cfr == (
        "| cfr | 91.7 % [85.3 %, 95.4 %], n=120 | 0.8 % [0.1 %, 4.6 %], n=120 "
        "| high ≤ 45.8 % | pass |"
    )
    (drift,) = [line for line in lines if line.startswith("| drift_fixed |")]
    assert "0.080 [0.060, 0.100], n=200 | high ≤ 0.250 | pass |" in drift
    (canaries,) = [line for line in lines if line.startswith("| suite:canaries |")]
    assert "| not measured | 95.0 %" in canaries
    (sliced,) = [line for line in lines if line.startswith("| policy_harm of topic=a |")]
    assert sliced.endswith("| FAIL |")
    assert not [line for line in lines if "topic=b" in line], "too small to be checked"


def test_the_page_names_releases_reasons_and_the_gate_report() -> None:
    page = as_markdown(CARD)
    assert f"Gate report: `{VERDICT.digest}`" in page
    assert f"| rm | `{'a' * 64}` |" in page
    assert all(f"- {reason}" in page for reason in REPORT.reasons)


def test_no_word_of_a_conversation_is_on_the_card() -> None:
    text = json.dumps(CARD) + as_markdown(CARD)
    for sample in (*PLAN.train, *PLAN.held_out):
        assert sample.harmful not in text
        assert sample.safe not in text
        assert sample.prompt_messages[0].content not in text
