"""Proofs of single records: a document that `verify_proof.py` checks offline."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any, Final

from ares_stream.audit.leaves import KEYED, Hasher, Leaf, leaf_of, unpack
from ares_stream.audit.notes import NoteKey, TreeHead, open_head
from ares_stream.audit.tree import MerkleRange, consistency_ranges, hash_ranges, inclusion_ranges
from ares_stream.errors import InputError, IntegrityError
from ares_stream.records.checkpoint import Checkpoint, Salt
from ares_stream.streaming.records import InboundRecord

SCHEMA: Final = "ares.proof/1"


def prove(
    offset: int,
    checkpoints: Sequence[Checkpoint],
    *,
    record: InboundRecord | None,
    salt: Salt | None,
    keys: Sequence[NoteKey] = (),
    kept: Sequence[tuple[str, TreeHead]] = (),
) -> dict[str, Any]:
    """The proof of one offset of a partition, from all checkpoints of the partition, in order:
    inclusion in the first head that covers it, and consistency of that head with the last one and
    with those of `kept` (notes with their heads) that are of this tree.

    `record` is None where it is gone or its text was erased; then only the leaf is shown. A
    checkpoint that does not continue those before it proves nothing and is passed over, as is one
    that none of the keys signed, where keys are given. Raises InputError where no other one covers
    the offset; IntegrityError where the record, its salt or a kept head is not as it was signed.
    """
    given = len(checkpoints)
    checkpoints = _continued(checkpoints, keys)
    covering = next((n for n, item in enumerate(checkpoints) if item.end > offset), None)
    if covering is None:
        wrong = given - len(checkpoints)
        raise InputError(
            f"offset {offset}: in no checkpoint yet; ask again in a few seconds" if not wrong else
            f"offset {offset}: in no checkpoint that continues those before it; {wrong} of {given} "
            "do not: `ares audit verify` names them"
        )  # fmt: skip
    head, last = checkpoints[covering], checkpoints[-1]
    place = f"{head.topic} {head.partition} offset {offset}"
    leaves = list(unpack(head.leaves))
    within = next((n for n, leaf in enumerate(leaves) if leaf.offset == offset), None)
    if within is None:
        raise InputError(f"{place}: the notary saw no record there")
    leaf, index = leaves[within], head.size - len(leaves) + within
    shown = record
    if leaf.is_salted and (salt is None or salt.salt is None):
        shown = None
    if shown is None and not leaf.is_salted:
        raise InputError(f"{place}: the record is gone, and with it what could be proven")
    secret = salt.salt if shown is not None and salt is not None and leaf.is_salted else None
    if shown is not None and leaf != leaf_of(shown, salt=secret, keyed=bool(leaf.flags & KEYED)):
        what = "the record, or its salt," if leaf.is_salted else "the record"
        raise IntegrityError(f"{place}: {what} is not the one that was signed")
    ours = TreeHead.parse(head.note)
    newest = TreeHead.parse(last.note)
    heads = {item: note for note, item in kept if item.origin == ours.origin}
    _check_kept(place, heads, newest, checkpoints)
    heads |= {newest: last.note}
    later = sorted((item for item in heads if item.size > ours.size), key=_size)
    earlier = sorted((item for item in heads if 0 < item.size < ours.size), key=_size)[::-1]
    inclusion = inclusion_ranges(index, head.size)
    steps = [
        consistency_ranges(*sorted((one.size, next_.size)))
        for row in (later, earlier)
        for one, next_ in pairwise([ours, *row])
    ]
    hashes = iter(hash_ranges(_hashes(checkpoints), [*inclusion, *chain.from_iterable(steps)]))
    included = [item.hex() for item in islice(hashes, len(inclusion))]
    shown_heads = [
        {
            "checkpoint": heads[item],
            "consistency": [part.hex() for part in islice(hashes, len(step))],
        }
        for item, step in zip([*later, *earlier], steps, strict=True)
    ]
    proof = {
        "topic": head.topic,
        "partition": head.partition,
        "offset": offset,
        "timestamp_ms": leaf.timestamp_ms,
        "flags": leaf.flags,
        "content": leaf.content.hex(),
        "key_hash": leaf.key_hash.hex(),
        "record": None if shown is None else _shown(shown),
        "salt": _base64(secret),
        "index": index,
        "inclusion": included,
        "checkpoint": head.note,
        "later": shown_heads[: len(later)],
    }
    return proof | ({"earlier": shown_heads[len(later) :]} if earlier else {})


def _size(head: TreeHead) -> int:
    return head.size


def _check_kept(
    place: str,
    heads: Iterable[TreeHead],
    newest: TreeHead,
    checkpoints: Sequence[Checkpoint],
) -> None:
    """Whether kept heads are of the tree of the checkpoints. Raises IntegrityError."""
    sizes: dict[int, list[bytes]] = {}
    for head in heads:
        if head.size > newest.size:
            raise IntegrityError(
                f"{place}: the head of {head.size} leaves that was kept is later than the newest "
                f"checkpoint, of {newest.size}"
            )
        sizes.setdefault(head.size, []).append(head.root)
    if not sizes:
        return
    tree = MerkleRange()
    for leaf in chain([None], _hashes(checkpoints)):
        if leaf is not None:
            tree.append(leaf)
        if any(root != tree.root() for root in sizes.get(tree.size, ())):
            raise IntegrityError(
                f"{place}: the head of {tree.size} leaves that was kept is not of the tree of the "
                "checkpoints"
            )


def _continued(checkpoints: Sequence[Checkpoint], keys: Sequence[NoteKey]) -> list[Checkpoint]:
    """Those of which each holds the leaves between its head and the head of the one before: by what
    they say themselves where no keys are given, and the verifier checks who signed them."""
    tree, kept = MerkleRange(), list[Checkpoint]()
    for item in checkpoints:
        after = tree.copy()
        try:
            hasher = Hasher(item.topic, item.partition)
            head = open_head(item.note, keys)[0] if keys else TreeHead.parse(item.note)
            for leaf in unpack(item.leaves):
                after.append(hasher.hash(leaf))
        except (ValueError, IntegrityError):
            continue
        if (after.size, after.root()) == (head.size, head.root) and item.size == head.size:
            kept.append(item)
            tree = after
    return kept


def _hashes(checkpoints: Sequence[Checkpoint]) -> Iterator[bytes]:
    hasher = Hasher(checkpoints[0].topic, checkpoints[0].partition)
    hash_of: Callable[[Leaf], bytes] = hasher.hash
    for item in checkpoints:
        yield from map(hash_of, unpack(item.leaves))


def _shown(record: InboundRecord) -> dict[str, Any]:
    return {
        "key": _base64(record.key),
        "value": _base64(record.value),
        "headers": [[name, _base64(value)] for name, value in record.headers],
    }


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()
