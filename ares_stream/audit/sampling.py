"""Which of a range's prompts are asked again: so many of each slice, at random. Pure.

Each record gets a number from its coordinates and the seed; of each stratum those with the
smallest numbers are kept. So the sample does not depend on the order in which partitions were
read, the same range gives the same sample on every machine, and a longer range changes only what
it must. Memory is bounded by the sample, not by the range.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.errors import InputError
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction

MAX_STRATA: Final = 200
"""Combinations of values that are kept apart; a field like a user's id would hold the whole topic
in memory. Those that come later are one stratum together, and only then does the order of reading
matter."""
MAX_BYTES: Final = 512 << 20
"""Of the texts that a sample holds."""
OTHER: Final = "(other)"

Coordinates = tuple[str, int, int]
"""Topic, partition, offset."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One prompt of the sample: `probability` is the share of its stratum that was drawn, so that
    it stands for 1 / probability prompts. `places` are the slices that it lies in."""

    interaction: Interaction
    coordinates: Coordinates
    probability: float
    places: tuple[str, ...]


class _Stratum:
    def __init__(self) -> None:
        self.seen = 0
        # Of the kept ones, that with the largest number first: it is the next to go.
        self.kept: list[tuple[int, Coordinates, int, Interaction]] = []


class PromptSample:
    """At most `each` prompts of every combination of values of the attributes in `by`."""

    def __init__(self, by: Sequence[str] = (), each: int = 400, seed: int = 0) -> None:
        if each < 1:
            raise InputError("the sample of a slice: at least one prompt")
        self._by = tuple(by)
        self._each = each
        self._seed = seed
        self._strata: dict[tuple[str, ...], _Stratum] = {}
        self._bytes = 0

    @property
    def seen(self) -> int:
        """Prompts of the range."""
        return sum(stratum.seen for stratum in self._strata.values())

    def add(self, interaction: Interaction, coordinates: Coordinates) -> None:
        """One prompt of the range. Raises InputError where the sample's texts are too large."""
        values = tuple(interaction.attributes.get(name, "") for name in self._by)
        if values not in self._strata and len(self._strata) >= MAX_STRATA:
            values = (OTHER,) * len(self._by)
        stratum = self._strata.setdefault(values, _Stratum())
        stratum.seen += 1
        entry = (-self._number(coordinates), coordinates, _size(interaction), interaction)
        if len(stratum.kept) < self._each:
            heapq.heappush(stratum.kept, entry)
            self._bytes += entry[2]
        elif entry[:2] > stratum.kept[0][:2]:
            gone = heapq.heapreplace(stratum.kept, entry)
            self._bytes += entry[2] - gone[2]
        if self._bytes > MAX_BYTES:
            raise InputError(
                f"the sample holds more than {MAX_BYTES >> 20} MiB of text; take fewer prompts of "
                "each slice, or fewer attributes"
            )

    def drawn(self) -> list[Drawn]:
        """The sample, by coordinates."""
        found: list[Drawn] = []
        for values, stratum in self._strata.items():
            places = tuple(
                f"{name}={value}" for name, value in zip(self._by, values, strict=True) if value
            )
            share = len(stratum.kept) / stratum.seen
            found += [Drawn(item, where, share, places) for _, where, _, item in stratum.kept]
        return sorted(found, key=lambda item: item.coordinates)

    def sizes(self) -> dict[str, int]:
        """Prompts of the range in each slice."""
        found: dict[str, int] = {}
        for values, stratum in self._strata.items():
            for name, value in zip(self._by, values, strict=True):
                if value:
                    place = f"{name}={value}"
                    found[place] = found.get(place, 0) + stratum.seen
        return found

    def _number(self, coordinates: Coordinates) -> int:
        raw = hashlib.sha256("\0".join(map(str, (self._seed, *coordinates))).encode()).digest()
        return int.from_bytes(raw[:8], "big")


def sample_digest(drawn: Sequence[Drawn]) -> str:
    """Names a sample by its records' coordinates."""
    return digest([list(item.coordinates) for item in drawn])


def _size(interaction: Interaction) -> int:
    return len(interaction.response) + sum(len(turn.content) for turn in interaction.messages)
