"""Failures that have one cause: those whose explanations name the same words. Pure.

Greedy cover (Chvátal 1979, Mathematics of Operations Research 4): the word that most failures
name gathers them, then the word that most of the rest name, until none is named twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ares_stream.scoring.occlusion import Explanation

HEAVIEST: Final = 3
"""Words of an explanation that found no edit."""
SHARED: Final = 0.8
"""Of a cause's failures: a word that so many of them name is one of the cause's words."""


@dataclass(frozen=True, slots=True)
class Cause:
    """`words`: first what gathered the failures, then what nearly all of them name as well."""

    words: tuple[str, ...]
    failures: tuple[str, ...]


def words_of(found: Explanation) -> tuple[str, ...]:
    """What an explanation names, in lower case: its edit, else its heaviest words."""
    words = found.edit or tuple(weight.word for weight in found.words[:HEAVIEST])
    return tuple(dict.fromkeys(word.text.lower() for word in words))


def causes(named: Mapping[str, Sequence[str]], least: int = 2) -> list[Cause]:
    """Of words by failure: groups of `least` and more, largest first. What names no word that
    others name is in no group. Equal counts are decided by the alphabet."""
    found: list[Cause] = []
    rest = dict(named)
    while rest:
        holders: dict[str, list[str]] = defaultdict(list)
        for failure, words in rest.items():
            for word in dict.fromkeys(words):
                holders[word].append(failure)
        first = min(holders, key=lambda word: (-len(holders[word]), word), default=None)
        if first is None or len(holders[first]) < least:
            break
        members = holders[first]
        inside: dict[str, int] = defaultdict(int)
        for failure in members:
            for word in dict.fromkeys(rest[failure]):
                inside[word] += 1
        others = sorted(
            (word for word, count in inside.items()
             if word != first and count >= SHARED * len(members)),
            key=lambda word: (-inside[word], word),
        )  # fmt: skip
        found.append(Cause((first, *others), tuple(members)))
        for failure in members:
            del rest[failure]
    return found
