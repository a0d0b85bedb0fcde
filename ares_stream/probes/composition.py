"""From component ids to the messages that a policy is asked. Pure and seeded."""

from __future__ import annotations

import re
from typing import Protocol

import numpy as np

from ares_stream.errors import SettingsError
from ares_stream.probes.taxonomy import Taxonomy
from ares_stream.probes.transforms import transform
from ares_stream.records.interaction import Message

Ids = dict[str, str]


class Composer(Protocol):
    """Puts a composition into words. The same ids and seed give the same messages."""

    def compose(self, ids: Ids, seed: int) -> tuple[Message, ...]:
        """The conversation to send; the last turn is the user's."""
        ...

    def terms(self, ids: Ids) -> tuple[str, ...]:
        """Words of which an on-topic paraphrase holds at least one; none: no opinion."""
        ...


class TaxonomyComposer:
    """Fills the taxonomy's templates; the seed picks among ways to say each part."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy

    def compose(self, ids: Ids, seed: int) -> tuple[Message, ...]:
        """Raises SettingsError for an id that the taxonomy does not have."""
        taxonomy = self.taxonomy
        rng = np.random.default_rng(seed)
        try:
            topic = _pick(taxonomy.topics[ids["topic"]].phrases, rng)
            persona = _pick(taxonomy.personas[ids["persona"]].phrases, rng)
            request = _pick(taxonomy.goals[ids["goal"]].phrases, rng).format(topic=topic)
            tactic = taxonomy.tactics[ids["tactic"]].phrases
        except KeyError as error:
            raise SettingsError(f"taxonomy: no component {error.args[0]!r}") from None
        turns = tactic[int(rng.integers(len(tactic)))]
        filled = tuple(
            Message(
                role=turn.role,
                content=_tidy(turn.content.format(persona=persona, request=request, topic=topic)),
            )
            for turn in turns
        )
        return transform(ids.get("transform", "plain"), filled)

    def terms(self, ids: Ids) -> tuple[str, ...]:
        """Words of which an on-topic paraphrase holds at least one."""
        return self.taxonomy.topics[ids["topic"]].terms


def _pick(phrases: tuple[str, ...], rng: np.random.Generator) -> str:
    return phrases[int(rng.integers(len(phrases)))]


def _tidy(text: str) -> str:
    """An empty persona leaves no double space."""
    return re.sub(r"[ \t]+", " ", text).strip()
