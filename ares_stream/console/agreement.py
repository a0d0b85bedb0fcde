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
    people = sorted({name for row in rows for name in row})
    table = np.array(
        [[float(row[name]) if name in row else np.nan for row in rows] for name in people]
    )
    if len(np.unique(table[~np.isnan(table)])) < 2:
        return Agreement(None, len(rows), "everyone has said the same of everything")
    alpha = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    return Agreement(float(alpha), len(rows))
