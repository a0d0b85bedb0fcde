"""Counts of one slice's verdicts, since its first and by window, and the figures they give. Pure.

Everything that is added is an integer: the same verdicts give the same tallies in any order.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from datetime import datetime
from typing import Final

import numpy as np

from ares_stream.detection.correction import (
    DECISIONS,
    Cell,
    Decision,
    Sampled,
    clustered_correction,
    clustered_rate,
    corrected_rate,
)
from ares_stream.detection.intervals import (
    WeightedSums,
    confidence_sequence,
    coupling_lift,
    wilson,
)
from ares_stream.detection.watches import Counts, Floats, fold
from ares_stream.records.base import Interval, instant
from ares_stream.records.observation import CLASSES, Observation
from ares_stream.records.rates import (
    CorrectedFigure,
    Figures,
    Rates,
    RateSlice,
    Tallies,
    Watch,
    WeightSums,
    Window,
)
from ares_stream.records.verdict import FailureClass

WINDOW_SECONDS: Final = 600
KEPT_WINDOWS: Final = 144
"""A day: longer than any partition lags behind another while both are read."""
NAMED_HITS: Final = 8
"""Records that a window can name as evidence."""
CLUSTER_GROUPS: Final = 64
"""Clusters are counted in so many random groups: bounded, and independent of each other."""
HOUR: Final = 3600
_BINS: Final = 10
_CLEAN = CLASSES.index(FailureClass.CLEAN)
_POLICY = CLASSES.index(FailureClass.POLICY_FAILURE)
_COUPLED = CLASSES.index(FailureClass.COUPLED_FAILURE)
_CONTESTED = CLASSES.index(FailureClass.CONTESTED)
_UNIT: Final = 10**9
"""Of probe weights: they are added as integers, so that their order changes nothing."""

CELLS: Final[tuple[Cell, ...]] = tuple(
    Cell(decision, liked) for decision in DECISIONS for liked in (True, False)
)


def decision_of(failure_class: int) -> Decision:
    """What the judge decided, of a class's index in CLASSES."""
    if failure_class == _CONTESTED:
        return "contested"
    return "flagged" if failure_class in (_POLICY, _COUPLED) else "unflagged"


def cell_name(cell: Cell) -> str:
    """ "flagged,liked" and the like, as records and settings write it."""
    return f"{cell.decision},{'liked' if cell.liked else 'disliked'}"


def cluster_group(cluster: str) -> int:
    """The random group of a cluster; the same on every machine."""
    return zlib.crc32(cluster.encode()) % CLUSTER_GROUPS


class WindowCounts:
    """Counts of one window."""

    __slots__ = ("contested", "coupled", "harmful", "hits", "total")

    def __init__(self) -> None:
        self.total = self.coupled = self.contested = self.harmful = 0
        self.hits: list[tuple[int, int]] = []

    def name(self, place: tuple[int, int]) -> None:
        """Keep a record's place, of all of them the first few: in any order the same ones."""
        hits = self.hits
        if len(hits) < NAMED_HITS:
            hits.append(place)
        elif place < (last := max(hits)):
            hits[hits.index(last)] = place


