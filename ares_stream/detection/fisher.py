"""Fisher's exact test of two shares, of any counts, in bounded time and memory. Pure.

A library's test sums one term after another, as many as the smaller count has: of a forecast that
names 10^12 prompts it took a minute, and above that an integer overflowed. Terms are summed here
only where the hypergeometric distribution has mass.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Final

MAX_VARIANCE: Final = 1e6
"""Above it the distribution is normal to three digits, and is taken for that."""
DEVIATIONS: Final = 40.0
MARGIN: Final = 1000
"""Beyond so many standard deviations and failures more from the mean there is no mass that a float
could tell (Chvatal 1979 bounds the tail)."""


def fisher_greater(failed: int, count: int, others_failed: int, others: int) -> float:
    """P-value of `failed` of `count` where the share is no greater than that of `others_failed` of
    `others`. Raises ValueError for more failures than there are trials."""
    if not (0 <= failed <= count and 0 <= others_failed <= others):
        raise ValueError("more failures than trials, or fewer than none")
    total, bad = count + others, failed + others_failed
    least, most = max(0, bad - others), min(bad, count)
    if failed == least:
        return 1.0
    mean = count * bad / total
    variance = mean * ((total - bad) / total) * (others / max(1, total - 1))
    if variance > MAX_VARIANCE:
        return NormalDist().cdf((mean - failed + 0.5) / math.sqrt(variance))
    reach = DEVIATIONS * math.sqrt(variance) + MARGIN
    low, high = max(least, math.floor(mean - reach)), min(most, math.ceil(mean + reach))
    if failed > high:
        return 0.0
    if failed <= low:
        return 1.0
    return _share_above(failed, low, high, count, bad, total)


def _share_above(failed: int, low: int, high: int, count: int, bad: int, total: int) -> float:
    """Of the mass between `low` and `high`, what lies at `failed` or above."""
    # Each term from the one before it: factorials of such numbers have no digit left of a ratio.
    logs, weight = [0.0], 0.0
    for k in range(low, high):
        up = (bad - k) * (count - k)
        down = (k + 1) * (total - bad - count + k + 1)
        weight += math.log(up / down)
        logs.append(weight)
    largest = max(logs)
    above = math.fsum(math.exp(item - largest) for item in logs[failed - low :])
    return min(1.0, above / math.fsum(math.exp(item - largest) for item in logs))
