"""Which rows a training step takes: each stream goes through its rows in an order of its own."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ares_stream.records.base import stable_seed


def rows_of_step(count: int, size: int, step: int, *, seed: int, stream: str) -> list[int]:
    """`size` of `count` rows, every row once per epoch. The order is a function of the seed, the
    whole name of the stream and the epoch: two streams over as many rows are unlike."""
    if not count:
        return []
    places = range(step * size, (step + 1) * size)
    return [int(_permutation(count, seed, stream, p // count)[p % count]) for p in places]


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int, stream: str, epoch: int) -> Any:
    return np.random.default_rng(stable_seed(seed, stream, epoch)).permutation(count)
