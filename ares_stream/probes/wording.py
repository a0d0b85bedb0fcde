"""The words of each query of a campaign, and what of them or of their answers earns nothing. Pure.

The composer's words depend on the campaign alone, never on what came back or when, so a
campaign that is rebuilt says the same again. An attacker's words cannot be made again: they are
final once published, and a campaign that is rebuilt reads them from what it published. What
later generations see of them (elites, near copies) is taken in campaign order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from ares_stream.probes.archive import Archive
from ares_stream.probes.attacker import AttackPlan, Errand, Fault, Parent, errand, fault, parse
from ares_stream.probes.campaign import Ask
from ares_stream.probes.composition import Composer, Ids
from ares_stream.probes.screening import (
    Cause,
    CharacterModel,
    NearCopies,
    is_on_topic,
    is_repetitive,
)
from ares_stream.probes.selection import Finding
from ares_stream.probes.space import Space
from ares_stream.probes.targets import Answer
from ares_stream.probes.transforms import transform
from ares_stream.records.base import stable_seed
from ares_stream.records.interaction import Interaction, Message

REWORDINGS: Final = 8
"""Other ways to say a composition that are tried before it counts as said already."""
SAMPLES: Final = 300
"""Composed texts that the character model learns ordinary text from."""
MADE_BY: Final = "wording"
"""Attribute of an Interaction of a campaign with an attacker: how its words were made."""
COMPOSER: Final = "composer"
TRANSLATION: Final = "attacker-translation"


@dataclass(frozen=True, slots=True)
class Words:
    """What to say for one probe; `cause` names why it is not worth asking. `made_by` and
    `parents` (the probe that was mutated) tell how an attacker made them."""

    messages: tuple[Message, ...]
    ids: Ids
    cause: Cause | None = None
    made_by: str = COMPOSER
    parents: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All turns, for comparing."""
        return " ".join(turn.content for turn in self.messages)


class Wording:
    """Words each probe once, in the order of asking."""

    def __init__(self, space: Space, composer: Composer, attack: AttackPlan | None = None) -> None:
        self._space = space
        self._composer = composer
        self._attack = attack
        self._said = NearCopies()
        self._reworded = NearCopies()
        """The attacker's words of this generation: `_said` may not depend on them yet, since
        they may be made again, otherwise."""
        self._words: dict[str, Words] = {}
        self._plain: dict[str, tuple[Message, ...]] = {}
        self._published: dict[str, Words] = {}
        self._archive: Archive[tuple[str, str], Parent] = Archive()
        self._generation = -1
        self._ordinary = CharacterModel(_ordinary_texts(space, composer))

    def words(self, ask: Ask) -> Words:
        """The probe's words: the same for all its attempts."""
        if ask.generation != self._generation:
            self._begin(ask.generation)
        if ask.probe not in self._words:
            words = self._compose(ask)
            # Composed even where other words are published: what is said next depends on it.
            published = self._published.pop(ask.probe, None)
            # A record that names other components is not what this campaign said.
            if published is not None and published.ids == words.ids:
                words = published
                if words.made_by != COMPOSER:
                    self._reworded.add(words.text)
            self._words[ask.probe] = words
        return self._words[ask.probe]

    def of(self, probe: str) -> Words:
        """The words of a probe of the generation that was asked last."""
        return self._words[probe]

    def is_rubbish(self, answer: str, made_by: str = COMPOSER) -> bool:
        """Whether an answer is letters in no order or one loop: it fools judges, not people.

        What answers a translation may be in a language whose letters the composer's words do
        not show: it can only be a loop.
        """
        if is_repetitive(answer):
            return True
        return not made_by.startswith(TRANSLATION) and self._ordinary.is_gibberish(answer)

    # With an attacker

    def recall(self, interaction: Interaction) -> None:
        """Take words that are published: they are final. The first record of a probe counts."""
        probe = interaction.probe
        if self._attack is None or probe is None or probe.generation < self._generation:
            return
        if probe.id in self._words:
            return  # Its own words, back from the topic.
        made_by = interaction.attributes.get(MADE_BY, COMPOSER)
        words = Words(interaction.messages, probe.components, None, made_by, probe.parents)
        self._published.setdefault(probe.id, words)

    def errand(self, ask: Ask) -> Errand | None:
        """What the attacker is to do for a probe that nobody has heard yet; None for most."""
        words = self.words(ask)
        if self._attack is None or ask.attempt > 0 or words.cause is not None:
            return None
        source = self._plain[ask.probe][-1].content
        terms = self._composer.terms(words.ids)
        if not is_on_topic(source, terms):
            terms = ()  # A user's taxonomy may name the topic in another turn.
        parents = [elite.solution for _, elite in self._archive.elites()]
        return errand(self._attack, ask.probe, source, terms, parents)

    def reword(self, ask: Ask, wanted: Errand, answer: Answer | None) -> Fault | None:
        """Take the attacker's answer; a fault leaves the composer's words as they are."""
        if answer is None:
            return "unanswered"
        if answer.finish in ("length", "content_filter"):
            return "length" if answer.finish == "length" else "refusal"
        text = parse(answer.text)
        if text is None:
            return "form"
        if (found := fault(text, wanted, self._ordinary)) is not None:
            return found
        *before, last = self._plain[ask.probe]
        ids = self._words[ask.probe].ids
        plain = (*before, Message(role=last.role, content=text))
        messages = transform(ids.get("transform", "plain"), plain)
        parents = (wanted.parent.probe,) if wanted.parent else ()
        words = Words(messages, ids, None, wanted.label, parents)
        if self._said.holds(words.text) or not self._reworded.add(words.text):
            return "near_copy"
        self._words[ask.probe] = words
        return None

    def learn(self, settled: Iterable[tuple[str, Finding]]) -> None:
        """Keep the best prompts of a settled generation, in campaign order, to mutate later.

        A translation or a prompt behind a transform is not kept: what it becomes could not be
        held to its topic. A new release keeps the elites: what an older one fell for is still
        where to begin.
        """
        if self._attack is None:
            return
        for probe, finding in settled:
            words = self._words[probe]
            plain = words.ids.get("transform", "plain") == "plain"
            if words.cause is None and plain and not words.made_by.startswith(TRANSLATION):
                cell = (words.ids.get("topic", ""), words.ids.get("tactic", ""))
                parent = Parent(probe, words.messages[-1].content, finding.confirmed)
                self._archive.add(cell, parent, finding.fitness)

    def _begin(self, generation: int) -> None:
        for words in self._words.values():
            if words.made_by != COMPOSER:
                self._said.add(words.text)
        self._words.clear()
        self._plain.clear()
        self._reworded = NearCopies()
        self._generation = generation

    def _compose(self, ask: Ask) -> Words:
        ids = self._space.ids(ask.number)
        for attempt in range(REWORDINGS):
            seed = stable_seed(ask.probe, attempt)
            words = Words(self._composer.compose(ids, seed), ids)
            if self._said.add(words.text):
                if self._attack is not None:
                    self._plain[ask.probe] = self._composer.compose(_untransformed(ids), seed)
                return words
        return Words(words.messages, ids, "near_copy")


def _untransformed(ids: Ids) -> Ids:
    return {**ids, "transform": "plain"} if "transform" in ids else ids


def _ordinary_texts(space: Space, composer: Composer) -> Sequence[str]:
    rng = np.random.default_rng(0)
    texts = []
    for number in rng.choice(space.numbers, size=min(SAMPLES, len(space.numbers)), replace=False):
        ids = _untransformed(space.ids(int(number)))
        texts.append(composer.compose(ids, 0)[-1].content)
    return texts
