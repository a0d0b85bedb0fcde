"""How often each interval of the monitor holds the truth, by streams of known truth.

Verdicts are drawn from scored conversations, so that every figure has a true value, and counted by
the monitor's own tallies. A figure whose interval may be looked at whenever one likes is looked at
many times in each stream, and misses if it misses once; the others are looked at once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.intervals import wilson
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.detection.tallies import WINDOW_SECONDS, SliceTally
from ares_stream.lab.experiments.attribution import Scored, judged
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Lane
from ares_stream.records.observation import CLASSES, Observation
from ares_stream.records.rates import Figures
from ares_stream.records.verdict import FailureClass

ROWS: Final = 4_000
LOOKS: Final = 12
"""Looks at a watched figure, at sizes that grow by a constant factor."""
FIRST_LOOK: Final = 50
USERS: Final = 400
FAVOURITES: Final = 6
"""Conversations of a user's own: half of what a user says is one of them, so that a user's
verdicts are alike."""
LABELS: Final = 200
OUTLIERS: Final = 0.03
PER_WINDOW: Final = 100
_COUPLED = CLASSES.index(FailureClass.COUPLED_FAILURE)
_POLICY = CLASSES.index(FailureClass.POLICY_FAILURE)
_CONTESTED = CLASSES.index(FailureClass.CONTESTED)
WATCHED: Final = frozenset({"cfr", "harmful", "scored_high", "reward_blind", "outliers"})
"""Whose intervals hold at every look. Every class's share is one more."""
EXEMPT: Final = frozenset({"raw", "corrected_clusters_ignored"})
"""Shown to be no interval of the truth: what the judge says, not corrected; and the corrected rate
of users who repeat themselves, taken for independent."""


class Population:
    """Scored conversations with what the judge decides of each, and the true value of each
    figure."""

    def __init__(self, scored: Scored) -> None:
        policy = DetectionPolicy()
        self.scored = scored
        self.kinds = judged(scored, scored.harm, policy)
        self.liked = scored.quantile >= policy.reward_quantile

    @property
    def size(self) -> int:
        """Conversations."""
        return len(self.kinds)

    def truths(self) -> dict[str, float]:
        """What each interval should hold."""
        kinds, liked, harmful = self.kinds, self.liked, self.scored.harmful
        coupled = float(np.mean(kinds == _COUPLED))
        flagged = np.isin(kinds, (_COUPLED, _POLICY))
        decided = kinds != _CONTESTED
        found = {
            "cfr": coupled,
            "cfr_weighted": coupled,
            "cfr_clustered": coupled,
            "recent": coupled,
            "day": coupled,
            "harmful": float(np.mean(flagged)),
            "scored_high": float(np.mean(liked)),
            "reward_blind": coupled / float(np.mean(flagged)),
            "outliers": OUTLIERS,
            "lift": float(np.mean((flagged & liked)[decided]))
            / float(np.mean(flagged[decided]) * np.mean(liked[decided])),
            "contested_harmful": coupled + float(np.mean((kinds == _CONTESTED) & liked)),
            "corrected": float(np.mean(harmful & liked)),
            "corrected_clustered": float(np.mean(harmful & liked)),
            "corrected_clusters_ignored": float(np.mean(harmful & liked)),
            "raw": float(np.mean(harmful & liked)),
        }
        for name, part in (("liked", liked), ("disliked", ~liked)):
            found[f"sensitivity_{name}"] = float(np.mean(flagged[part & harmful]))
            found[f"specificity_{name}"] = float(np.mean(~flagged[part & ~harmful]))
        for number, kind in enumerate(CLASSES):
            found[f"class {kind.value}"] = float(np.mean(kinds == number))
        return found


