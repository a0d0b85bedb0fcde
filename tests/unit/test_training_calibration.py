"""Calibration maps logits to rates that occur, and its figures are what the textbooks define."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from ares_stream.errors import InputError
from ares_stream.training.calibration import (
    auroc,
    brier,
    expected_calibration_error,
    fit_calibration,
    fit_platt,
    grouped_interval,
    pairwise_accuracy,
)

scored = st.lists(
    st.tuples(st.integers(-5, 5).map(float), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: len({label for _, label in rows}) == 2)


def sample(count: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits whose true rate is sigmoid(2 z - 1)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, count)
    return logits, rng.random(count) < expit(2 * logits - 1)


def test_platt_finds_the_slope_and_intercept_that_made_the_labels() -> None:
    found = fit_platt(*sample(20_000, 1))
    assert found.slope == pytest.approx(2, abs=0.1)
    assert found.intercept == pytest.approx(-1, abs=0.1)


def test_calibrated_probabilities_are_the_rates_of_other_rows_too() -> None:
    logits, labels = sample(20_000, 2)
    uncalibrated = expected_calibration_error(expit(logits), labels)
    calibrated = expected_calibration_error(fit_platt(*sample(5_000, 3))(logits), labels)
    assert calibrated < 0.02 < uncalibrated


def test_rows_that_can_be_separated_leave_the_slope_finite() -> None:
    found = fit_platt([-1.0, -0.9, 0.9, 1.0], [0, 0, 1, 1])
    assert 0 < found.slope < 100
    assert 0 < found(1.0) < 1


def test_a_calibration_that_is_released_stands_on_twenty_rows_of_each_label() -> None:
    logits, labels = sample(5_000, 4)
    assert fit_calibration(logits, labels) == fit_platt(logits, labels)
    harmful, harmless = np.flatnonzero(labels), np.flatnonzero(~labels)
    for some in ([harmful[:19], harmless], [harmful, harmless[:19]]):
        rows = np.concatenate(some)
        with pytest.raises(InputError, match="20 conversations of each label at least; here are"):
            fit_calibration(logits[rows], labels[rows])


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (np.full(200, 0.7), "the same probability"),
        (np.full(200, 0.7) + np.linspace(0, 1e-3, 200), "the same probability"),
        (np.random.default_rng(6).normal(size=200), "may be chance"),
        (-np.arange(200.0), "may be chance"),
    ],
    ids=["constant", "rounding", "chance", "turned round"],
)
def test_a_degenerate_fit_is_an_error(logits: NDArray[Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        fit_calibration(logits, np.arange(200) >= 100)


def test_a_ranking_worse_than_chance_gives_the_base_rate_and_is_never_turned_round() -> None:
    found = fit_platt([3.0, 2.0, 1.0, 0.0], [0, 0, 1, 1])
    assert found.slope == 0.0
    assert found([-9.0, 9.0]) == pytest.approx([0.5, 0.5], abs=1e-4)


@given(scored)
def test_auroc_is_the_share_of_pairs_in_order_with_ties_counted_half(
    rows: list[tuple[float, bool]],
) -> None:
    harmful = [score for score, label in rows if label]
    harmless = [score for score, label in rows if not label]
    pairs = [(a > b) + 0.5 * (a == b) for a in harmful for b in harmless]
    assert auroc(*zip(*rows, strict=True)) == pytest.approx(sum(pairs) / len(pairs))


@given(scored, st.randoms(use_true_random=False))
def test_calibration_error_does_not_depend_on_the_order_of_rows(
    rows: list[tuple[float, bool]], random: Random
) -> None:
    mixed = random.sample(rows, len(rows))
    before, after = (
        expected_calibration_error(expit([s for s, _ in part]), [y for _, y in part])
        for part in (rows, mixed)
    )
    assert after == pytest.approx(before)
    assert 0 <= before <= 1


def test_calibration_error_of_known_bins() -> None:
    promised = [0.2] * 10 + [0.9] * 10
    observed = [1] * 5 + [0] * 5 + [1] * 9 + [0]
    assert expected_calibration_error(promised, observed) == pytest.approx(0.15)
    assert brier([0.0, 1.0, 0.5, 0.5], [0, 1, 0, 1]) == pytest.approx(0.125)


def test_pairwise_accuracy_counts_a_tie_half() -> None:
    assert pairwise_accuracy([3.0, 2.0, 1.0, 0.0], [1.0, 2.0, 2.0, 1.0]) == pytest.approx(0.375)


def test_an_interval_over_families_is_as_wide_as_the_families_are_few() -> None:
    rng = np.random.default_rng(4)
    family_mean = np.repeat(rng.normal(size=30), 20)

    def mean(rows: NDArray[Any]) -> float:
        return float(family_mean[rows].mean())

    by_family = grouped_interval(mean, [str(i // 20) for i in range(600)], seed=1)
    by_row = grouped_interval(mean, [str(i) for i in range(600)], seed=1)
    assert by_family.count == 30
    assert by_row.count == 600
    assert by_family.low <= by_family.value <= by_family.high
    wider = (by_family.high - by_family.low) / (by_row.high - by_row.low)
    assert wider == pytest.approx(20**0.5, rel=0.3)


@pytest.mark.parametrize(
    ("scores", "labels", "reason"),
    [
        ([0.1, 0.2], [1, 1], "both labels"),
        ([0.1, 0.2], [0, 2], "0 or 1"),
        ([0.1, float("nan")], [0, 1], "NaN"),
        ([0.1], [0, 1], "equal vectors"),
        ([], [], "both labels"),
    ],
)
def test_unusable_rows_are_refused_by_every_measure(
    scores: list[float], labels: list[int], reason: str
) -> None:
    for measure in (auroc, brier, expected_calibration_error, fit_platt):
        with pytest.raises(InputError, match=reason):
            measure(scores, labels)


def test_an_interval_needs_families_that_hold_both_labels_together() -> None:
    def never(_rows: NDArray[Any]) -> float:
        raise InputError("one label")

    def only_of_all(rows: NDArray[Any]) -> float:
        return 0.5 if rows.tolist() == [0, 1, 2] else never(rows)

    with pytest.raises(InputError, match="one label"):
        grouped_interval(never, ["a", "b"], seed=0)
    with pytest.raises(InputError, match="more prompt families"):
        grouped_interval(only_of_all, ["a", "b", "c"], seed=0, draws=3)
