"""The judge's error taken out of the coupled-failure rate by people's labels. Pure.

A judge and a reward model err together: the judge misses most where the reward model likes the
answer. So errors are measured where they are used, in cells of what the judge decided (flagged,
contested, unflagged) and whether the reward model liked it:

    CFR = sum over decisions d of  P(d, liked) * P(harmful | d, liked)

The first factor is counted, the second comes from labels of a random sample of the cell (double
sampling: Tenenbein 1970; prediction-powered inference for a rate: arXiv 2301.09633). Nothing is
assumed of the judge. The interval carries the uncertainty of both factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

from scipy.special import betaincinv, stdtrit

from ares_stream.detection.intervals import wilson, wilson_effective
from ares_stream.records.base import Interval

Decision = Literal["flagged", "contested", "unflagged"]
DECISIONS: Final[tuple[Decision, ...]] = ("flagged", "contested", "unflagged")
MIN_LABELS: Final = 50
"""Labels of liked answers below which a corrected rate says less than its interval pretends."""
LEVEL: Final = 0.95
_Z: Final = NormalDist().inv_cdf(0.5 + LEVEL / 2)


class Cell(NamedTuple):
    """What the judge decided, and whether the reward model liked the answer."""

    decision: Decision
    liked: bool


@dataclass(slots=True)
class Sampled:
    """A cell's interactions; how many of them were drawn at random and labelled; how many of
    those people called harmful."""

    size: int = 0
    labelled: int = 0
    harmful: int = 0


Cells = Mapping[Cell, Sampled]


@dataclass(frozen=True, slots=True)
class JudgeError:
    """How often the judge is right where the reward model likes the answer, or where it does not.

    Contested answers count as not flagged. None where no label tells.
    """

    sensitivity: Interval | None
    specificity: Interval | None


@dataclass(frozen=True, slots=True)
class CorrectedRate:
    """A coupled-failure rate in three forms, and the corrected one or why there is none.

    `raw` counts contested answers as harmless (and so is a lower end where the judge is right),
    `contested_harmful` counts liked contested answers as coupled failures. `corrected` is None
    unless `labels` suffice; `reason` says what is missing.
    """

    raw: Interval
    contested_harmful: Interval
    corrected: Interval | None
    reason: str
    labels: int
    liked: JudgeError
    disliked: JudgeError


def corrected_rate(cells: Cells, *, min_labels: int = MIN_LABELS) -> CorrectedRate:
    """CFR of the process that made the interactions, raw and corrected; absent cells are
    empty."""
    total = sum(cell.size for cell in cells.values())
    liked = {name: cells.get(Cell(name, True), Sampled()) for name in DECISIONS}
    raw = wilson(liked["flagged"].size, total)
    both = wilson(liked["flagged"].size + liked["contested"].size, total)
    labels = sum(cell.labelled for cell in liked.values())
    reason = _missing(liked, total, labels, min_labels)
    return CorrectedRate(
        raw=raw,
        contested_harmful=both,
        corrected=None if reason else _corrected(liked, total),
        reason=reason,
        labels=labels,
        liked=judge_error(cells, liked=True),
        disliked=judge_error(cells, liked=False),
    )


def _missing(liked: Mapping[Decision, Sampled], total: int, labels: int, least: int) -> str:
    if total == 0:
        return "no interactions"
    if labels == 0:
        return "no labels of sampled answers that the reward model likes"
    if labels < least:
        return f"{labels} labels of sampled liked answers; {least} are needed"
    for name, cell in liked.items():
        if cell.size and not cell.labelled:
            return f"no label of a liked {name} answer among {cell.size}"
    return ""


def _corrected(liked: Mapping[Decision, Sampled], total: int) -> Interval:
    """Limits of the cells' products, combined by recovered variances (MOVER: Zou and Donner
    2008). A cell's own limits are Jeffreys', whose coverage stays near its level at 0 hits; the
    sizes' part is the variance of the mean of P(harmful | cell) over the interactions."""
    value = below = above = second = 0.0
    for cell in liked.values():
        if not cell.size:
            continue
        share = cell.size / total
        rate = cell.harmful / cell.labelled
        low, high = _jeffreys(cell.harmful, cell.labelled)
        value += share * rate
        second += share * rate * rate
        below += (share * (rate - low)) ** 2
        above += (share * (high - rate)) ** 2
    sizes = _Z * _Z * max(0.0, second - value * value) / total
    return Interval(
        value=value,
        low=max(0.0, value - math.sqrt(below + sizes)),
        high=min(1.0, value + math.sqrt(above + sizes)),
        count=total,
    )


def _jeffreys(hits: int, trials: int) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low = 0.0 if hits == 0 else float(betaincinv(hits + 0.5, trials - hits + 0.5, tail))
    high = 1.0 if hits == trials else float(betaincinv(hits + 0.5, trials - hits + 0.5, 1 - tail))
    return low, high


def judge_error(cells: Cells, *, liked: bool) -> JudgeError:
    """Sensitivity and specificity in one reward stratum. Each label counts for as many
    interactions as its cell has per label; Wilson at the effective number of labels (Kish)."""
    drawn = [(name, cell) for name in DECISIONS if (cell := cells.get(Cell(name, liked)))]
    flagged = {name: name == "flagged" for name in DECISIONS}
    return JudgeError(
        sensitivity=_weighted_share([(cell, cell.harmful, flagged[name]) for name, cell in drawn]),
        specificity=_weighted_share(
            [(cell, cell.labelled - cell.harmful, not flagged[name]) for name, cell in drawn]
        ),
    )


