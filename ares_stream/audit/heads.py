"""What a notary has signed of one partition, and whether a state goes on from there. Pure.

The state of a notary stands on a topic of its own and is signed by nobody. Whoever forged it, or
restored it from a backup, would have the notary sign a second tree under the name of the first:
two heads that no proof reconciles. So a state counts only where it continues the last signed head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ares_stream.audit.leaves import Hasher, Leaf, unpack
from ares_stream.audit.notes import NoteKey, TreeHead, check_rotation, open_head, tree_origin
from ares_stream.audit.tree import MerkleRange
from ares_stream.errors import IntegrityError
from ares_stream.records.checkpoint import Checkpoint, NotaryState


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A partition's tree as it was signed, up to offset `end`. `is_own` where one of this notary's
    keys signed it."""

    topic: str
    partition: int
    tree: MerkleRange
    end: int
    is_own: bool

    @property
    def size(self) -> int:
        """Leaves."""
        return self.tree.size


def signed_head(checkpoint: Checkpoint, name: str, keys: Sequence[NoteKey]) -> SignedHead | None:
    """What a checkpoint says; None for one without leaves, which says nothing new.

    Raises IntegrityError for one of another notary, and where its parts do not agree.
    """
    try:
        head, _ = open_head(checkpoint.note, keys)
        is_own = True
    except IntegrityError:
        head, is_own = TreeHead.parse(checkpoint.note), False
    if head.origin != tree_origin(name, checkpoint.topic, checkpoint.partition):
        raise IntegrityError("of another notary, or of another partition")
    try:
        leaves = list(unpack(checkpoint.leaves))
    except ValueError as error:
        raise IntegrityError(f"its leaves cannot be read: {error}") from None
    before = head.size - len(leaves)
    if head.size != checkpoint.size or before < 0 or before.bit_count() != len(checkpoint.peaks):
        raise IntegrityError("its size is not that of its leaves")
    tree = _grown(checkpoint, before, checkpoint.peaks, leaves)
    if tree.root() != head.root:
        raise IntegrityError("its leaves do not give its root")
    offsets = [leaf.offset for leaf in leaves]
    if not _lie_in(offsets, checkpoint.start, checkpoint.end):
        raise IntegrityError("its leaves are not of its offsets")
    if not leaves:
        return None
    return SignedHead(checkpoint.topic, checkpoint.partition, tree, checkpoint.end, is_own)


class HeadChain:
    """Checkpoints of one partition in the order of their topic, from any of them on: each counts
    that a key signed, whose leaves give its root, and that continues the one before it.

    Without keys no signature is checked. `refused` counts the others, and `reason` is the first's.
    """

    def __init__(self, keys: Sequence[NoteKey]) -> None:
        self._keys = keys
        self._tree: MerkleRange | None = None
        self.last: Checkpoint | None = None
        self.head: TreeHead | None = None
        """Of `last`."""
        self.signed_by: tuple[NoteKey, ...] = ()
        self.signed_end = 0
        """The offset behind the last leaf that a key signed; 0 where no signature is checked."""
        self.refused = 0
        self.reason: str | None = None

    def take(self, checkpoint: Checkpoint) -> None:
        """The next one."""
        try:
            self._take(checkpoint)
        except IntegrityError as error:
            self.refused += 1
            self.reason = self.reason or str(error)

    def _take(self, checkpoint: Checkpoint) -> None:
        signers: tuple[NoteKey, ...] = ()
        if self._keys:
            head, signers = open_head(checkpoint.note, self._keys)
            check_rotation(self.signed_by, signers)
        else:
            head = TreeHead.parse(checkpoint.note)
        name, slash, _ = head.origin.rpartition(f"/{checkpoint.topic}/{checkpoint.partition}")
        if not slash or head.origin != tree_origin(name, checkpoint.topic, checkpoint.partition):
            raise IntegrityError("of another partition")
        signed = signed_head(checkpoint, name, self._keys)
        if self._tree is not None:
            before = self._tree.size, [peak.hex() for peak in self._tree.peaks]
            added = 0 if signed is None else len(list(unpack(checkpoint.leaves)))
            if before != (head.size - added, list(checkpoint.peaks)):
                raise IntegrityError("it does not continue the one before it")
        if signed is not None:
            self._tree = signed.tree
            if signers:
                *_, leaf = unpack(checkpoint.leaves)
                self.signed_end = leaf.offset + 1
        self.last, self.head, self.signed_by = checkpoint, head, signers


def continues(state: NotaryState, head: SignedHead | None) -> bool:
    """Whether the state's tree is the head's (None: no tree), and what is pending on top of it."""
    pending = state.pending
    try:
        leaves = [] if pending is None else list(unpack(pending.leaves))
    except ValueError:
        return False
    before = state.size - len(leaves)
    peaks = state.peaks if pending is None else pending.peaks
    if before != (0 if head is None else head.size) or before.bit_count() != len(peaks):
        return False
    if head is not None and tuple(map(bytes.fromhex, peaks)) != tuple(head.tree.peaks):
        return False
    if pending is None:
        return True
    offsets = [leaf.offset for leaf in leaves]
    low = max(pending.start, 0 if head is None else head.end)
    if not _lie_in(offsets, low, state.end):
        return False
    try:
        tree = _grown(state, before, peaks, leaves)
    except IntegrityError:
        return False
    return tuple(tree.peaks) == tuple(map(bytes.fromhex, state.peaks))


def _lie_in(offsets: Sequence[int], start: int, end: int) -> bool:
    """Whether they ascend from `start` to below `end`."""
    rising = all(one < next_ for one, next_ in pairwise(offsets))
    return rising and (not offsets or (start <= offsets[0] and offsets[-1] < end))


def _grown(
    of: Checkpoint | NotaryState, size: int, peaks: Sequence[str], leaves: Sequence[Leaf]
) -> MerkleRange:
    tree = MerkleRange(size, map(bytes.fromhex, peaks))
    hasher = Hasher(of.topic, of.partition)
    for leaf in leaves:
        tree.append(hasher.hash(leaf))
    return tree
