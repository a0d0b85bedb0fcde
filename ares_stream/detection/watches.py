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

from ares_stream.detection.alarms import BETS, evidence, no_evidence
from ares_stream.detection.drift import Floats

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


def bounded(baseline: float) -> float:
    """A baseline that bets can be made against."""
    return min(HIGHEST_BASELINE, max(LOWEST_BASELINE, baseline))


def _gains(windows: Sequence[Counts], baseline: float) -> Floats:
    hits = np.array([item.hits for item in windows], float)[:, None]
    rest = np.array([item.total - item.hits for item in windows], float)[:, None]
    return np.asarray(hits * np.log1p(BETS * (1 / baseline - 1)) + rest * np.log1p(-BETS), float)


def fold(before: Floats | None, windows: Sequence[Counts], baseline: float) -> Floats:
    """The evidence after the windows, in their order: log wealth per bet."""
    state = no_evidence() if before is None else before
    for gain in _gains(windows, baseline):
        state = np.logaddexp(state, 0.0) + gain
    return np.asarray(state, float)


def peak(before: Floats | None, windows: Sequence[Counts], baseline: float) -> Peak:
    """The highest evidence at the end of any window."""
    state = no_evidence() if before is None else before
    gains = _gains(windows, baseline)
    best = Peak(-math.inf, -1, windows[0].start if windows else 0)
    top = -1
    for number, gain in enumerate(gains):
        state = np.logaddexp(state, 0.0) + gain
        now = float(evidence(state))
        if now > best.log:
            best, top = Peak(now, windows[number].start, windows[0].start), number
    if top < 0:
        return best
    # Of all starts, the one from which the bets won most until the peak.
    wealth = np.cumsum(gains[: top + 1][::-1], axis=0)[::-1]
    start = int(np.argmax(np.logaddexp.reduce(wealth, axis=1)))
    return best._replace(changed_at=windows[start].start)
