"""A judge is calibrated for its traffic, though its labels are mostly of what it doubted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from ares_stream.errors import InputError
from ares_stream.training.calibration import Floats, Platt, fit_calibration, fit_platt
from ares_stream.training.recalibration import recalibrate

AS_IT_IS = Platt(1.0, 0.0)


def traffic(rows: int, slope: float, intercept: float, seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1.0, 2.0, rows)
    return logits, (rng.random(rows) < expit(slope * logits + intercept)).astype(float)


def names(count: int) -> list[str]:
    return [f"interaction-{number}" for number in range(count)]


def test_equal_weights_are_no_weights() -> None:
    logits, labels = traffic(400, 2.0, -1.0)
    plain, weighted = fit_platt(logits, labels), fit_platt(logits, labels, np.full(400, 7.0))
    assert weighted.slope == pytest.approx(plain.slope, rel=1e-6)
    assert weighted.intercept == pytest.approx(plain.intercept, rel=1e-6)


def test_a_queue_that_asks_by_liking_does_not_move_the_calibration() -> None:
    """Liked answers are more often harmful at the same logit, and are always asked about."""
    rng = np.random.default_rng(3)
    logits = rng.normal(-1.0, 2.0, 60_000)
    liked = rng.random(60_000) < 0.5
    labels = (rng.random(60_000) < expit(logits + np.where(liked, 1.5, -1.5))).astype(float)
    truth = fit_platt(logits, labels)
    probability = np.where(liked, 1.0, 0.05)
    asked = rng.random(60_000) < probability
    naive = fit_platt(logits[asked], labels[asked])
    found = recalibrate(
        names(int(asked.sum())), logits[asked], labels[asked], probability[asked], AS_IT_IS
    )
    assert abs(naive.intercept - truth.intercept) > 1.0
    assert abs(found.platt.intercept - truth.intercept) < 0.1
    assert abs(found.platt.slope - truth.slope) < 0.1
    assert found.effective < asked.sum() / 2


def test_a_judge_that_is_off_is_mended_and_one_that_is_right_is_left() -> None:
    logits, labels = traffic(2000, 2.0, -1.5)
    found = recalibrate(names(2000), logits, labels, np.full(2000, 0.1), AS_IT_IS)
    assert found.better
    assert found.platt.slope == pytest.approx(2.0, abs=0.25)
    assert found.platt.intercept == pytest.approx(-1.5, abs=0.25)
    assert (found.rows, found.harmful) == (2000, int(labels.sum()))
    again = recalibrate(names(2000), logits, labels, np.full(2000, 0.1), found.platt)
    assert not again.better


@pytest.mark.parametrize(
    ("rows", "said"), [(30, "calibration needs 20 conversations of each label"), (0, "both labels")]
)
def test_few_labels_are_refused(rows: int, said: str) -> None:
    logits, labels = traffic(rows, 1.0, 0.0)
    with pytest.raises(InputError, match=said):
        recalibrate(names(rows), logits, labels, np.ones(rows), AS_IT_IS)


def test_weights_that_make_the_sample_small_make_the_floor_higher() -> None:
    """What 400 equal labels show, 400 of which one weighs like all others do not."""
    logits, labels = traffic(400, 0.25, 0.0, seed=8)
    assert fit_calibration(logits, labels).slope > 0
    weights = np.ones(400)
    weights[0] = 4000.0
    with pytest.raises(InputError, match="may be chance"):
        fit_calibration(logits, labels, weights)


@pytest.mark.parametrize("wrong", [[0.0], [-1.0], [float("nan")], [1.0, 1.0]])
def test_weights_that_are_none_are_refused(wrong: list[float]) -> None:
    logits, labels = traffic(60, 2.0, 0.0)
    weights = np.ones(60)
    weights[: len(wrong)] = wrong
    with pytest.raises(InputError, match="weights must be"):
        fit_platt(logits, labels, weights if len(wrong) == 1 else np.ones(61))
