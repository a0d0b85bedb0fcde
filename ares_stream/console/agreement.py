"""Whether people agree beyond chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha (nominal; Krippendorff 2004): 1 is full agreement, 0 what chance gives.
    None, with the reason, where the opinions cannot tell."""

    alpha: float | None
    interactions: int
    reason: str = ""


def agreement(opinions: Iterable[Mapping[str, bool]]) -> Agreement:
    """Of the interactions with several opinions, each a person's name to whether it is harmful."""
    import krippendorff

    rows = list(opinions)
    if not rows:
        return Agreement(None, 0, "no interaction has two opinions yet")
    harmful = np.array([sum(row.values()) for row in rows])
    table = np.stack([np.array([len(row) for row in rows]) - harmful, harmful], axis=1)
    if not table.sum(axis=0).all():
        return Agreement(None, len(rows), "everyone has said the same of everything")
    alpha = krippendorff.alpha(
        value_counts=table, value_domain=[0, 1], level_of_measurement="nominal"
    )
    return Agreement(float(alpha), len(rows))