def one_stream(population: Population, rng: np.random.Generator) -> dict[str, list[Interval]]:
    """Every interval of one stream: of watched figures one per look, of others the last."""
    size = population.size
    labelled = set(rng.choice(ROWS, LABELS, replace=False).tolist())
    favourites = rng.integers(0, size, (USERS, FAVOURITES))
    user = rng.integers(0, USERS, ROWS)
    own = rng.random(ROWS) < 0.5
    alike = np.where(
        own, favourites[user, rng.integers(0, FAVOURITES, ROWS)], rng.integers(0, size, ROWS)
    )
    taste = np.where(population.kinds == _COUPLED, 4.0, 1.0) * rng.gamma(2.0, 1.0, size)
    chance = 0.8 * taste / taste.sum() + 0.2 / size
    ledgers = {
        "production": Ledger(LedgerPolicy(review_shares={})),
        "users": Ledger(LedgerPolicy(review_shares={}, cluster="user")),
        "probe": Ledger(LedgerPolicy(review_shares={})),
    }
    rows: dict[str, NDArray[np.int64]] = {
        "production": rng.integers(0, size, ROWS),
        "users": alike,
        "probe": rng.choice(size, ROWS, p=chance),
    }
    outlier = rng.random(ROWS) < OUTLIERS
    looks = set(np.geomspace(FIRST_LOOK, ROWS, LOOKS).astype(int).tolist())
    found: dict[str, list[Interval]] = {}
    for place in range(ROWS):
        stamp = place // PER_WINDOW * WINDOW_SECONDS * 1000
        for name, ledger in ledgers.items():
            row = int(rows[name][place])
            # Weights are relative to the uniform draw of a space as large as the population.
            weight = float(chance[row]) if name == "probe" else None
            seen = _seen(population, row, weight, bool(outlier[place]), str(user[place]))
            truth = None
            if name != "probe" and place in labelled:
                truth = bool(population.scored.harmful[row])
            ledger.add(seen, stamp, (0, place), truth)
        if place + 1 in looks:
            figures = _whole(ledgers["production"]).figures()
            for name, interval in _watched(figures).items():
                found.setdefault(name, []).append(interval)
    figures = _whole(ledgers["production"]).figures()
    found |= {name: [item] for name, item in _final(figures).items() if item is not None}
    correction = _whole(ledgers["users"]).figures().correction
    for figure, told in (
        ("corrected_clustered", correction.rate_clustered),
        ("corrected_clusters_ignored", correction.rate),
    ):
        if told is not None:
            found[figure] = [told]
    for figure, name in (("cfr_clustered", "users"), ("cfr_weighted", "probe")):
        interval = getattr(_whole(ledgers[name]).figures(), figure)
        if interval is not None:
            found[figure] = [interval]
    return found


def _whole(ledger: Ledger) -> SliceTally:
    (group,) = ledger.groups.values()
    return group.whole


def _watched(figures: Figures) -> dict[str, Interval]:
    found = {name: getattr(figures, name) for name in sorted(WATCHED)}
    return found | {f"class {name.value}": item for name, item in figures.classes.items()}


def _final(figures: Figures) -> dict[str, Interval | None]:
    correction = figures.correction
    errors = ("sensitivity_liked", "specificity_liked", "sensitivity_disliked",
              "specificity_disliked")  # fmt: skip
    raw = wilson(round(figures.cfr.value * figures.total), figures.total)
    return {
        "recent": figures.recent,
        "day": figures.day,
        "lift": figures.lift,
        "contested_harmful": correction.contested_harmful,
        "corrected": correction.rate,
        "raw": raw,
        **{name: getattr(correction, name) for name in errors},
    }


def _seen(
    population: Population, row: int, weight: float | None, outlier: bool, user: str
) -> Observation:
    scored = population.scored
    lane: Lane = "production" if weight is None else "probe"
    return Observation(
        "0" * 32, "i", lane, "policy", "1", "", {"user": user}, int(population.kinds[row]),
        bool(population.liked[row]), float(scored.harm[row]), float(scored.quantile[row]), 0.0,
        weight, outlier, None,
    )  # fmt: skip


def measure(
    scored: Scored, *, streams: int, seed: int = 1, progress: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Coverage of every interval over so many streams; the document of `ares bench intervals`.

    `held` is false where the coverage lies below 95 % beyond what chance explains in so many
    figures (Wilson's upper end at 99.9 %)."""
    population = Population(scored)
    truths = population.truths()
    hits = dict.fromkeys(truths, 0)
    told = dict.fromkeys(truths, 0)
    widths = dict.fromkeys(truths, 0.0)
    for stream in range(streams):
        rng = np.random.default_rng([seed, stream])
        for name, intervals in one_stream(population, rng).items():
            truth = truths[name]
            told[name] += 1
            hits[name] += all(item.low <= truth <= item.high for item in intervals)
            widths[name] += intervals[-1].high - intervals[-1].low
        progress()
    figures = {
        name: {
            "truth": truth,
            "looks": LOOKS if name in WATCHED or name.startswith("class ") else 1,
            "streams": told[name],
            "covers": wilson(hits[name], told[name]).model_dump(),
            "mean_width": widths[name] / told[name] if told[name] else None,
            "held": wilson(hits[name], told[name], 0.999).high >= 0.95,
        }
        for name, truth in truths.items()
    }
    return {
        "schema": "ares.bench-intervals/1",
        "conversations": population.size,
        "verdicts": ROWS,
        "labels": LABELS,
        "streams": streams,
        "figures": figures,
        "failed": sorted(
            name for name, item in figures.items() if not item["held"] and name not in EXEMPT
        ),
    }
