"""What records without a verdict were decided with: what the verdicts beside them name. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

from ares_stream.audit.replay.models import MadeWith, Readings
from ares_stream.audit.replay.recorded import Output, Recorded
from ares_stream.errors import DecodeError


class Neighbours:
    """The verdicts of a block by offset. Where the block has none on a side, `beside` gives the
    entries of the block before (-1) or after (1)."""

    def __init__(
        self,
        found: Mapping[int, Sequence[Recorded]],
        beside: Callable[[int], Sequence[Recorded]],
        readings: Readings,
    ) -> None:
        self._readings = readings
        self._beside = beside
        self._further: dict[int, MadeWith | None] = {}
        self._found = found
        self._offsets = sorted(found)

    def reading(self, item: Recorded) -> MadeWith | None:
        """What a recorded verdict was made with; None for one that is none of ours, which is
        compared as it is."""
        return self._read(item.payload)

    def around(self, offset: int) -> list[MadeWith]:
        """What the nearest verdicts before and after an offset were made with, that before it
        first, each once."""
        offsets = self._offsets
        place = bisect_left(offsets, offset)
        before = next(filter(None, map(self._at, range(place - 1, -1, -1))), None)
        after = next(filter(None, map(self._at, range(place, len(offsets)))), None)
        found = [before or self._far(-1), after or self._far(1)]
        return list(dict.fromkeys(item for item in found if item is not None))

    def _at(self, place: int) -> MadeWith | None:
        entries = self._found[self._offsets[place]]
        verdicts = (item for item in entries if item.output is Output.VERDICT)
        return next(filter(None, map(self.reading, verdicts)), None)

    def _read(self, payload: bytes) -> MadeWith | None:
        try:
            return self._readings.of(payload)
        except DecodeError:
            return None

    def _far(self, side: int) -> MadeWith | None:
        if side not in self._further:
            verdicts = sorted(
                (item for item in self._beside(side) if item.output is Output.VERDICT),
                key=lambda item: -side * item.offset,
                reverse=True,
            )
            self._further[side] = next(filter(None, map(self.reading, verdicts)), None)
        return self._further[side]
