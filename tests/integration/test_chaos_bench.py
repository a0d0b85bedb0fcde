"""`ares bench chaos`, the short profile: every fault once, every record accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.lab.experiments.chaos.checker import VIOLATIONS
from ares_stream.lab.experiments.chaos.run import FAULTS, VIOLATIONS_ASIDE

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]


def test_every_fault_once_and_every_record_is_accounted_for(tmp_path: Path) -> None:
    file = tmp_path / "chaos.json"
    done = CliRunner().invoke(app, ["bench", "chaos", "--seed", "1", "--json", str(file)])
    assert done.exit_code == 0, done.output
    document = json.loads(file.read_text())
    counts = document["counts"]
    names = (*VIOLATIONS, *VIOLATIONS_ASIDE)
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 0)
    assert sorted(document["plan"]) == sorted(FAULTS)
    # What is counted was there to be counted.
    assert counts["inputs"] > 1000
    assert counts["inputs"] == counts["verdicts"] + counts["dead_letters"]
    assert counts["coupled"] > 100
    assert counts["aborted_inputs"] > 50
    assert {loss["fault"] for loss in document["losses"]} == {
        "retention",
        "truncation",
        "filled again",
    }
    assert all(loss["taken"] == loss["counted"] > 0 for loss in document["losses"])
    assert counts["aside_deleted_unread"] > 0
    assert counts["dead_letters"] == 11
    assert counts["dead_letters_by_coordinates"] >= 2