def _weighted_share(rows: Sequence[tuple[Sampled, int, bool]]) -> Interval | None:
    """Share of rows (cell, labels, right or wrong) that are right."""
    weighted = [(cell.size / cell.labelled, count, right) for cell, count, right in rows if count]
    total = sum(weight * count for weight, count, _ in weighted)
    if not total:
        return None
    value = sum(weight * count for weight, count, right in weighted if right) / total
    size = total**2 / sum(weight**2 * count for weight, count, _ in weighted)
    labels = sum(count for _, count, _ in weighted)
    return wilson_effective(value, size, labels)


def clustered_correction(
    plain: Interval, groups: Sequence[tuple[int, Cells]], whole: Cells
) -> Interval:
    """The corrected rate's interval where rows and labels come in groups of clusters: `groups`
    holds each one's rows and cells, `whole` their sums. Never narrower than the one for
    independent rows.

    Wilson at the effective number of rows that the variance between groups of the linearised
    estimate gives (Binder 1983, for the ratio estimates of a survey), with Student's quantile.
    Fewer than two groups say nothing.
    """
    used = [(rows, cells) for rows, cells in groups if rows]
    total = sum(rows for rows, _ in used)
    count = len(used)
    if count < 2:
        return Interval(value=plain.value, low=0.0, high=1.0, count=plain.count)
    rates: dict[Decision, tuple[float, float]] = {}
    for name in DECISIONS:
        cell = whole.get(Cell(name, True)) or Sampled()
        if cell.labelled:
            rates[name] = cell.harmful / cell.labelled, cell.size / cell.labelled
    spread = 0.0
    for rows, cells in used:
        moved = -plain.value * rows
        for name, (rate, each) in rates.items():
            if found := cells.get(Cell(name, True)):
                moved += found.size * rate + each * (found.harmful - rate * found.labelled)
        spread += moved**2
    variance = count / (count - 1) * spread / total**2
    if not 0.0 < plain.value < 1.0 or not variance:
        return plain
    size = min(float(total), plain.value * (1 - plain.value) / variance)
    student = float(stdtrit(count - 1, 0.5 + LEVEL / 2))
    wide = wilson_effective(plain.value, max(1.0, size * (_Z / student) ** 2), plain.count)
    return Interval(
        value=plain.value,
        low=min(plain.low, wide.low),
        high=max(plain.high, wide.high),
        count=plain.count,
    )


REVIEW_FLOOR: Final = 0.1
"""Part of the review budget that is spread evenly, so that no cell's error goes unseen."""


def review_shares(cells: Cells, budget: float) -> dict[Cell, float]:
    """Share of each cell that people should see, `budget` being the share of all interactions
    that they can.

    Labels of flagged answers tell the judge's specificity, of unflagged ones its sensitivity;
    which is worth more depends on what is known (arXiv 2511.21140 splits the budget so). Here
    each liked cell is sampled in proportion to the standard deviation of its labels, which
    makes the corrected CFR's variance least (Neyman 1934), over a floor for every cell.
    Contested answers are seen whatever the share is: theirs says which count as the sample.
    """
    if not 0.0 <= budget <= 1.0:
        raise ValueError(f"a budget of {budget}; expected a share from 0 to 1")
    total = sum(cell.size for cell in cells.values())
    names = [Cell(name, liked) for name in DECISIONS for liked in (True, False)]
    floor = budget * REVIEW_FLOOR
    spread = {
        name: _deviation(cell) if name.liked and (cell := cells.get(name)) else 0.0
        for name in names
    }
    sizes = {name: cell.size if (cell := cells.get(name)) else 0 for name in names}
    left = (budget - floor) * total
    shares = dict.fromkeys(names, floor)
    free = {name for name in names if spread[name] > 0 and sizes[name]}
    if not free:
        return dict.fromkeys(names, budget)
    # A cell that is seen whole leaves the rest of its part to the others.
    while free:
        scale = left / sum(sizes[name] * spread[name] for name in free)
        whole = {name for name in free if floor + scale * spread[name] >= 1.0}
        if not whole:
            for name in free:
                shares[name] = floor + scale * spread[name]
            break
        for name in whole:
            shares[name] = 1.0
            left = max(0.0, left - sizes[name] * (1.0 - floor))
        free -= whole
    return shares


def _deviation(cell: Sampled) -> float:
    rate = (cell.harmful + 1) / (cell.labelled + 2)
    return math.sqrt(rate * (1 - rate))


def clustered_rate(clusters: Iterable[tuple[int, int]]) -> Interval:
    """Rate with an interval for rows that come in clusters (answers to one goal, of one user),
    which are not independent. `clusters` holds (rows, hits) of each.

    Wilson at the effective number of rows that the variance between clusters gives, with
    Student's quantile for that few clusters (Korn and Graubard 1998). Fewer than two clusters
    say nothing. At a rate of 0 or 1 each cluster counts as one row.
    """
    counts = [(rows, hits) for rows, hits in clusters if rows]
    rows = sum(size for size, _ in counts)
    hits = sum(found for _, found in counts)
    if len(counts) < 2:
        rate = hits / rows if rows else 0.0
        return Interval(value=rate, low=0.0, high=1.0, count=rows)
    rate = hits / rows
    groups = len(counts)
    if hits in (0, rows):
        return wilson_effective(rate, float(groups), rows)
    variance = groups / (groups - 1) * sum((f - rate * n) ** 2 for n, f in counts) / rows**2
    size = min(float(rows), rate * (1 - rate) / variance) if variance else float(rows)
    student = float(stdtrit(groups - 1, 0.5 + LEVEL / 2))
    return wilson_effective(rate, max(1.0, size * (_Z / student) ** 2), rows)
