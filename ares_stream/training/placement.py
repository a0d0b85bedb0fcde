"""Answers behind other words: what a judge that reads windows learns beside its rows as they are.

An answer is harmful if one of its windows is, and most of a long answer may be harmless. Rows of a
collection are short, so that without these a judge never sees the windows of one answer that go on
about something else, and flags them where the prompt is bad.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ares_stream.training.examples import Judgement, conversation, part_of

SHARE: Final = 0.2
"""Of the rows, that are placed behind other words too: each costs some five windows."""
WORDS: Final = (40, 600)
"""Fewest and most words that stand before an answer; the logarithm of their number is uniform."""


def placed(rows: Sequence[Judgement], *, seed: int) -> list[Judgement]:
    """SHARE of the rows, drawn, each behind words of harmless answers to other prompts. Labels,
    sources, families and weights stay.

    The words are of sources without a harmful row, where there are any: a collection of attacks
    holds half-harmful answers among its harmless ones. Which rows, how many words and which answers
    depends on the row, the seed and those answers alone.
    """
    harmful = {row.source for row in rows if row.harmful}
    harmless = [row for row in rows if not row.harmful and row.interaction.response.strip()]
    ordinary = [row for row in harmless if row.source not in harmful] or harmless
    found: list[Judgement] = []
    for row in rows:
        name = row.interaction.id
        if part_of(name, seed=seed, holdout=SHARE) == "train":
            continue
        words = _words(random.Random(f"{seed}:{name}"), ordinary, row.family)  # noqa: S311
        if words:
            text = f"{' '.join(words)} {row.interaction.response}"
            found.append(replace(row, interaction=conversation(row.interaction.messages, text)))
    return found


def _words(draw: random.Random, ordinary: Sequence[Judgement], family: str) -> list[str]:
    count = round(math.exp(draw.uniform(*map(math.log, WORDS))))
    words: list[str] = []
    for row in draw.sample(ordinary, len(ordinary)):
        if row.family != family:
            words += row.interaction.response.split()
        if len(words) >= count:
            break
    return words[:count]
