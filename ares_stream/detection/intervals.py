"""Estimates with intervals: coupled-failure rate (CFR), judge error, lift, probe weights. Pure.

Which interval when:

    looked at once, at a size fixed beforehand     wilson, clopper_pearson
    watched continuously, stopped at any moment    confidence_sequence
    a judge's error known from elsewhere           rogan_gladen
    people's labels sampled by what the judge said stratified_rate
    probes drawn with known, unequal probability   WeightedSums.interval

A 95 % Wilson interval that is watched over 2,000 events misses the truth at some moment in
about half of all streams; the confidence sequence in about 2 % (tests/unit/test_statistics.py
measures both).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Wilson score interval for a rate at a fixed number of trials (Wilson 1927)."""
    _check_counts(successes, trials)
    if trials == 0:
        return Interval(value=0.0, low=0.0, high=1.0, count=0)
    return wilson_effective(successes / trials, trials, trials, level)


def wilson_effective(rate: float, trials: float, count: int, level: float = 0.95) -> Interval:
    """Wilson's interval where `count` trials are worth an effective number of `trials` > 0,
    such as weighted or clustered ones (Korn and Graubard 1998)."""
    z = _z(level)
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials)
    half *= math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low = 0.0 if rate == 0 else max(0.0, centre - half)
    high = 1.0 if rate == 1 else min(1.0, centre + half)
    return Interval(value=rate, low=low, high=high, count=count)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Exact interval for a rate at a fixed number of trials: never below its level, and wider."""
    _check_counts(successes, trials)
    if trials == 0:
        return Interval(value=0.0, low=0.0, high=1.0, count=0)
    # scipy takes most of a second to import, and few who import this module ask for what needs it.
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    failures = trials - successes
    low = 0.0 if successes == 0 else float(betaincinv(successes, failures + 1, tail))
    high = 1.0 if failures == 0 else float(betaincinv(successes + 1, failures, 1 - tail))
    return Interval(value=successes / trials, low=low, high=high, count=trials)


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


@dataclass(frozen=True, slots=True)
class Confusion:
    """People's labels against the judge's flags, on a random sample of what is to be corrected.

    For CFR the sample comes from the high-reward interactions: a judge errs otherwise there.
    """

    true_positive: int
    false_negative: int
    false_positive: int
    true_negative: int


def rogan_gladen(flagged: int, trials: int, labels: Confusion, level: float = 0.95) -> Interval:
    """True rate from a judge's flags and its measured error: (p + Sp - 1) / (Se + Sp - 1).

    The interval carries the uncertainty of p, Se and Sp together (Lang and Reiczigel 2014,
    Preventive Veterinary Medicine 113). A judge that the labels do not show to be better
    than chance says nothing: the raw rate is returned with the interval [0, 1].
    """
    _check_counts(flagged, trials)
    harmful = labels.true_positive + labels.false_negative
    harmless = labels.true_negative + labels.false_positive
    raw = flagged / trials if trials else 0.0
    z = _z(level)
    sensitivity, n_se = (labels.true_positive + 1) / (harmful + 2), harmful + 2
    specificity, n_sp = (labels.true_negative + 1) / (harmless + 2), harmless + 2
    youden = sensitivity + specificity - 1
    youden_error = math.sqrt(
        sensitivity * (1 - sensitivity) / n_se + specificity * (1 - specificity) / n_sp
    )
    if not (trials and harmful and harmless) or youden <= z * youden_error:
        return Interval(value=raw, low=0.0, high=1.0, count=trials)
    n_p = trials + z * z
    rate = (flagged + z * z / 2) / n_p
    true_rate = (rate + specificity - 1) / youden
    var_se = sensitivity * (1 - sensitivity) / n_se
    var_sp = specificity * (1 - specificity) / n_sp
    shift = 2 * z * z * (true_rate * var_se - (1 - true_rate) * var_sp)
    half = z * math.sqrt(
        (rate * (1 - rate) / n_p + true_rate**2 * var_se + (1 - true_rate) ** 2 * var_sp)
        / youden**2
    )
    plain = labels.true_positive / harmful + labels.true_negative / harmless - 1
    value = _clip((raw + labels.true_negative / harmless - 1) / plain)
    low, high = _clip(true_rate + shift - half), _clip(true_rate + shift + half)
    return Interval(value=value, low=min(low, value), high=max(high, value), count=trials)


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the interactions, of which `labelled` were drawn at random for people, who
    called `harmful` of them so."""

    size: int
    labelled: int
    harmful: int


def stratified_rate(strata: Sequence[Stratum], level: float = 0.95) -> Interval:
    """Harmful share of these very interactions, from labels sampled stratum by stratum.

    With the judge's flagged and unflagged as strata this corrects the judge's error from
    the labels alone, assuming nothing of the judge (double sampling, Tenenbein 1970; the
    special case of prediction-powered inference for a rate). Wilson limits of the strata are
    combined by recovered variances (MOVER: Zou and Donner 2008). A stratum without labels
    counts as wholly unknown.
    """
    total = sum(stratum.size for stratum in strata)
    if total == 0:
        return Interval(value=0.0, low=0.0, high=1.0, count=0)
    value = below = above = 0.0
    for stratum in strata:
        share = stratum.size / total
        part = wilson(stratum.harmful, stratum.labelled, level)
        middle = part.value if stratum.labelled else 0.5
        value += share * middle
        below += (share * (middle - part.low)) ** 2
        above += (share * (part.high - middle)) ** 2
    low, high = _clip(value - math.sqrt(below)), _clip(value + math.sqrt(above))
    return Interval(value=_clip(value), low=low, high=high, count=total)


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

        Self-normalised (Hajek); Wilson at the effective size that the linearised variance
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
        return wilson_effective(rate, size, self.draws, level)


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))
