"""Judge or system, on simulated streams: the judge is found and never taken for the system."""

from __future__ import annotations

import numpy as np
import pytest

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.lab.experiments.attribution import (
    JUDGES,
    Design,
    Scored,
    _delays,
    bench,
    changed_judge,
    simulate,
    z_alarms,
)
from ares_stream.lab.experiments.coverage import measure

SMALL = Design(before=60, after=60, per_window=40, anchors_per_window=20)


@pytest.fixture(scope="module")
def scored() -> Scored:
    """Two thousand conversations and a judge that is good and not perfect."""
    rng = np.random.default_rng(0)
    harmful = rng.random(2_000) < 0.3
    odds = np.where(harmful, rng.normal(2.0, 2.0, 2_000), rng.normal(-3.0, 1.5, 2_000))
    return Scored(1 / (1 + np.exp(-odds)), rng.random(2_000), harmful)


def test_judge_changes_are_found_and_none_is_blamed_on_the_system(scored: Scored) -> None:
    found = bench(scored, SMALL, streams=6, quiet=12)
    assert found["judge"]["judge_found"] == 6
    assert found["both"]["judge_found"] == 6
    assert found["judge"]["system_found"] == found["both"]["blamed_on_system_first"] == 0
    assert found["policy"]["system_found"] == 6
    assert found["policy"]["judge_found"] == 0
    assert found["quiet"]["false_alarms"]["value"] <= found["quiet"]["stated_at_most"] + 0.1
    delay = found["judge"]["delay_hours"]
    assert 0 < delay["low"] <= delay["median"] <= delay["high"] < 5


@pytest.mark.parametrize("seed", [2, 6, 9, 16])
def test_a_false_alarm_before_the_change_is_no_answer_to_it(scored: Scored, seed: int) -> None:
    """With a false alarm every half day these streams have one, which says `system` of a rise by
    chance; nothing says so of the judge that changes afterwards."""
    design = Design(before=60, after=6, per_window=40, false_alarm_days=0.5)
    outcome = simulate(scored, design, "judge", JUDGES[seed % 3], seed)
    assert outcome.early > 0
    assert outcome.judge is not None
    assert outcome.system is None


def test_a_rolling_z_test_alarms_on_most_quiet_streams() -> None:
    rng = np.random.default_rng(1)
    alarmed = sum(z_alarms(rng.binomial(60, 0.1, 216).tolist(), 60) > 0 for _ in range(200))
    assert alarmed / 200 > 0.5


def test_the_three_ways_in_which_a_judge_changes(scored: Scored) -> None:
    rng, policy = np.random.default_rng(2), DetectionPolicy()
    assert (changed_judge(scored.harm, "lenient", 0.2, policy, rng) <= scored.harm + 1e-6).all()
    assert (changed_judge(scored.harm, "strict", 0.2, policy, rng) >= scored.harm - 1e-6).all()
    noisy = changed_judge(scored.harm, "noisy", 0.2, policy, rng)
    assert 0.2 < np.mean(noisy > scored.harm) < 0.8


def test_every_interval_of_the_monitor_holds_the_truth_of_scored_conversations(
    scored: Scored,
) -> None:
    found = measure(scored, streams=30)
    assert found["failed"] == []
    assert found["figures"]["raw"]["covers"]["value"] < 0.9
    assert {item["streams"] for item in found["figures"].values()} == {30}


def test_delays_count_streams_in_which_the_change_was_never_found() -> None:
    told = _delays([1, 2, None, None, None], 1.0)
    assert told == {"median": None, "low": told["low"], "high": None}
    assert _delays([0] * 9 + [None], 0.5)["median"] == 0.5
