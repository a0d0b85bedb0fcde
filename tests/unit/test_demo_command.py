"""How `ares demo` ends: its exit code is what it found."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from typer.testing import CliRunner

from ares_stream.audit.accounting import Account
from ares_stream.cli.main import app
from ares_stream.demo import run
from ares_stream.demo.contract import DemoSummary
from ares_stream.records.base import Interval, OffsetRange
from ares_stream.records.repair import RepairReport
from ares_stream.services.rounds import Round

RATE = Interval(value=0.1, low=0.05, high=0.2, count=100)


def summary(folder: Path, state: str | None, lost: int) -> DemoSummary:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    report = state and RepairReport.model_validate(
        {
            "plan_id": "plan",
            "state": state,
            "method": "joint",
            "batch": (OffsetRange(topic="ares.repair", partition=0, start=0, end=4),),
            "reasons": ("the training process ended with 1",),
            "before": {},
            "after": {},
            "started_at": now,
            "finished_at": now,
        }
    )
    return DemoSummary(
        synthetic=True,
        rate=RATE,
        account=Account(10, 10 - lost, 0, 1, 1, lost, 0, 0, 0, 0),
        rounds=(Round(1, "p-1", 100, 100, 9, 3, RATE, report or None),),
        releases={},
        seconds={},
        report=folder / "report.html",
        monitored={},
    )


@pytest.mark.parametrize(
    ("state", "lost", "code"),
    [
        ("failed", 0, 1),
        ("failed", 1, 1),
        ("promoted", 1, 1),
        ("promoted", 0, 0),
        ("rejected", 0, 0),
        ("awaiting_approval", 0, 0),
        (None, 0, 0),
    ],
)
def test_a_repair_that_broke_off_and_a_lost_record_end_the_demo_with_1(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: Literal["failed", "promoted", "rejected", "awaiting_approval"] | None,
    lost: int,
    code: int,
) -> None:
    async def ended(_options: Any, _view: Any, linger: Any) -> DemoSummary:
        found = summary(tmp_path, state, lost)
        await linger(found)
        return found

    # What the minutes before do is in tests/integration/test_demo.py.
    monkeypatch.setattr(run, "run_demo", ended)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "out")])
    assert done.exit_code == code, done.output