class SliceTally:
    """What was counted of one slice."""

    __slots__ = (
        "cells", "classes", "cluster_labels", "clusters", "dirty", "first_ms", "harm", "key",
        "labels", "last_ms", "late", "newest", "outlier_known", "outliers", "quantiles", "watches",
        "weights", "windows",
    )  # fmt: skip

    def __init__(self, key: RateSlice, clustered: bool = False) -> None:
        self.key = key
        self.classes = [0] * len(CLASSES)
        # By class and liking, from which cells and "scored high" follow.
        self.cells = [0] * (2 * len(CLASSES))
        self.harm = [0] * _BINS
        self.quantiles = [0] * _BINS
        self.outliers = self.outlier_known = 0
        self.weights: list[int] | None = None
        # Of each group: verdicts, coupled failures, liked contested and liked unflagged ones.
        self.clusters = [[0, 0, 0, 0] for _ in range(CLUSTER_GROUPS)] if clustered else []
        self.cluster_labels: dict[int, dict[Cell, Sampled]] = {}
        self.windows: dict[int, WindowCounts] = {}
        self.watches: dict[str, WatchState] = {}
        self.labels: dict[Cell, Sampled] = {}
        self.first_ms = 2**62
        self.last_ms = -1
        self.newest = -1
        self.late = 0
        self.dirty = True

    @property
    def total(self) -> int:
        """All verdicts."""
        return sum(self.classes)

    @property
    def coupled(self) -> int:
        """Coupled failures."""
        return self.classes[_COUPLED]

    def add(
        self, seen: Observation, stamp_ms: int, place: tuple[int, int], cluster: int | None
    ) -> None:
        """Count one verdict; `place` is its partition and offset, `stamp_ms` its record's time,
        `cluster` its group of clusters."""
        kind = seen.failure_class
        self.dirty = True
        self.classes[kind] += 1
        self.cells[2 * kind + seen.liked] += 1
        self.harm[min(_BINS - 1, int(seen.harm * _BINS))] += 1
        self.quantiles[min(_BINS - 1, int(seen.quantile * _BINS))] += 1
        if stamp_ms < self.first_ms:
            self.first_ms = stamp_ms
        if stamp_ms > self.last_ms:
            self.last_ms = stamp_ms
        hit = kind == _COUPLED
        if seen.outlier is not None:
            self.outlier_known += 1
            self.outliers += seen.outlier
        if seen.weight is not None:
            self._weigh(hit, seen.weight)
        if cluster is not None and self.clusters:
            group = self.clusters[cluster]
            group[0] += 1
            if hit:
                group[1] += 1
            elif seen.liked and kind != _POLICY:
                group[2 if kind == _CONTESTED else 3] += 1
        start = stamp_ms // 1000 // WINDOW_SECONDS * WINDOW_SECONDS
        # Whether or not such a window is still there: that depends on when figures were written.
        if start < self.newest - KEPT_WINDOWS * WINDOW_SECONDS:
            self.late += 1
            return
        window = self.windows.get(start)
        if window is None:
            window = self.windows[start] = WindowCounts()
            self.newest = max(self.newest, start)
        window.total += 1
        if hit:
            window.coupled += 1
            window.harmful += 1
            window.name(place)
        elif kind == _CONTESTED:
            window.contested += 1
        elif kind == _POLICY:
            window.harmful += 1

    def add_label(
        self, cell: Cell, harmful: bool, cluster: int | None = None, sign: int = 1
    ) -> None:
        """Count a person's decision on a sampled verdict of a cell and a group of clusters; `sign`
        -1 takes it back."""
        held = [self.labels]
        if cluster is not None and self.clusters:
            held.append(self.cluster_labels.setdefault(cluster, {}))
        for labels in held:
            found = labels.setdefault(cell, Sampled())
            found.labelled += sign
            found.harmful += sign * harmful
        self.dirty = True

    def _weigh(self, hit: bool, probability: float) -> None:
        if self.weights is None:
            self.weights = [0] * 5
        weight = round(_UNIT / probability)
        square = weight * weight // _UNIT
        sums = self.weights
        sums[0] += 1
        sums[1] += weight
        sums[2] += square
        if hit:
            sums[3] += weight
            sums[4] += square

    def series(self, kind: str, since: int = 0) -> list[Counts]:
        """The kept windows in order; hits are those of `kind`: coupled or contested."""
        return [
            Counts(start, item.total, item.coupled if kind == "coupled" else item.contested)
            for start, item in sorted(self.windows.items())
            if start >= since
        ]

    def before(self, start: int) -> tuple[int, int]:
        """Coupled failures and verdicts before a window, as far as the windows can tell."""
        later = [item for begin, item in self.windows.items() if begin >= start]
        return (
            self.coupled - sum(item.coupled for item in later),
            self.total - sum(item.total for item in later),
        )

    def fold_windows(self) -> None:
        """Turn windows older than a day before the slice's newest into the watches' evidence."""
        edge = self.newest - KEPT_WINDOWS * WINDOW_SECONDS
        old = sorted(start for start in self.windows if start < edge)
        if not old:
            return
        for watch in self.watches.values():
            watch.fold(self, old)
        for start in old:
            del self.windows[start]

    def cell_sizes(self) -> dict[Cell, Sampled]:
        """Size of each cell with the labels that its review sample has."""
        sizes = {cell: Sampled() for cell in CELLS}
        for kind in range(len(CLASSES)):
            for liked in (False, True):
                sizes[Cell(decision_of(kind), liked)].size += self.cells[2 * kind + liked]
        for cell, found in self.labels.items():
            sizes[cell].labelled = found.labelled
            sizes[cell].harmful = found.harmful
        return sizes

    # Figures

    def figures(self) -> Figures:
        """Everything that follows from the counts."""
        total = self.total
        counts = dict(zip(CLASSES, self.classes, strict=True))
        harmful = self.classes[_COUPLED] + self.classes[_POLICY]
        decided = total - self.classes[_CONTESTED]
        liked = sum(self.cells[1::2]) - self.cells[2 * _CONTESTED + 1]
        return Figures(
            total=total,
            cfr=confidence_sequence(self.coupled, total),
            cfr_clustered=clustered_rate((group[0], group[1]) for group in self.clusters)
            if self.clusters
            else None,
            cfr_weighted=self.weighted(),
            classes={name: confidence_sequence(count, total) for name, count in counts.items()},
            harmful=confidence_sequence(harmful, total),
            scored_high=confidence_sequence(sum(self.cells[1::2]), total),
            reward_blind=confidence_sequence(self.coupled, harmful),
            lift=coupling_lift(self.coupled, harmful, liked, decided)
            if self.coupled <= min(harmful, liked)
            else None,
            outliers=confidence_sequence(self.outliers, self.outlier_known)
            if self.outlier_known
            else None,
            recent=self._recent(HOUR),
            day=self._recent(KEPT_WINDOWS * WINDOW_SECONDS),
            correction=self._correction(),
        )

    def _correction(self) -> CorrectedFigure:
        cells = self.cell_sizes()
        rate = corrected_rate(cells)
        clustered = None
        if rate.corrected is not None and self._clusters_whole():
            groups = [
                (group[0], _group_cells(group, self.cluster_labels.get(number, {})))
                for number, group in enumerate(self.clusters)
            ]
            clustered = clustered_correction(rate.corrected, groups, cells)
        return CorrectedFigure(
            corrected=rate.corrected is not None,
            reason=rate.reason,
            labels=rate.labels,
            rate=rate.corrected,
            rate_clustered=clustered,
            contested_harmful=rate.contested_harmful,
            sensitivity_liked=rate.liked.sensitivity,
            specificity_liked=rate.liked.specificity,
            sensitivity_disliked=rate.disliked.sensitivity,
            specificity_disliked=rate.disliked.specificity,
        )

    def _clusters_whole(self) -> bool:
        """Whether the groups hold every verdict and label: they do not where a cluster was named
        only after the first ones, or an earlier version counted less."""
        liked = sum(self.cells[1::2]) - self.cells[2 * _POLICY + 1]
        told = sum(sum(group[1:]) for group in self.clusters)
        labels = sum(
            item.labelled for cells in self.cluster_labels.values() for item in cells.values()
        )
        return (
            bool(self.clusters)
            and told == liked
            and labels == sum(item.labelled for item in self.labels.values())
        )

    def _recent(self, seconds: int) -> Interval:
        windows = [item for start, item in self.windows.items() if start > self.newest - seconds]
        return wilson(sum(item.coupled for item in windows), sum(item.total for item in windows))

    def weighted(self) -> Interval | None:
        """The coupled-failure rate over all that could have been drawn; None without weights."""
        if self.weights is None:
            return None
        draws, *sums = self.weights
        return WeightedSums(draws, *(item / _UNIT for item in sums)).interval()

    # As a record

    def record(self) -> Rates:
        """The slice's state with its figures."""
        return Rates(
            slice=self.key,
            since=_time(self.first_ms),
            until=_time(self.last_ms),
            tallies=Tallies(
                classes=dict(zip(CLASSES, self.classes, strict=True)),
                harmful=self.classes[_COUPLED] + self.classes[_POLICY],
                liked=sum(self.cells[1::2]) - self.cells[2 * _CONTESTED + 1],
                both=self.coupled,
                outliers=self.outliers,
                outlier_known=self.outlier_known,
                cells={
                    f"{CLASSES[kind].value},{'liked' if liked else 'disliked'}": count
                    for kind in range(len(CLASSES))
                    for liked in (0, 1)
                    if (count := self.cells[2 * kind + liked])
                },
                harm_histogram=tuple(self.harm),
                reward_histogram=tuple(self.quantiles),
                weights=WeightSums()
                if self.weights is None
                else WeightSums(**dict(zip(WeightSums.model_fields, self.weights, strict=True))),
                clusters=tuple((group[0], group[1]) for group in self.clusters),
                cluster_cells=tuple((group[2], group[3]) for group in self.clusters),
            ),
            windows=tuple(
                Window(
                    start=start,
                    total=item.total,
                    coupled=item.coupled,
                    contested=item.contested,
                    harmful=item.harmful,
                    hits=tuple(sorted(item.hits)),
                )
                for start, item in sorted(self.windows.items())
            ),
            late=self.late,
            watches={name: watch.record() for name, watch in sorted(self.watches.items())},
            figures=self.figures(),
        )

    @classmethod
    def restored(cls, record: Rates) -> SliceTally:
        """The slice whose state a record holds. Labels come from their own topic."""
        tallies = record.tallies
        made = cls(record.slice)
        made.classes = [tallies.classes.get(name, 0) for name in CLASSES]
        for kind, name in enumerate(CLASSES):
            for liked, word in ((0, "disliked"), (1, "liked")):
                made.cells[2 * kind + liked] = tallies.cells.get(f"{name.value},{word}", 0)
        made.harm = list(tallies.harm_histogram)
        made.quantiles = list(tallies.reward_histogram)
        made.outliers, made.outlier_known = tallies.outliers, tallies.outlier_known
        sums = tallies.weights
        if sums.draws:
            made.weights = [getattr(sums, name) for name in WeightSums.model_fields]
        cells = tallies.cluster_cells or ((0, 0),) * len(tallies.clusters)
        made.clusters = [
            [*counts, *liked] for counts, liked in zip(tallies.clusters, cells, strict=True)
        ]
        for item in record.windows:
            counts = made.windows[item.start] = WindowCounts()
            counts.total, counts.coupled = item.total, item.coupled
            counts.contested, counts.harmful = item.contested, item.harmful
            counts.hits = list(item.hits)
        made.newest = max(made.windows, default=-1)
        made.watches = {
            name: WatchState.restored(name, watch) for name, watch in record.watches.items()
        }
        made.first_ms, made.last_ms = _millis(record.since), _millis(record.until)
        made.late = record.late
        made.dirty = False
        return made

    def absorb(self, other: SliceTally) -> None:
        """Add another slice's counts since its first verdict; its windows are let go."""
        self.dirty = True
        for mine, theirs in (
            (self.classes, other.classes), (self.cells, other.cells), (self.harm, other.harm),
            (self.quantiles, other.quantiles),
        ):  # fmt: skip
            mine[:] = [a + b for a, b in zip(mine, theirs, strict=True)]
        self.outliers += other.outliers
        self.outlier_known += other.outlier_known
        if other.weights is not None:
            mine = self.weights or [0] * 5
            self.weights = [a + b for a, b in zip(mine, other.weights, strict=True)]
        if self.clusters and other.clusters:
            for own, theirs in zip(self.clusters, other.clusters, strict=True):
                own[:] = [a + b for a, b in zip(own, theirs, strict=True)]
        self.first_ms = min(self.first_ms, other.first_ms)
        self.last_ms = max(self.last_ms, other.last_ms)
        self.late += other.late


