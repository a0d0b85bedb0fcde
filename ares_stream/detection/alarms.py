"""Alarms with a known false-alarm rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ares_stream.detection.drift import Floats

BETS = np.geomspace(0.01, 0.6, 14)
"""Shares of what could be lost on one event: small bets find small changes, slowly."""


def advance(state: Floats, value: ArrayLike, baseline: float) -> Floats:
    """One step of the alarm's evidence: log wealth per bet in the last axis of `state`.

    Each bet b on a value x is worth 1 + (b / baseline) * (x - baseline), a fair or losing
    game while the mean is at most the baseline; Shiryaev-Roberts restarts it at every event.
    """
    gain = np.log1p(BETS / baseline * (np.asarray(value, float)[..., None] - baseline))
    return np.asarray(np.logaddexp(state, 0.0) + gain, float)


def evidence(state: Floats) -> Floats:
    """Log of the evidence that the mean has risen: the bets' average."""
    return np.asarray(np.logaddexp.reduce(state, axis=-1) - math.log(len(BETS)), float)


def no_evidence(shape: tuple[int, ...] = ()) -> Floats:
    """The state before the first event, for one stream or an array of streams."""
    return np.full((*shape, len(BETS)), -np.inf)


class RiseAlarm:
    """Says when the mean of values in [0, 1] has risen above a baseline.

    Values are 0 and 1 for a rate (is this a coupled failure?), or a reward quantile or a harm
    probability; feed 1 - x to watch for a fall. While the mean stays at or below the
    baseline, the average number of events until a false alarm is at least `run_length`,
    whatever the distribution (e-detectors: Shin, Ramdas and Rinaldo, arXiv 2203.03532). Take
    the upper end of an interval as the baseline when it is itself an estimate.
    """

    def __init__(self, baseline: float, run_length: float = 10_000) -> None:
        if not 0.0 < baseline < 1.0 or run_length < 2:
            raise ValueError("expected a baseline inside (0, 1) and a run length of 2 or more")
        self._baseline = baseline
        self._limit = math.log(run_length)
        self._state: Any = no_evidence()
        self.events = 0
        self.raised_at: int | None = None
        """Number of events seen when the alarm was raised."""

    def observe(self, values: Iterable[float]) -> bool:
        """Take events in order; True from the event on that raised the alarm until reset()."""
        for value in values:
            if not 0.0 <= value <= 1.0:
                raise ValueError("a value outside [0, 1]")
            self.events += 1
            self._state = advance(self._state, value, self._baseline)
            if self.raised_at is None and float(evidence(self._state)) >= self._limit:
                self.raised_at = self.events
        return self.raised_at is not None

    def reset(self) -> None:
        """Forget the alarm and all evidence, as after a release."""
        self._state = no_evidence()
        self.events = 0
        self.raised_at = None
