"""Merkle trees of RFC 9162, section 2.1, with SHA-256. Pure.

A tree is grown leaf by leaf in memory of the order of log(size) (`MerkleRange`). A proof is a
list of hashes of ranges of leaves; `inclusion_ranges` and `consistency_ranges` say which, and
`hash_ranges` hashes them in one pass, so that a proof needs no more memory either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
HASH_BYTES: Final = 32

Range = tuple[int, int]
"""Indices of leaves, start inclusive, end exclusive."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256 of a leaf: 32 bytes."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 of an inner node: 32 bytes."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleRange:
    """A tree as the roots of its perfect subtrees, left to right: one per bit of its size."""

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        """Raises ValueError when the number or length of the peaks does not fit the size."""
        self.size = size
        self.peaks = list(peaks)
        if size < 0 or len(self.peaks) != size.bit_count():
            raise ValueError(f"a tree of {size} leaves does not have {len(self.peaks)} peaks")
        if any(len(peak) != HASH_BYTES for peak in self.peaks):
            raise ValueError(f"a peak is not {HASH_BYTES} bytes long")

    def append(self, leaf: bytes) -> None:
        """Add the hash of one leaf."""
        size, peaks = self.size, self.peaks
        while size & 1:
            leaf = hashlib.sha256(b"\x01" + peaks.pop() + leaf).digest()
            size >>= 1
        peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The tree head."""
        if not self.peaks:
            return EMPTY_ROOT
        found = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            found = node_hash(peak, found)
        return found

    def copy(self) -> MerkleRange:
        """One that grows apart from this."""
        return MerkleRange(self.size, self.peaks)


def _split(size: int) -> int:
    """The largest power of two below the size."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """Whose hashes prove that leaf `index` is in the tree of `size` leaves (2.1.3.1). Raises
    ValueError for a leaf that is not in the tree."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size} leaves")
    found: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start = middle
    return found[::-1]


def consistency_ranges(first: int, second: int) -> list[Range]:
    """Whose hashes prove that the tree of `first` leaves is the beginning of that of `second`
    leaves (2.1.4.1). Raises ValueError unless 0 < first <= second."""
    if not 0 < first <= second:
        raise ValueError(f"no proof leads from {first} leaves to {second}")
    found: list[Range] = []
    start, end, whole = 0, second, True
    while first < end:
        middle = start + _split(end - start)
        if first <= middle:
            found.append((middle, end))
            end = middle
        else:
            found.append((start, middle))
            start, whole = middle, False
    if not whole:
        found.append((start, end))
    return found[::-1]


def hash_ranges(leaves: Iterable[bytes], ranges: Sequence[Range]) -> list[bytes]:
    """The tree head of each range, in their order; `leaves` are the hashes of all leaves from the
    first on. Raises ValueError when the leaves end before a range does."""
    pending = sorted(range(len(ranges)), key=lambda number: ranges[number][0], reverse=True)
    active: list[int] = []
    trees = [MerkleRange() for _ in ranges]
    index = 0
    for leaf in leaves:
        while pending and ranges[pending[-1]][0] == index:
            active.append(pending.pop())
        index += 1
        for number in active:
            trees[number].append(leaf)
        if active:
            active = [number for number in active if ranges[number][1] > index]
        if not (active or pending):
            break
    if active or pending:
        raise ValueError(f"the leaves end at {index}")
    return [tree.root() for tree in trees]
