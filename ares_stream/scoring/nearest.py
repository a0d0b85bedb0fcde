"""The benign conversation that is most like a given one: what a reward is compared with.

Likeness is the cosine of term weights, rare words counting more (inverse document frequency,
Spärck Jones 1972): no model of ours is asked, so that a model's fault does not choose its own
comparison.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.records.interaction import Interaction

_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Nearest:
    """`likeness` is between 0 (no word in common) and 1."""

    interaction: Interaction
    likeness: float


class BenignIndex:
    """Conversations by their words. Memory grows with their text."""

    def __init__(self, rows: Sequence[Interaction]) -> None:
        self._rows = tuple(rows)
        counts = [_words(row) for row in rows]
        holders: Counter[str] = Counter(word for count in counts for word in count)
        self._rarity = {word: math.log(len(rows) / held) + 1.0 for word, held in holders.items()}
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for place, count in enumerate(counts):
            for word, weight in self._weights(count).items():
                self._postings[word].append((place, weight))

    def nearest(self, interaction: Interaction) -> Nearest | None:
        """The row most like it; None where none has a word in common. Equal ones: the first."""
        likeness: dict[int, float] = defaultdict(float)
        for word, weight in self._weights(_words(interaction)).items():
            for place, other in self._postings.get(word, ()):
                likeness[place] += weight * other
        if not likeness:
            return None
        place = min(likeness, key=lambda at: (-likeness[at], at))
        return Nearest(self._rows[place], min(1.0, likeness[place]))

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        # A word of no row is rarer than any of theirs.
        unseen = math.log(len(self._rows) + 1.0) + 1.0
        weights = {
            word: (1.0 + math.log(times)) * self._rarity.get(word, unseen)
            for word, times in count.items()
        }
        length = math.sqrt(sum(weight * weight for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}


def _words(interaction: Interaction) -> Counter[str]:
    return Counter(_WORD.findall(f"{interaction.prompt} {interaction.response}".lower()))
