"""Proofs of single records: a document that `verify_proof.py` checks offline."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from ares_stream.audit.leaves import Hasher, Leaf, unpack
from ares_stream.audit.notes import TreeHead
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
) -> dict[str, Any]:
    """The proof of one offset of a partition, from all checkpoints of the partition, in order:
    inclusion in the first head that covers it, and consistency of that head with the last one.

    `record` is None where it is gone or its text was erased; then only the leaf is shown. A
    checkpoint that does not continue those before it proves nothing and is passed over. Raises
    InputError where no other one covers the offset.
    """
    given = len(checkpoints)
    checkpoints = _continued(checkpoints)
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
    asked = inclusion_ranges(index, head.size)
    further = consistency_ranges(head.size, last.size) if last.size > head.size else []
    hashes = hash_ranges(_hashes(checkpoints), [*asked, *further])
    shown = record
    if leaf.is_salted and (salt is None or salt.salt is None):
        shown = None
    if shown is None and not leaf.is_salted:
        raise InputError(f"{place}: the record is gone, and with it what could be proven")
    return {
        "topic": head.topic,
        "partition": head.partition,
        "offset": offset,
        "timestamp_ms": leaf.timestamp_ms,
        "flags": leaf.flags,
        "content": leaf.content.hex(),
        "key_hash": leaf.key_hash.hex(),
        "record": None if shown is None else _shown(shown),
        "salt": _base64(salt.salt) if shown is not None and salt is not None else None,
        "index": index,
        "inclusion": [item.hex() for item in hashes[: len(asked)]],
        "checkpoint": head.note,
        "later": [
            {
                "checkpoint": last.note,
                "consistency": [item.hex() for item in hashes[len(asked) :]],
            }
        ]
        if last.size > head.size
        else [],
    }


def _continued(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those of which each holds the leaves between its head and the head of the one before, by what
    they say themselves; who signed them is for the verifier to check."""
    tree, kept = MerkleRange(), list[Checkpoint]()
    for item in checkpoints:
        after = tree.copy()
        try:
            hasher = Hasher(item.topic, item.partition)
            head = TreeHead.parse(item.note)
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
