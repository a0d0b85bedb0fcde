"""Which texts are near copies of one another, at a cost that grows with their number, not with
its square. Pure and independent of the order in which the texts come.

Texts are compared by the Jaccard similarity of their sets of character shingles. Candidates come
from MinHash signatures in bands (Broder 1997; Leskovec et al., Mining of Massive Datasets,
ch. 3); each candidate is then compared exactly.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

SHINGLE: Final = 5
PERMUTATIONS: Final = 128
ROWS: Final = 4
"""Rows per band: 32 bands of 4 propose a pair at similarity 0.8 with probability 1 - 5e-8 and at
0.5 with 0.87."""
_PRIME: Final = (1 << 61) - 1
Hashes = NDArray[np.uint32]


def normalised(text: str) -> str:
    """Case, width and spacing do not make another text."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(text: str) -> Hashes:
    """Sorted distinct CRC-32 hashes of a text's shingles."""
    raw = normalised(text)
    pieces = {raw[start : start + SHINGLE] for start in range(max(1, len(raw) - SHINGLE + 1))}
    return np.unique(np.array([crc32(piece.encode()) for piece in pieces], dtype=np.uint32))


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over that of the union, 0 to 1."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def near_copies(texts: Sequence[str], threshold: float) -> list[int]:
    """For each text the smallest index of its cluster. Two texts share a cluster when a chain of
    pairs at or above `threshold` joins them.

    In each band's bucket every text is compared with the bucket's first alone, so that a flood
    of copies costs no more than as many different texts.
    """
    sets = [shingles(text) for text in texts]
    leader = list(range(len(texts)))

    def find(item: int) -> int:
        while leader[item] != item:
            leader[item] = leader[leader[item]]
            item = leader[item]
        return item

    order = sorted(range(len(texts)), key=lambda index: normalised(texts[index]))
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for index in order:
        signature = _signature(sets[index])
        for band in range(PERMUTATIONS // ROWS):
            buckets[band, signature[band * ROWS : (band + 1) * ROWS].tobytes()].append(index)
    for members in buckets.values():
        for other in members[1:]:
            one, two = find(members[0]), find(other)
            if one != two and jaccard(sets[members[0]], sets[other]) >= threshold:
                leader[max(one, two)] = min(one, two)
    return [find(index) for index in range(len(texts))]


def _permutations() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    source = np.random.default_rng(0)
    return (
        source.integers(1, _PRIME, PERMUTATIONS, dtype=np.uint64) | np.uint64(1),
        source.integers(0, _PRIME, PERMUTATIONS, dtype=np.uint64),
    )


_FACTORS, _OFFSETS = _permutations()


def _signature(items: Hashes) -> NDArray[np.uint32]:
    """The smallest value of each of PERMUTATIONS multiply-shift hashes over the set."""
    lowest = np.full(PERMUTATIONS, np.iinfo(np.uint64).max, dtype=np.uint64)
    # In parts, so that a long text needs no matrix of its length.
    for start in range(0, len(items), 4096):
        part = items[start : start + 4096].astype(np.uint64)
        hashed = part[:, None] * _FACTORS[None, :] + _OFFSETS[None, :]
        lowest = np.minimum(lowest, hashed.min(axis=0))
    return (lowest >> np.uint64(32)).astype(np.uint32)
