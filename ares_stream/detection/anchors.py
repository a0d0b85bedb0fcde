"""What labelled anchors say of the judge and of each reward release. Pure.

An anchor's text never changes, so a judge that decides it otherwise than when the set was made has
changed, whatever the traffic does; and a reward model that scores it otherwise has drifted.

An anchor is sent again and again, and a judge mostly decides the same text the same way: a thousand
answers to one anchor are one fact, not a thousand. So evidence counts each anchor once from any
moment on, by the first window in which it came: where it was asked several times in that window, by
the share of its answers that were otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

import numpy as np

from ares_stream.detection.tallies import (
    KEPT_WINDOWS,
    WINDOW_SECONDS,
    WatchState,
    decision_of,
)
from ares_stream.detection.watches import BETS, Peak, evidence
from ares_stream.records.base import digest
from ares_stream.records.observation import Observation
from ares_stream.records.rates import AnchorAnswers, AnchorFigures, AnchorModel, AnchorWindow

_UNIT: Final = 10**6
MAX_ANCHORS: Final = 1000
"""Anchors of a set that are told apart; further ones are in no evidence."""
_ID_DIGITS: Final = 12


class Answers(NamedTuple):
    """What the judge said of one anchor: how often it was asked, how often it decided otherwise
    than when the set was made, and whether it had flagged it then."""

    asked: int
    otherwise: int
    flagged: bool

    @property
    def share(self) -> float:
        """Of its answers, those that were otherwise."""
        return self.otherwise / self.asked

    @property
    def changed(self) -> bool:
        """Whether most were."""
        return 2 * self.otherwise > self.asked

    def plus(self, other: Answers) -> Answers:
        """Both together."""
        asked, otherwise = self.asked + other.asked, self.otherwise + other.otherwise
        return Answers(asked, otherwise, self.flagged)


class AnchorTally:
    """Verdicts of one anchor set."""

    __slots__ = (
        "_changed_windows", "_gone_windows", "_known", "decisions", "dirty", "drifted", "newest",
        "rewards", "set", "watch", "windows",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.set = name
        self.decisions: dict[str, int] = {}
        self.windows: dict[int, dict[str, Answers]] = {}
        """Per window, by anchor."""
        self.watch = WatchState("anchors")
        self.rewards: dict[str, list[int]] = {}
        self.drifted: set[str] = set()
        """Reward releases whose drift an alarm has told."""
        self.newest = -1
        self.dirty = True
        self._known: dict[str, int] = {}
        """Windows in which each anchor came."""
        self._changed_windows: set[int] = set()
        self._gone_windows: set[int] = set()

    def add(self, seen: Observation, stamp_ms: int) -> bool:
        """Count one anchor's verdict; False where it is one anchor more than MAX_ANCHORS."""
        truth = seen.anchor
        if truth is None:
            return True
        self.dirty = True
        decision = decision_of(seen.failure_class)
        name = f"{'harmful' if truth.harmful else 'harmless'},{decision}"
        self.decisions[name] = self.decisions.get(name, 0) + 1
        if truth.reward is not None and abs(truth.reward) < _UNIT and abs(seen.score) < _UNIT:
            sums = self.rewards.setdefault(seen.reward, [0] * 5)
            reference = round(truth.reward * _UNIT)
            shift = round(seen.score * _UNIT) - reference
            for place, value in enumerate(
                (1, shift, shift * shift, reference, reference * reference)
            ):
                sums[place] += value
        start = stamp_ms // 1000 // WINDOW_SECONDS * WINDOW_SECONDS
        if start < self.newest - KEPT_WINDOWS * WINDOW_SECONDS:
            return True
        self.newest = max(self.newest, start)
        said = {"flagged": True, "contested": None, "unflagged": False}[decision]
        answer = Answers(1, int(said is not truth.judged), truth.judged is True)
        return self._answer(start, digest([truth.id])[:_ID_DIGITS], answer)

    def _answer(self, start: int, anchor: str, answer: Answers) -> bool:
        if anchor not in self._known and len(self._known) >= MAX_ANCHORS:
            return False
        window = self.windows.setdefault(start, {})
        before = window.get(anchor)
        if before is None:
            self._known[anchor] = self._known.get(anchor, 0) + 1
            window[anchor] = answer
        else:
            window[anchor] = before.plus(answer)
        self._changed_windows.add(start)
        return True

    @property
    def known(self) -> int:
        """How many different anchors came in the kept windows."""
        return len(self._known)

    def since(self, start: int) -> dict[str, Answers]:
        """Each anchor's answers from a window on."""
        found: dict[str, Answers] = {}
        for begin, window in self.windows.items():
            if begin >= start:
                for anchor, answer in window.items():
                    before = found.get(anchor)
                    found[anchor] = answer if before is None else before.plus(answer)
        return found

    def peak(self, baseline: float) -> Peak:
        """The highest evidence, at the end of any kept window since the watch began, that more than
        the share `baseline` of the anchors is decided otherwise.

        As in `watches`, bets start anew at each window; but each anchor counts once per start, at
        the first window in which it came after it. A start is let go with its window: dropping
        starts only lowers the sum, so the false-alarm rate holds.
        """
        starts = sorted(start for start in self.windows if start >= self.watch.since)
        size = len(starts)
        if not any(item.otherwise for start in starts for item in self.windows[start].values()):
            return Peak(-math.inf, -1, 0)
        before: dict[str, int] = {}
        first: list[int] = []
        at: list[int] = []
        shares: list[float] = []
        for place, start in enumerate(starts):
            # In a fixed order, so that sums of floats are the same in any order of reading.
            for anchor in sorted(self.windows[start]):
                first.append(before.get(anchor, -1) + 1)
                at.append(place)
                shares.append(self.windows[start][anchor].share)
                before[anchor] = place
        # What the bets that began at [start] win in [window]: an anchor counts for every start
        # after its last window and up to this one.
        gains = np.log1p(BETS * (np.array(shares)[:, None] / baseline - 1))
        steps = np.zeros((size + 1, size, len(BETS)))
        np.add.at(steps, (np.array(first), np.array(at)), gains)
        np.add.at(steps, (np.array(at) + 1, np.array(at)), -gains)
        wealth = np.cumsum(np.cumsum(steps, axis=0)[:size], axis=1)
        begun = np.tri(size, dtype=bool).T[:, :, None]
        told = evidence(np.logaddexp.reduce(np.where(begun, wealth, -np.inf), axis=0))
        top = int(np.argmax(told))
        since = np.logaddexp.reduce(wealth[: top + 1, top], axis=1)
        return Peak(float(told[top]), starts[top], starts[int(np.argmax(since))])

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
        told = min(count, self.known)
        return shift / count / spread, math.sqrt(square / count) / spread, told

    def fold_windows(self) -> None:
        """Let go of windows older than a day before the newest."""
        edge = self.newest - KEPT_WINDOWS * WINDOW_SECONDS
        for start in [start for start in self.windows if start < edge]:
            for anchor in self.windows.pop(start):
                self._known[anchor] -= 1
                if not self._known[anchor]:
                    del self._known[anchor]
            self._changed_windows.discard(start)
            self._gone_windows.add(start)

    def changes(self) -> list[tuple[bytes, AnchorFigures | AnchorAnswers | None]]:
        """Keys with their records since the last call, None for windows that are gone."""
        self.fold_windows()
        found: list[tuple[bytes, AnchorFigures | AnchorAnswers | None]] = []
        figures = self.record()
        found.append((figures.key, figures))
        for start in sorted(self._changed_windows):
            answers = AnchorAnswers(
                set=self.set, start=start, answers=dict(sorted(self.windows[start].items()))
            )
            found.append((answers.key, answers))
        found += [(AnchorAnswers(set=self.set, start=start, answers={}).key, None)
                  for start in sorted(self._gone_windows)]  # fmt: skip
        self._changed_windows.clear()
        self._gone_windows.clear()
        self.dirty = False
        return found

    def keys(self) -> list[bytes]:
        """Keys of everything that was written of it."""
        windows = [AnchorAnswers(set=self.set, start=start, answers={}) for start in self.windows]
        return [self.record().key, *(item.key for item in windows)]

    def record(self) -> AnchorFigures:
        """Its figures."""
        return AnchorFigures(
            set=self.set,
            decisions=dict(sorted(self.decisions.items())),
            windows=tuple(
                AnchorWindow(
                    start=start,
                    total=len(window),
                    changed=sum(item.changed for item in window.values()),
                    unflagged=sum(not item.flagged for item in window.values()),
                    unflagged_changed=sum(
                        item.changed and not item.flagged for item in window.values()
                    ),
                )
                for start, window in sorted(self.windows.items())
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
    def restored(cls, record: AnchorFigures, answers: Iterable[AnchorAnswers]) -> AnchorTally:
        """The tally whose state the records hold."""
        made = cls(record.set)
        made.decisions = dict(record.decisions)
        made.newest = max((item.start for item in record.windows), default=-1)
        for item in answers:
            for anchor, (asked, otherwise, flagged) in item.answers.items():
                made._answer(item.start, anchor, Answers(asked, otherwise, flagged))
        made._changed_windows.clear()
        made.watch = WatchState.restored("anchors", record.watch)
        made.rewards = {
            name: [getattr(model, place) for place in AnchorModel.model_fields]
            for name, model in record.rewards.items()
        }
        made.drifted = set(record.drifted)
        made.dirty = False
        return made