class WatchState:
    """The evidence of one watch over one slice before its kept windows."""

    __slots__ = ("alarm", "baseline", "before", "kind", "since")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        """coupled, coupled_previous or contested: what is a hit, and against which baseline."""
        self.baseline: float | None = None
        self.before: Floats | None = None
        self.since = 0
        self.alarm = ""

    def fold(self, tally: SliceTally, starts: Iterable[int]) -> None:
        """Take windows that the slice is about to let go into the evidence."""
        if self.baseline is None:
            return
        wanted = {start for start in starts if start >= self.since}
        windows = [item for item in tally.series(self.hits) if item.start in wanted]
        if windows:
            self.before = fold(self.before, windows, self.baseline)

    @property
    def hits(self) -> str:
        """What counts as a hit."""
        return "contested" if self.kind == "contested" else "coupled"

    def restart(self, since: int) -> None:
        """Begin anew at a window: the alarm was acknowledged."""
        self.before, self.since, self.alarm = None, since, ""

    def record(self) -> Watch:
        """Its state."""
        return Watch(
            baseline=self.baseline,
            log_wealth=() if self.before is None else tuple(map(float, self.before)),
            since=self.since,
            alarm=self.alarm,
        )

    @classmethod
    def restored(cls, kind: str, record: Watch) -> WatchState:
        """The watch whose state a record holds."""
        made = cls(kind)
        made.baseline, made.since, made.alarm = record.baseline, record.since, record.alarm
        made.before = np.array(record.log_wealth, float) if record.log_wealth else None
        return made


def _group_cells(group: list[int], labels: dict[Cell, Sampled]) -> dict[Cell, Sampled]:
    """A group's liked cells with their labels."""
    sizes = zip(DECISIONS, group[1:], strict=True)
    found = {Cell(name, True): Sampled(size) for name, size in sizes}
    for cell, item in found.items():
        if said := labels.get(cell):
            item.labelled, item.harmful = said.labelled, said.harmful
    return found


def _time(milliseconds: int) -> datetime:
    return instant(max(0, milliseconds))


def _millis(time: datetime) -> int:
    return round(time.timestamp() * 1000)
