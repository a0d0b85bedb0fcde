"""Stops reading a topic that turns into dead letters, before a bad deploy or one provider's
outage drains all of it. Pure."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

REASONS: Final = 3
"""Reasons that are shown, the most frequent first."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When too much of a topic is refused: a share of its last `window` records, or a run without
    a gap. `accept` lets everything pass: what is refused becomes dead letters, however much."""

    window: int = 500
    share: float = 0.5
    consecutive: int = 100
    accept: bool = False


@dataclass(slots=True)
class _Topic:
    last: deque[str | None]
    refused: int = 0
    run: int = 0
    opened: str | None = None
    counted: dict[int, int] = field(default_factory=dict)


class Breaker:
    """Counts what was committed, per input topic. Keep one over all sessions: a record that is
    committed again after an unknown outcome is counted once."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._topics: dict[str, _Topic] = {}

    def count(self, topic: str, partition: int, offset: int, refusal: str | None) -> None:
        """Count one committed record: why it was refused, or None. The dead letters of what is
        counted are written; a share is judged on a full window."""
        state = self._topics.setdefault(topic, _Topic(deque(maxlen=self._policy.window)))
        if self._policy.accept or offset <= state.counted.get(partition, -1):
            return
        state.counted[partition] = offset
        if len(state.last) == self._policy.window:
            state.refused -= state.last[0] is not None
        state.last.append(refusal)
        state.refused += refusal is not None
        state.run = 0 if refusal is None else state.run + 1
        if state.opened is None:
            state.opened = self._judged(state)

    def opened(self, topic: str) -> str | None:
        """Why no more of a topic is read, with the most frequent reasons and their counts; None
        while it is."""
        state = self._topics.get(topic)
        return None if state is None else state.opened

    @property
    def paused(self) -> dict[str, str]:
        """What `opened` says, of the topics that are not read."""
        return {
            topic: state.opened for topic, state in self._topics.items() if state.opened is not None
        }

    def _judged(self, state: _Topic) -> str | None:
        if state.run >= self._policy.consecutive:
            what = f"{state.run} records in a row were refused"
        elif (
            len(state.last) == self._policy.window
            and state.refused >= self._policy.share * self._policy.window
        ):
            what = f"{state.refused} of the last {self._policy.window} records were refused"
        else:
            return None
        reasons = Counter(reason for reason in state.last if reason is not None)
        shown = "; ".join(f"{count} x {why}" for why, count in reasons.most_common(REASONS))
        return f"{what} ({shown})"
