"""How far a reward model's scores of a frozen anchor set have moved. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


_PSI_BINS = 10


@dataclass(frozen=True, slots=True)
class Drift:
    """How a model's scores of the same texts moved, in standard deviations of the reference.

    `mean_shift` keeps its sign; `rms` also sees scores that moved apart and cancel; `ks` is
    the Kolmogorov-Smirnov distance of the two distributions and `psi` the population
    stability index over the reference's deciles (above 0.25 is by custom a changed
    population), both blind to texts that changed places.
    """

    count: int
    mean_shift: float
    rms: float
    ks: float
    psi: float


def anchor_drift(reference: ArrayLike, current: ArrayLike) -> Drift:
    """Compare scores of one anchor set, text by text, under the frozen and the present model.

    Raises ValueError when lengths differ, fewer than 2 anchors, or all references are equal.
    """
    # Whoever imports this module for an alarm does not pay the second that scipy.stats takes.

    frozen, now = np.asarray(reference, float), np.asarray(current, float)
    if frozen.shape != now.shape or frozen.ndim != 1 or frozen.size < 2:
        raise ValueError(
            f"anchors of shapes {frozen.shape} and {now.shape}; expected two equal lists"
        )
    spread = float(frozen.std(ddof=1))
    if not (math.isfinite(spread) and spread > 0 and np.isfinite(now).all()):
        raise ValueError("anchor scores must be finite, and the reference's not all equal")
    moved = (now - frozen) / spread
    return Drift(
        count=frozen.size,
        mean_shift=float(moved.mean()),
        rms=float(np.sqrt(np.mean(moved**2))),
        ks=ks_distance(frozen, now),
        psi=_psi(frozen, now),
    )


def ks_distance(first: Floats, second: Floats) -> float:
    """Two-sample Kolmogorov-Smirnov statistic: the largest gap between the two samples' empirical
    distribution functions, 0 to 1. Here and not from scipy.stats, whose import takes two
    seconds that every service would pay."""
    values = np.concatenate((first, second))
    below = [
        np.searchsorted(np.sort(one), values, side="right") / one.size for one in (first, second)
    ]
    return float(np.max(np.abs(below[0] - below[1])))


def _psi(frozen: Floats, now: Floats) -> float:
    edges = np.quantile(frozen, np.linspace(0, 1, _PSI_BINS + 1)[1:-1])
    bins = _PSI_BINS

    def shares(scores: Floats) -> Floats:
        counts = np.bincount(np.searchsorted(edges, scores), minlength=bins)
        return np.asarray((counts + 0.5) / (scores.size + bins / 2), float)

    before, after = shares(frozen), shares(now)
    return float(np.sum((after - before) * np.log(after / before)))
