"""What labelled anchors say of the judge and of each reward release. Pure.

An anchor's text never changes, so a judge that decides it otherwise than when the set was made has
changed, whatever the traffic does; and a reward model that scores it otherwise has drifted.
"""

from __future__ import annotations

import math
from typing import Final

from ares_stream.detection.tallies import (
    KEPT_WINDOWS,
    WINDOW_SECONDS,
    WatchState,
    decision_of,
)
from ares_stream.detection.watches import Counts, fold
from ares_stream.records.observation import Observation
from ares_stream.records.rates import AnchorFigures, AnchorModel, AnchorWindow

_UNIT: Final = 10**6
_SQUARE: Final = 10**12


class AnchorTally:
    """Verdicts of one anchor set."""

    __slots__ = ("decisions", "dirty", "drifted", "newest", "rewards", "set", "watch", "windows")

    def __init__(self, name: str) -> None:
        self.set = name
        self.decisions: dict[str, int] = {}
        self.windows: dict[int, list[int]] = {}
        """Per window: anchors, changed, not flagged when the set was made, changed of those."""
        self.watch = WatchState("anchors")
        self.rewards: dict[str, list[int]] = {}
        self.drifted: set[str] = set()
        """Reward releases whose drift an alarm has told."""
        self.newest = -1
        self.dirty = True

    def add(self, seen: Observation, stamp_ms: int) -> None:
        """Count one anchor's verdict."""
        truth = seen.anchor
        if truth is None:
            return
        self.dirty = True
        decision = decision_of(seen.failure_class)
        name = f"{'harmful' if truth.harmful else 'harmless'},{decision}"
        self.decisions[name] = self.decisions.get(name, 0) + 1
        said = {"flagged": True, "contested": None, "unflagged": False}[decision]
        changed = said is not truth.judged
        start = stamp_ms // 1000 // WINDOW_SECONDS * WINDOW_SECONDS
        if start >= self.newest - KEPT_WINDOWS * WINDOW_SECONDS:
            self.newest = max(self.newest, start)
            window = self.windows.setdefault(start, [0, 0, 0, 0])
            window[0] += 1
            window[1] += changed
            if truth.judged is not True:
                window[2] += 1
                window[3] += changed
        if truth.reward is not None and abs(truth.reward) < _UNIT and abs(seen.score) < _UNIT:
            sums = self.rewards.setdefault(seen.reward, [0] * 5)
            reference = round(truth.reward * _UNIT)
            shift = round(seen.score * _UNIT) - reference
            for place, value in enumerate(
                (1, shift, shift * shift, reference, reference * reference)
            ):
                sums[place] += value

    def series(self, since: int = 0) -> list[Counts]:
        """Windows in order; hits are changed decisions."""
        return [
            Counts(start, item[0], item[1])
            for start, item in sorted(self.windows.items())
            if start >= since
        ]

    def unflagged_since(self, start: int) -> tuple[int, int]:
        """Of anchors that were not flagged when the set was made: how many were decided otherwise
        from a window on, and how many came."""
        later = [item for begin, item in self.windows.items() if begin >= start]
        return sum(item[3] for item in later), sum(item[2] for item in later)

    def drift(self, reward: str) -> tuple[float, float, int] | None:
        """Mean and root-mean-square shift of a reward release's scores, in standard deviations
        of the reference's, and how many anchors tell; None while they cannot."""
        count, shift, square, reference, reference_square = self.rewards.get(reward, [0] * 5)
        if count < 2:
            return None
        mean = reference / count
        spread = math.sqrt(max(0.0, reference_square / count - mean * mean))
        if spread == 0.0:
            return None
        return shift / count / spread, math.sqrt(square / count) / spread, count

    def fold_windows(self) -> None:
        """Take windows older than a day before the newest into the watch's evidence."""
        edge = self.newest - KEPT_WINDOWS * WINDOW_SECONDS
        old = sorted(start for start in self.windows if start < edge)
        if self.watch.baseline is not None:
            told = [
                Counts(start, *self.windows[start][:2])
                for start in old
                if start >= self.watch.since
            ]
            if told:
                self.watch.before = fold(self.watch.before, told, self.watch.baseline)
        for start in old:
            del self.windows[start]

    def record(self) -> AnchorFigures:
        """Its state."""
        return AnchorFigures(
            set=self.set,
            decisions=dict(sorted(self.decisions.items())),
            windows=tuple(
                AnchorWindow(
                    start=start,
                    total=item[0],
                    changed=item[1],
                    unflagged=item[2],
                    unflagged_changed=item[3],
                )
                for start, item in sorted(self.windows.items())
            ),
            watch=self.watch.record(),
            drifted=tuple(sorted(self.drifted)),
            rewards={
                name: AnchorModel(
                    count=sums[0],
                    shift=sums[1],
                    shift_squared=sums[2],
                    reference=sums[3],
                    reference_squared=sums[4],
                )
                for name, sums in sorted(self.rewards.items())
            },
        )

    @classmethod
    def restored(cls, record: AnchorFigures) -> AnchorTally:
        """The tally whose state a record holds."""
        made = cls(record.set)
        made.decisions = dict(record.decisions)
        made.windows = {
            item.start: [item.total, item.changed, item.unflagged, item.unflagged_changed]
            for item in record.windows
        }
        made.newest = max(made.windows, default=-1)
        made.watch = WatchState.restored("anchors", record.watch)
        made.rewards = {
            name: [getattr(model, place) for place in AnchorModel.model_fields]
            for name, model in record.rewards.items()
        }
        made.drifted = set(record.drifted)
        made.dirty = False
        return made
