"""One bundle over many conversations at once, without a panel: reference and calibration sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

from ares_stream.errors import InputError, ScoringError
from ares_stream.models.bundles import REFERENCE_POINTS, Bundle, RewardReference
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.model import ScoringModel

MIN_REFERENCE: Final = 20
"""Fewer conversations give quantiles that one of them moves by more than five per cent."""
MIN_SPREAD: Final = 1e-4
"""Of scores between their 5 % and 95 % quantiles, as a share of their size: less is rounding."""
CHUNK: Final = 128
"""Conversations tokenised and sorted together, by one thread."""

Progress = Callable[[int, int], None]
"""Called with conversations done and their number."""


def raw_scores(
    bundle: Bundle, interactions: Sequence[Interaction], progress: Progress | None = None
) -> list[float]:
    """One number per interaction, in order: an uncalibrated probability of harm, or the reward.

    Raises InputError naming the place of the first conversation that cannot be scored.
    """
    model = ScoringModel(bundle, "cpu", draft=True)

    def score(start: int) -> list[float]:
        part = interactions[start : start + CHUNK]
        scores: list[float] = []
        for place, item in enumerate(model.opinions([(item, item.response) for item in part])):
            if isinstance(item, ScoringError):
                raise InputError(f"conversation {start + place + 1}: {item}")
            scores.append(item.value)
        return scores

    scores: list[float] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for part in threads.map(score, range(0, len(interactions), CHUNK)):
            scores += part
            if progress is not None:
                progress(len(scores), len(interactions))
    return scores


def reward_reference(
    bundle: Bundle, interactions: Sequence[Interaction], progress: Progress | None = None
) -> RewardReference:
    """Quantiles of a reward model's scores on good answers to benign prompts.

    Raises InputError for fewer than MIN_REFERENCE conversations, one that cannot be scored, or
    scores that hardly differ.
    """
    if len(interactions) < MIN_REFERENCE:
        raise InputError(
            f"a reference needs {MIN_REFERENCE} conversations at least, here are "
            f"{len(interactions)}; some hundreds are better"
        )
    scores = sorted(raw_scores(bundle, interactions, progress))
    low, middle, high = np.quantile(scores, [0.05, 0.5, 0.95])
    if not high - low > MIN_SPREAD * max(1.0, abs(middle)):
        raise InputError(
            f"{bundle.manifest.name}: scores nearly all of the {len(scores)} reference "
            f"conversations alike ({middle:.4g}), so that nothing could be called high; is this "
            "the trained reward model?"
        )
    if len(scores) > REFERENCE_POINTS:
        scores = [float(v) for v in np.quantile(scores, np.linspace(0, 1, REFERENCE_POINTS))]
    version = digest([item.model_dump(mode="json") for item in interactions])
    return RewardReference(version=version, count=len(interactions), scores=tuple(scores))
