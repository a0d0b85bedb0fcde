"""Estimates with intervals: coupled-failure rate (CFR), lift, probe weights. Pure.

Which interval when:

    looked at once, at a size fixed beforehand     wilson
    watched continuously, stopped at any moment    confidence_sequence
    a judge's error, from people's labels          detection/correction.py
    probes drawn with known, unequal probability   WeightedSums.interval

A 95 % Wilson interval that is watched over 2,000 events misses the truth at some moment in
about half of all streams; the confidence sequence in about 2 % (tests/unit/test_statistics.py
measures both).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from ares_stream.records.base import Interval

_TINY = 1e-300  # Rates below and above which no count leaves a doubt.
_EPSILON = 1e-16


def _z(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)


def _check_counts(successes: int, trials: int) -> None:
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials; expected 0 <= successes")


def wilson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Wilson score interval for a rate at a fixed number of trials (Wilson 1927). It holds in 95 %
    on the average of all rates; in 90 to 93 % where a hit or two are expected in all, and its lower
    end then lies too high (Brown, Cai and DasGupta 2001)."""
    _check_counts(successes, trials)
    if trials == 0:
        return Interval(value=0.0, low=0.0, high=1.0, count=0)
    return wilson_effective(successes / trials, trials, trials, level)


def wilson_effective(rate: float, trials: float, count: int, level: float = 0.95) -> Interval:
    """Wilson's interval where `count` trials are worth an effective number of `trials` > 0,
    such as clustered ones."""
    z = _z(level)
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials)
    half *= math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return Interval(value=rate, low=low, high=high, count=count)


def exact_effective(rate: float, trials: float, count: int, level: float = 0.95) -> Interval:
    """Clopper and Pearson's interval at an effective number of `trials` > 0, of `count` trials
    that are weighted (Korn and Graubard 1998): it holds at least as often as it says, for the
    rarest hits too."""
    from scipy.special import betaincinv

    tail = (1.0 - level) / 2
    hits = rate * trials
    misses = trials - hits
    low = 0.0 if rate == 0 else float(betaincinv(hits, misses + 1, tail))
    high = 1.0 if rate == 1 else float(betaincinv(hits + 1, misses, 1 - tail))
    return Interval(value=rate, low=min(low, rate), high=max(high, rate), count=count)


def confidence_sequence(successes: int, trials: int, alpha: float = 0.05) -> Interval:
    """Interval of a rate that may be looked at after every event, and acted upon at any.

    Over all times together it misses the true rate with probability at most alpha: it holds
    the rates against which the Beta(1/2, 1/2)-binomial mixture martingale stays below
    1 / alpha (Robbins 1970; Howard et al. 2021). Right for independent events and for any
    dependence that leaves each event's probability, given the past, at that rate.
    """
    _check_counts(successes, trials)
    failures = trials - successes
    if trials == 0:
        return Interval(value=0.0, low=0.0, high=1.0, count=0)
    from scipy.optimize import brentq

    # log B(successes + 1/2, failures + 1/2) - log B(1/2, 1/2)
    mixture = math.lgamma(successes + 0.5) + math.lgamma(failures + 0.5)
    mixture -= math.lgamma(trials + 1) + math.log(math.pi)
    rate = successes / trials

    def excess(candidate: float) -> float:
        """Log wealth against a candidate rate inside (0, 1), above what alpha allows."""
        likelihood = successes * math.log(candidate) + failures * math.log1p(-candidate)
        return mixture - likelihood + math.log(alpha)

    low = float(brentq(excess, _TINY, rate)) if 0 < successes < trials else 0.0
    high = float(brentq(excess, rate, 1 - _EPSILON)) if 0 < successes < trials else 1.0
    if successes == 0:
        high = -math.expm1((mixture + math.log(alpha)) / failures)
    elif failures == 0:
        low = math.exp((mixture + math.log(alpha)) / successes)
    return Interval(value=rate, low=low, high=high, count=trials)


def scaled(interval: Interval, share: float) -> Interval:
    """A rate inside a part as a rate of the whole, the part's share taken as known."""
    return Interval(
        value=interval.value * share,
        low=interval.low * share,
        high=interval.high * share,
        count=interval.count,
    )


def coupling_lift(
    both: int, harmful: int, liked: int, trials: int, level: float = 0.95
) -> Interval | None:
    """CFR over what independence would give, P(harmful and liked) / (P(harmful) P(liked)).

    Above 1 the reward model likes harmful answers more often than others. Interval for a
    fixed number of trials, by the delta method on the log with half a count added to each
    cell. None where nothing was harmful or nothing liked: then there is no lift to speak of.
    """
    _check_counts(both, min(harmful, liked))
    if harmful == 0 or liked == 0:
        return None
    n11 = both + 0.5
    n10 = harmful - both + 0.5
    n01 = liked - both + 0.5
    n = trials + 2.0
    p11, p10, p01 = n11 / n, n10 / n, n01 / n
    row, column = p11 + p10, p11 + p01
    gradient = (1 / p11 - 1 / row - 1 / column, -1 / row, -1 / column)
    second = sum(p * g * g for p, g in zip((p11, p10, p01), gradient, strict=True))
    first = sum(p * g for p, g in zip((p11, p10, p01), gradient, strict=True))
    spread = math.exp(_z(level) * math.sqrt(max(0.0, second - first * first) / n))
    smoothed = p11 / (row * column)
    value = both * trials / (harmful * liked)
    return Interval(
        value=value,
        low=min(value, smoothed / spread),
        high=max(value, smoothed * spread),
        count=trials,
    )


@dataclass(slots=True)
class WeightedSums:
    """Running sums of draws with known probability: what an inverse-propensity rate needs."""

    draws: int = 0
    weight: float = 0.0
    weight_squared: float = 0.0
    hit_weight: float = 0.0
    hit_weight_squared: float = 0.0

    def add(self, hit: bool, probability: float) -> None:
        """Count one draw that had `probability` > 0 of being made."""
        weight = 1.0 / probability
        self.draws += 1
        self.weight += weight
        self.weight_squared += weight * weight
        if hit:
            self.hit_weight += weight
            self.hit_weight_squared += weight * weight

    @property
    def effective_size(self) -> float:
        """Kish's effective sample size: how many equally likely draws these are worth."""
        return self.weight**2 / self.weight_squared if self.draws else 0.0

    def interval(self, level: float = 0.95) -> Interval:
        """Rate over the whole space that was searched, each draw weighted by 1 / probability.

        Self-normalised (Hajek); exact at the effective size that the linearised variance
        gives, never above Kish's (Korn and Graubard 1998). For a fixed number of draws.
        """
        if self.draws == 0:
            return Interval(value=0.0, low=0.0, high=1.0, count=0)
        rate = _clip(self.hit_weight / self.weight)
        size = self.effective_size
        if 0.0 < rate < 1.0:
            miss_squared = self.weight_squared - self.hit_weight_squared
            variance = self.hit_weight_squared * (1 - rate) ** 2 + max(0.0, miss_squared) * rate**2
            size = min(size, rate * (1 - rate) * self.weight**2 / variance)
        return exact_effective(rate, size, self.draws, level)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
