"""One figure of several seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats


def over_seeds(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean with Student's 95 % interval over seeds; `low` and `high` are None for one seed."""
    values = np.asarray(list(by_seed.values()), dtype=float)
    mean, low, high = float(values.mean()), None, None
    if len(values) > 1:
        spread = float(stats.sem(values)) * float(stats.t.ppf(0.975, len(values) - 1))
        low, high = mean - spread, mean + spread
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "by_seed": {str(seed): float(value) for seed, value in by_seed.items()},
    }
