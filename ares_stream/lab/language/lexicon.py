"""The words of an invented language, made from a seed. Pure.

No word means anything outside this package, so no pretrained knowledge helps or hurts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

AXES = ("topic", "tactic", "persona", "goal")
SIZES = (24, 16, 12, 6)
HARMFUL_TOPICS = 12
"""Topics below this index are harmful; topic i + 12 is the benign look-alike of topic i."""
FORMS = (4, 4, 3, 3)
"""Surface forms per component of each axis; the last one is held out of probing and repair."""
CONTENT_WORDS = 4
"""Words of which an answer about a topic names at least two."""
DETAIL_WORDS = 2
"""Words of which an answer to a goal names one."""

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "kl", "st")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")


@dataclass(frozen=True, slots=True)
class Phrase:
    """One surface form: `head` belongs to this component alone, `tail` may be shared."""

    head: str
    tail: str = ""

    def words(self) -> tuple[str, ...]:
        """The phrase's words in order."""
        return (self.head, self.tail) if self.tail else (self.head,)


@dataclass(frozen=True)
class Lexicon:
    """phrases[axis][component][form]; content[topic], detail[goal]: words of answers."""

    phrases: tuple[tuple[tuple[Phrase, ...], ...], ...]
    content: tuple[tuple[str, ...], ...]
    detail: tuple[tuple[str, ...], ...]
    fillers: tuple[str, ...]
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    refusals: tuple[str, ...]
    reasons: tuple[str, ...]

    @classmethod
    def make(cls, seed: int) -> Lexicon:
        """The same seed gives the same words."""
        words = _Words(np.random.default_rng([seed, 1]))
        topics = tuple(
            tuple(Phrase(words.new(), words.new()) for _ in range(FORMS[0]))
            for _ in range(SIZES[0])
        )
        look_alikes = tuple(
            tuple(
                Phrase(own.head, twin.tail if form in (0, FORMS[0] - 1) else own.tail)
                for form, (own, twin) in enumerate(
                    zip(topics[place], topics[place - 12], strict=True)
                )
            )
            for place in range(HARMFUL_TOPICS, SIZES[0])
        )
        others = tuple(
            tuple(
                tuple(
                    Phrase(words.new(), words.new() if axis == 1 else "")
                    for _ in range(FORMS[axis])
                )
                for _ in range(SIZES[axis])
            )
            for axis in (1, 2, 3)
        )
        return cls(
            phrases=((*topics[:HARMFUL_TOPICS], *look_alikes), *others),
            content=tuple(words.several(CONTENT_WORDS) for _ in range(SIZES[0])),
            detail=tuple(words.several(DETAIL_WORDS) for _ in range(SIZES[3])),
            fillers=words.several(6),
            openers=words.several(4),
            closers=words.several(4),
            refusals=words.several(4),
            reasons=words.several(4),
        )

    @cached_property
    def owners(self) -> dict[str, tuple[int, int]]:
        """Head word of a phrase → (axis, component)."""
        return {
            phrase.head: (axis, component)
            for axis, components in enumerate(self.phrases)
            for component, forms in enumerate(components)
            for phrase in forms
        }

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word once, in a fixed order."""
        heads_and_tails = (
            word
            for components in self.phrases
            for forms in components
            for phrase in forms
            for word in phrase.words()
        )
        answers = (word for group in (*self.content, *self.detail) for word in group)
        closed = (
            *self.fillers, *self.openers, *self.closers, *self.refusals, *self.reasons,
        )  # fmt: skip
        return tuple(dict.fromkeys((*heads_and_tails, *answers, *closed)))


class _Words:
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def new(self) -> str:
        while True:
            syllables = int(self._rng.integers(2, 4))
            word = "".join(
                _ONSETS[int(self._rng.integers(len(_ONSETS)))]
                + _VOWELS[int(self._rng.integers(len(_VOWELS)))]
                for _ in range(syllables)
            )
            if word not in self._used:
                self._used.add(word)
                return word

    def several(self, count: int) -> tuple[str, ...]:
        return tuple(self.new() for _ in range(count))
