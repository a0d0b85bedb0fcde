"""A judge's calibration from the labels of its own review queue. Pure.

The queue is no random sample: doubtful answers are all in it, others with the probability that
stands in the record. Each label therefore weighs 1 / that probability; without the weights the
judge would be calibrated for the doubtful.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from ares_stream.errors import InputError
from ares_stream.training.calibration import Floats, Platt, fit_calibration, fit_platt

FOLDS: Final = 5


@dataclass(frozen=True, slots=True)
class Recalibration:
    """The new calibration, and the mean log loss (nats, weighted) of the old and of a new one on
    labels that it was not fitted to."""

    platt: Platt
    rows: int
    harmful: int
    effective: float
    """How many equally weighted labels these are worth (Kish)."""
    loss_before: float
    loss_after: float

    @property
    def better(self) -> bool:
        """Whether labels that were not fitted to say that it is."""
        return self.loss_after < self.loss_before


def recalibrate(
    names: Sequence[str],
    logits: ArrayLike,
    labels: ArrayLike,
    probabilities: ArrayLike,
    old: Platt,
) -> Recalibration:
    """Fit to labels drawn with `probabilities` in (0, 1]. `names` are the interactions': they say
    which fold a label is in.

    Raises InputError as `fit_calibration` does.
    """
    values, truth = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    weights = 1.0 / np.asarray(probabilities, np.float64)
    found = fit_calibration(values, truth, weights)
    folds = np.array([_fold(name) for name in names])
    unseen = np.zeros(len(truth))
    for fold in range(FOLDS):
        inside = folds == fold
        if not inside.any():
            continue
        try:
            part = fit_platt(values[~inside], truth[~inside], weights[~inside])
        except InputError:  # One label is in one fold alone.
            part = old
        unseen[inside] = _losses(part, values[inside], truth[inside])
    before = _losses(old, values, truth)
    return Recalibration(
        platt=found,
        rows=len(truth),
        harmful=int(truth.sum()),
        effective=float(weights.sum() ** 2 / np.square(weights).sum()),
        loss_before=float(np.average(before, weights=weights)),
        loss_after=float(np.average(unseen, weights=weights)),
    )


def _fold(name: str) -> int:
    return hashlib.sha256(name.encode()).digest()[0] % FOLDS


def _losses(platt: Platt, logits: Floats, truth: Floats) -> Floats:
    z = platt.slope * logits + platt.intercept
    return np.asarray(np.logaddexp(0.0, z) - truth * z, np.float64)
