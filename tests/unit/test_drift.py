"""Drift figures mean what they say; alarms are as rarely false as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from ares_stream.detection.alarms import RiseAlarm, advance, evidence, no_evidence
from ares_stream.detection.drift import anchor_drift, ks_distance


def test_each_figure_sees_its_own_kind_of_drift() -> None:
    rng = np.random.default_rng(1)
    frozen = rng.normal(3.0, 2.0, 4_000)
    still = anchor_drift(frozen, frozen)
    assert (still.mean_shift, still.rms, still.ks) == (0.0, 0.0, 0.0)
    assert still.psi == pytest.approx(0.0, abs=1e-9)

    shifted = anchor_drift(frozen, frozen + 1.0)
    assert shifted.mean_shift == pytest.approx(0.5, abs=0.02)
    assert shifted.rms == pytest.approx(0.5, abs=0.02)
    assert shifted.psi > 0.2

    swapped = anchor_drift(frozen, rng.permutation(frozen))
    assert swapped.mean_shift == pytest.approx(0.0, abs=1e-9)
    assert swapped.rms == pytest.approx(np.sqrt(2), abs=0.05)
    assert swapped.ks == 0.0


# The exact p-value, which is not asked for, can fail.
@pytest.mark.filterwarnings("ignore:ks_2samp:RuntimeWarning")
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
)
def test_the_distance_of_two_samples_is_scipys_with_ties_and_other_sizes(
    first: list[int], second: list[int]
) -> None:
    theirs = ks_2samp(first, second, method="exact").statistic
    assert ks_distance(np.array(first, float), np.array(second, float)) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("reference", "current"),
    [([1.0], [1.0]), ([1, 2], [1]), ([2, 2], [1, 3]), ([1, 2], [1, np.nan])],
)
def test_anchors_that_measure_nothing_are_refused(
    reference: list[float], current: list[float]
) -> None:
    with pytest.raises(ValueError, match="anchor"):
        anchor_drift(reference, current)


def run_lengths(rate: float, baseline: float, limit: int, horizon: int, seed: int) -> np.ndarray:
    """Events until the alarm, for 300 streams; the horizon where there was none."""
    rng = np.random.default_rng(seed)
    state, lengths = no_evidence((300,)), np.full(300, horizon)
    for event in range(horizon):
        state = advance(state, (rng.random(300) < rate).astype(float), baseline)
        fired = (evidence(state) >= np.log(limit)) & (lengths == horizon)
        lengths[fired] = event + 1
        if (lengths < horizon).all():
            break
    return lengths


@pytest.mark.parametrize("baseline", [0.02, 0.125])
def test_false_alarms_are_at_least_the_promised_run_length_apart(baseline: float) -> None:
    """Measured at a promise of 200: 355 events apart at .02, about 250 at .125."""
    lengths = run_lengths(baseline, baseline, limit=200, horizon=2_000, seed=2)
    error = lengths.std() / np.sqrt(len(lengths))
    assert lengths.mean() >= 200 + 2 * error


def test_a_rise_is_found_soon() -> None:
    """From 5 to 20 %, with false alarms 1,000 or more events apart: about 40 events."""
    lengths = run_lengths(0.20, 0.05, limit=1_000, horizon=2_000, seed=3)
    assert lengths.mean() <= 60


def test_an_alarm_stays_until_it_is_reset() -> None:
    alarm = RiseAlarm(0.1, run_length=100)
    assert not alarm.observe([0.0] * 50)
    assert alarm.observe([1.0] * 20)
    raised = alarm.raised_at
    assert raised is not None
    assert 50 < raised < 60
    assert alarm.observe([0.0] * 500)
    assert alarm.raised_at == raised
    alarm.reset()
    assert not alarm.observe([0.0])


def test_values_and_baselines_outside_the_range_are_refused() -> None:
    with pytest.raises(ValueError, match="baseline"):
        RiseAlarm(0.0)
    with pytest.raises(ValueError, match="outside"):
        RiseAlarm(0.5).observe([1.5])
