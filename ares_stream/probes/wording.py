"""The words of each query of a campaign, and what of them or of their answers earns nothing. Pure.

Words depend on the campaign alone, never on what came back or when, so a campaign that is
rebuilt says the same again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ares_stream.events import Message
from ares_stream.probes.campaign import Ask
from ares_stream.probes.composition import Composer, Ids
from ares_stream.probes.screening import Cause, CharacterModel, NearCopies, is_repetitive
from ares_stream.probes.space import Space

REWORDINGS: Final = 8
"""Other ways to say a composition that are tried before it counts as said already."""
SAMPLES: Final = 300
"""Composed texts that the character model learns ordinary text from."""


@dataclass(frozen=True, slots=True)
class Words:
    """What to say for one probe; `cause` names why it is not worth asking."""

    messages: tuple[Message, ...]
    ids: Ids
    cause: Cause | None = None


class Wording:
    """Composes each probe once, in the order of asking."""

    def __init__(self, space: Space, composer: Composer) -> None:
        self._space = space
        self._composer = composer
        self._said = NearCopies()
        self._words: dict[str, Words] = {}
        self._generation = -1
        self._ordinary = CharacterModel(_ordinary_texts(space, composer))

    def words(self, ask: Ask) -> Words:
        """The probe's words: the same for all its attempts."""
        if ask.generation != self._generation:
            self._words.clear()
            self._generation = ask.generation
        if ask.probe not in self._words:
            self._words[ask.probe] = self._compose(ask)
        return self._words[ask.probe]

    def is_rubbish(self, answer: str) -> bool:
        """Whether an answer is letters in no order or one loop: it fools judges, not people."""
        return is_repetitive(answer) or self._ordinary.is_gibberish(answer)

    def _compose(self, ask: Ask) -> Words:
        ids = self._space.ids(ask.number)
        for attempt in range(REWORDINGS):
            messages = self._composer.compose(ids, stable_seed(ask.probe, attempt))
            if self._said.add(" ".join(turn.content for turn in messages)):
                return Words(messages, ids)
        return Words(messages, ids, "near_copy")


def stable_seed(*parts: object) -> int:
    """A seed from names, the same on every machine; below 2^31, as endpoints want it."""
    raw = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(raw[:4], "big") >> 1


def _ordinary_texts(space: Space, composer: Composer) -> Sequence[str]:
    rng = np.random.default_rng(0)
    texts = []
    for number in rng.choice(space.numbers, size=min(SAMPLES, len(space.numbers)), replace=False):
        ids = space.ids(int(number))
        if "transform" in ids:
            ids = {**ids, "transform": "plain"}
        texts.append(composer.compose(ids, 0)[-1].content)
    return texts
