"""Which offsets of a partition are done: results come in any order, commits in order. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    offset: int
    size: int
    result: T | None = None
    done: bool = False


class Watermark(Generic[T]):
    """A FIFO of one partition's offsets. Only the contiguous prefix of completed ones is ready.

    Offsets are added in increasing order; gaps are normal, since control records and compaction
    take offsets that nobody reads.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Entry[T]] = deque()
        self._ready: deque[_Entry[T]] = deque()
        self._open: dict[int, _Entry[T]] = {}
        self._bytes = 0
        self._last = -1

    def __len__(self) -> int:
        """Offsets added and not yet taken."""
        return len(self._waiting) + len(self._ready)

    @property
    def bytes(self) -> int:
        """Their sizes together."""
        return self._bytes

    @property
    def ready(self) -> int:
        """How many can be taken now."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting for its result."""
        return not self._waiting

    def add(self, offset: int, size: int) -> None:
        """Note that a record was read. Raises ValueError for an offset not above the last."""
        if offset <= self._last:
            raise ValueError(f"offset {offset} follows {self._last}")
        self._last = offset
        entry: _Entry[T] = _Entry(offset, size)
        self._open[offset] = entry
        self._waiting.append(entry)
        self._bytes += size

    def complete(self, offset: int, result: T) -> None:
        """Give an offset its result. Raises KeyError for one that is not waiting for it."""
        entry = self._open.pop(offset)
        entry.result = result
        entry.done = True
        while self._waiting and self._waiting[0].done:
            self._ready.append(self._waiting.popleft())

    def take(self, limit: int) -> list[tuple[int, T]]:
        """Remove and return up to `limit` ready offsets with their results, oldest first."""
        taken: list[tuple[int, T]] = []
        while self._ready and len(taken) < limit:
            entry = self._ready.popleft()
            self._bytes -= entry.size
            taken.append((entry.offset, cast(T, entry.result)))
        return taken
