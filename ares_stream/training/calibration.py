"""From raw model scores to probabilities and honest figures. Pure numpy and scipy.

Everything takes one-dimensional arrays of equal length: `logits` or `scores` as float,
`labels` as 0 or 1, `groups` as any labels that say which rows belong together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from ares_stream.errors import InputError
from ares_stream.records.base import Interval

Floats = NDArray[np.float64]

MIN_OF_EACH_LABEL: Final = 20
"""Ten rows of each label for each of the two numbers that are fitted: with fewer, estimates of
logistic regressions are biased and far off (Peduzzi et al. 1996)."""
MIN_SPREAD: Final = 0.01
"""Standard deviation of the logits under which a model says the same of every row."""
_CHANCE: Final = 3.84
"""95 % point of chi squared with one degree of freedom."""


@dataclass(frozen=True, slots=True)
class Platt:
    """probability = sigmoid(slope * logit + intercept)."""

    slope: float
    intercept: float

    def __call__(self, logits: ArrayLike) -> Floats:
        """Calibrated probabilities, same shape."""
        return np.asarray(
            expit(self.slope * np.asarray(logits, np.float64) + self.intercept), np.float64
        )


def _binary(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if values.ndim != 1 or values.shape != truth.shape:
        raise InputError(f"scores {values.shape} and labels {truth.shape} must be equal vectors")
    if not np.isfinite(values).all():
        raise InputError("scores hold NaN or infinity")
    if not np.isin(truth, (0.0, 1.0)).all():
        raise InputError("labels must be 0 or 1")
    if len(np.unique(truth)) < 2:
        raise InputError("both labels must occur; give rows that are harmful and rows that are not")
    return values, truth


def _weights(weights: ArrayLike | None, count: int) -> Floats:
    """Positive weights whose sum is the number of rows that they are worth (Kish 1965)."""
    if weights is None:
        return np.ones(count)
    given = np.asarray(weights, np.float64)
    if given.shape != (count,) or not (np.isfinite(given).all() and (given > 0).all()):
        raise InputError(f"weights must be {count} finite numbers above 0")
    return np.asarray(given * given.sum() / np.square(given).sum(), np.float64)


def fit_platt(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Platt:
    """Maximum likelihood on Platt's smoothed targets (Platt 1999; Lin, Lin and Weng 2007).

    `weights` say how many rows each one stands for: 1 / the probability that it was drawn with.

    The smoothing keeps the slope finite where the rows can be separated. A slope is never
    below zero: calibration may not turn a ranking round, so a model that ranks worse than
    chance gets the base rate for every row.

    Raises InputError for unequal lengths, non-finite logits, or one label only.
    """
    values, truth = _binary(logits, labels)
    shares = _weights(weights, len(truth))
    positives = (shares * truth).sum()
    negatives = shares.sum() - positives
    targets = np.where(truth == 1.0, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    shares = shares / shares.sum()
    centre, scale = values.mean(), max(float(values.std()), 1e-12)
    x = (values - centre) / scale

    def loss(point: Floats) -> tuple[float, Floats]:
        z = point[0] * x + point[1]
        residual = expit(z) - targets
        value = shares @ (np.logaddexp(0.0, z) - targets * z)
        return float(value), np.array([shares @ (residual * x), shares @ residual])

    rate = float(shares @ targets)
    start = np.array([0.0, math.log(rate / (1 - rate))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0.0, None), (None, None)]).x
    slope = float(found[0]) / scale
    return Platt(slope, float(found[1]) - slope * float(centre))


def fit_calibration(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> Platt:
    """`fit_platt` for a model that is released: the fit must stand on something.

    Raises InputError for fewer than MIN_OF_EACH_LABEL rows of a label, for logits that hardly
    differ, and where a likelihood-ratio test cannot tell the slope from 0 (or it would be below).
    """
    values, truth = _binary(logits, labels)
    harmful = int(truth.sum())
    harmless = len(truth) - harmful
    if min(harmful, harmless) < MIN_OF_EACH_LABEL:
        raise InputError(
            f"calibration needs {MIN_OF_EACH_LABEL} conversations of each label at least; here "
            f"are {harmful} harmful and {harmless} harmless"
        )
    if float(values.std()) < MIN_SPREAD:
        raise InputError(
            "the judge gives all these conversations the same probability: there is nothing to "
            "calibrate; is it the trained model?"
        )
    found, shares = fit_platt(values, truth, weights), _weights(weights, len(truth))
    rate = float(shares @ truth / shares.sum())
    blind = float(-shares @ (truth * math.log(rate) + (1 - truth) * math.log1p(-rate)))
    z = found.slope * values + found.intercept
    fitted = float(shares @ (np.logaddexp(0.0, z) - truth * z))
    if found.slope <= 0 or 2 * (blind - fitted) < _CHANCE:
        raise InputError(
            f"that the judge ranks harmful conversations above harmless ones may be chance (AUROC "
            f"{auroc(values, truth):.3f}): check which label means harmful, or give more rows"
        )
    return found


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15
) -> float:
    """Mean distance between promised and observed rate over bins of equally many rows.

    Equal counts, not equal widths: with equal widths nearly empty bins decide (Nixon et al.
    2019). Equal probabilities stay in one bin, so the order of the rows does not matter.
    """
    p, y = _binary(probabilities, labels)
    ranks = (rankdata(p, method="average") - 0.5) / len(p)
    place = np.minimum((ranks * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.abs(np.bincount(place, p - y, minlength=bins))
    return float(gaps[counts > 0].sum() / len(p))


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared error of the probabilities: 0 is perfect, .25 is a coin."""
    p, y = _binary(probabilities, labels)
    return float(np.square(p - y).mean())


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Probability that a random row labelled 1 scores above one labelled 0; ties count half."""
    values, truth = _binary(scores, labels)
    positives = truth.sum()
    total = rankdata(values)[truth == 1.0].sum() - positives * (positives + 1) / 2
    return float(total / (positives * (len(truth) - positives)))


def pairwise_accuracy(chosen: ArrayLike, rejected: ArrayLike) -> float:
    """Share of pairs whose chosen answer scores higher; a tie counts half."""
    better, worse = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    if better.shape != worse.shape or better.size == 0:
        raise InputError("chosen and rejected must be equally long and not empty")
    return float(((better > worse) + 0.5 * (better == worse)).mean())


def grouped_interval(
    statistic: Callable[[NDArray[np.intp]], float],
    groups: Sequence[str],
    *,
    seed: int,
    level: float = 0.95,
    draws: int = 1000,
) -> Interval:
    """`statistic` of all rows with a percentile bootstrap interval over whole groups.

    Rows of one prompt family are alike: drawing rows would give an interval that is too
    narrow. `statistic` takes row indices. A draw on which it raises InputError (one label
    only) is left out. `count` of the interval is the number of groups.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    order = np.argsort(member, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(member))[:-1])
    value = statistic(np.arange(len(groups), dtype=np.intp))
    rng = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(draws):
        picked = rng.integers(0, len(names), len(names))
        try:
            found.append(statistic(np.concatenate([rows[i] for i in picked])))
        except InputError:
            continue
    if not found:
        raise InputError("no bootstrap draw held both labels; give more prompt families")
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(found, [tail, 100 - tail])
    return Interval(
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        count=len(names),
    )
