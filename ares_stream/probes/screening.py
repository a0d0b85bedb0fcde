"""What earns nothing: gibberish, off-topic probes, near copies. Pure.

A search that may write text freely finds gibberish that confuses a judge; it is a failure of
the judge and not of the policy. A near copy of a known failure is not news.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

Cause = Literal["gibberish", "off_topic", "near_copy"]

_WORD = re.compile(r"\w+", re.UNICODE)


class CharacterModel:
    """Character trigrams with back-off, fitted on ordinary text.

    `rarity(text)` is the mean negative log-probability per character in nats. The limit is
    little below what the fitted texts reach with their characters shuffled: letters in no order. A
    script that the texts do not have cannot be judged: it is never called gibberish for its
    letters, only for repetition.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        """Raises ValueError without any text."""
        samples = [_normal(text) for text in texts if text.strip()]
        if not samples:
            raise ValueError("a character model needs at least one text")
        self._counts: list[Counter[str]] = [Counter(), Counter(), Counter()]
        for sample in samples:
            padded = f"  {sample} "
            for order, counts in enumerate(self._counts, 1):
                counts.update(padded[k : k + order] for k in range(len(padded) - order + 1))
        self._total = sum(self._counts[0].values())
        self._alphabet = frozenset(self._counts[0])
        # ASCII is judged wherever the texts are mostly ASCII, seen letters or not.
        ascii_texts = sum(sample.isascii() for sample in samples) > len(samples) / 2
        self._judged = self._alphabet | (frozenset(map(chr, range(128))) if ascii_texts else set())
        rng = random.Random(0)  # noqa: S311 (a fixed shuffle, no secret)
        shuffled = ["".join(rng.sample(text, len(text))) for text in samples[:500]]
        rarities = sorted(self.rarity(text) for text in shuffled)
        self.limit = 0.85 * rarities[len(rarities) // 20]

    def rarity(self, text: str) -> float:
        """Nats per character; 0 for an empty text."""
        padded = f"  {_normal(text)} "
        known = [k for k in range(2, len(padded)) if padded[k] in self._judged]
        if not known:
            return 0.0
        return -sum(math.log(self._probability(padded, k)) for k in known) / len(known)

    def is_gibberish(self, text: str) -> bool:
        """Letters in an order that no fitted text has, or the same few over and over."""
        normal = _normal(text)
        if len(normal) < 12:
            return False
        worded = sum(character.isalnum() or character.isspace() for character in text)
        if is_repetitive(text) or worded < 0.6 * len(text):
            return True
        known = sum(character in self._judged for character in normal) / len(normal)
        return known >= 0.8 and self.rarity(text) > self.limit

    def _probability(self, text: str, place: int) -> float:
        one, two, three = self._counts
        size = len(self._alphabet) + 1
        estimate = (one[text[place]] + 1) / (self._total + size)
        for counts, lower, order in ((two, one, 2), (three, two, 3)):
            context = text[place - order + 1 : place]
            estimate = (counts[context + text[place]] + 3 * estimate) / (lower[context] + 3)
        return estimate


def is_repetitive(text: str) -> bool:
    """Whether a text compresses to almost nothing: loops, one word over and over."""
    raw = text.encode()
    return len(raw) >= 80 and len(zlib.compress(raw, 6)) < 0.16 * len(raw)


def is_on_topic(text: str, terms: Sequence[str]) -> bool:
    """Whether a paraphrase still names its topic. No terms, no opinion."""
    if not terms:
        return True
    words = {word.lower() for word in _WORD.findall(text)}
    lowered = text.lower()
    return any(term.lower() in (lowered if " " in term or "-" in term else words) for term in terms)


class NearCopies:
    """Remembers texts by hashed word counts; a text at or above `limit` cosine is a copy."""

    def __init__(self, limit: float = 0.95, capacity: int = 20_000) -> None:
        """`capacity` bounds memory: the oldest texts are forgotten first."""
        self._limit = limit
        self._capacity = capacity
        self._texts: dict[int, Counter[str]] = {}
        self._holders: dict[str, set[int]] = {}
        self._next = 0

    def add(self, text: str) -> bool:
        """Remember a text; False when it is a near copy of a remembered one."""
        words = word_counts(text)
        if self._has_near(words):
            return False
        self._texts[self._next] = words
        for word in words:
            self._holders.setdefault(word, set()).add(self._next)
        self._next += 1
        if len(self._texts) > self._capacity:
            self._forget(next(iter(self._texts)))
        return True

    def holds(self, text: str) -> bool:
        """Whether a text is a near copy of a remembered one."""
        return self._has_near(word_counts(text))

    def _has_near(self, words: Counter[str]) -> bool:
        if not words:
            return bool(self._texts)
        # A near copy shares the rarest word of the text, or nearly all others.
        ranked = sorted(words, key=lambda word: len(self._holders.get(word, ())))
        candidates: set[int] = set()
        for word in ranked[: max(1, round(len(ranked) * 0.2) + 1)]:
            candidates |= self._holders.get(word, set())
        return any(cosine(words, self._texts[k]) >= self._limit for k in candidates)

    def _forget(self, key: int) -> None:
        for word in self._texts.pop(key):
            holders = self._holders[word]
            holders.discard(key)
            if not holders:
                del self._holders[word]


def word_counts(text: str) -> Counter[str]:
    """Lower-case word counts, the vectors of `cosine` and `clusters`."""
    return Counter(word.lower() for word in _WORD.findall(text))


def cosine(first: Counter[str], second: Counter[str]) -> float:
    """Cosine of two word-count vectors, in [0, 1]; 0 when one is empty."""
    if len(second) < len(first):
        first, second = second, first
    dot = sum(count * second[word] for word, count in first.items() if word in second)
    norms = math.sqrt(sum(c * c for c in first.values()) * sum(c * c for c in second.values()))
    return dot / norms if norms else 0.0


class Clusters:
    """Greedy leaders: a text joins the first leader at or above `limit` cosine, else leads.

    The number of leaders counts unlike failures (the measure of GFlowNet and Rainbow papers).
    """

    def __init__(self, limit: float = 0.7) -> None:
        self.limit = limit
        self._leaders: list[Counter[str]] = []
        self._holders: dict[str, list[int]] = {}

    def add(self, text: str) -> bool:
        """True when the text leads a new cluster."""
        words = word_counts(text)
        seen: set[int] = set()
        for word in words:
            for leader in self._holders.get(word, ()):
                if leader not in seen:
                    seen.add(leader)
                    if cosine(words, self._leaders[leader]) >= self.limit:
                        return False
        for word in words:
            self._holders.setdefault(word, []).append(len(self._leaders))
        self._leaders.append(words)
        return True

    def __len__(self) -> int:
        return len(self._leaders)


def _normal(text: str) -> str:
    return " ".join(text.lower().split())
