"""The evidence for a rise, from counts by window, whatever the order of reading. Pure.

Windows are counted, not events, so the evidence is a function of the counts alone, whatever the
order in which partitions were read. In each window a bet b against the baseline p0 earns

    h log(1 + b (1/p0 - 1)) + (n - h) log(1 - b)

for h hits of n, and Shiryaev-Roberts starts anew at each window. While the rate stays at or below
the baseline, the average number of windows until the evidence passes L is at least L (Shin, Ramdas
and Rinaldo, arXiv 2203.03532), and also when one looks inside a window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BETS = np.geomspace(0.01, 0.6, 14)
"""Shares of what could be lost on one event: small bets find small changes, slowly."""
LOWEST_BASELINE: Final = 1e-4
"""Below it two hits in any number of days would be an alarm."""
HIGHEST_BASELINE: Final = 0.999


class Counts(NamedTuple):
    """One window: its start in Unix seconds, its verdicts, and those that count as hits."""

    start: int
    total: int
    hits: int


class Peak(NamedTuple):
    """The highest log evidence that the windows reached, at the end of which window (-1: what lay
    before them), and where the change that it shows most likely began."""

    log: float
    at: int
    changed_at: int


def evidence(state: Floats) -> Floats:
    """Log of the evidence that the mean has risen: the bets' average, over the last axis."""
    return np.asarray(np.logaddexp.reduce(state, axis=-1) - math.log(len(BETS)), float)


def bounded(baseline: float) -> float:
    """A baseline that bets can be made against."""
    return min(HIGHEST_BASELINE, max(LOWEST_BASELINE, baseline))


def _gains(windows: Sequence[Counts], baseline: float) -> Floats:
    hits = np.array([item.hits for item in windows], float)[:, None]
    rest = np.array([item.total - item.hits for item in windows], float)[:, None]
    return np.asarray(hits * np.log1p(BETS * (1 / baseline - 1)) + rest * np.log1p(-BETS), float)


def fold(before: Floats | None, windows: Sequence[Counts], baseline: float) -> Floats:
    """The evidence after the windows, in their order: log wealth per bet."""
    state = np.full(len(BETS), -np.inf) if before is None else before
    for gain in _gains(windows, baseline):
        state = np.logaddexp(state, 0.0) + gain
    return np.asarray(state, float)


def peak(before: Floats | None, windows: Sequence[Counts], baseline: float) -> Peak:
    """The highest evidence at the end of any window."""
    if not windows:
        return Peak(-math.inf, -1, 0)
    gains = _gains(windows, baseline)
    wealth = np.cumsum(gains, axis=0)
    earlier = np.vstack([np.zeros(len(BETS)), wealth[:-1]])
    # Shiryaev-Roberts at every window's end: the sum over starts of what was won since.
    states = wealth + np.logaddexp.accumulate(-earlier, axis=0)
    if before is not None:
        states = np.logaddexp(states, wealth + before)
    told = evidence(states)
    top = int(np.argmax(told))
    # Of all starts, the one from which the bets won most until the peak.
    since = np.logaddexp.reduce(wealth[top] - earlier[: top + 1], axis=1)
    start = windows[int(np.argmax(since))].start
    return Peak(float(told[top]), windows[top].start, start)
