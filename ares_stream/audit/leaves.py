"""What a leaf of the notary's trees commits to. Pure.

    leaf = "ares-leaf/1" 0x00 | len(topic) u32 | topic | partition u32 | offset u64
         | timestamp i64 (ms) | flags u8 | content (32 bytes) [| SHA-256 of the key (32 bytes)]

`content` is the SHA-256 of key, value and headers, each with its length; of a topic that holds
text it is their HMAC-SHA-256 under a salt of this record alone. Without the salt nobody can tell
by trying whether a text was the one, and the leaf, the tree and every proof stay as they are.
The key's own hash stands in leaves of compacted topics only: whoever verifies sees by it that a
record is gone because a later one of the same key came. Integers are big-endian.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ares_stream.audit.tree import leaf_hash
from ares_stream.errors import IntegrityError
from ares_stream.records import topics
from ares_stream.streaming.records import InboundRecord

PREFIX: Final = b"ares-leaf/1\x00"
SALT_BYTES: Final = 16
TOMBSTONE: Final = 1
KEYED: Final = 2
SALTED: Final = 4
WITH_TEXT: Final = frozenset(
    {
        topics.PRODUCTION, topics.PROBE, topics.ANCHOR,
        topics.REPAIR, topics.REVIEW, topics.DEADLETTERS,
    }
)  # fmt: skip
"""Topics whose records hold text of conversations."""
COMPACTED: Final = frozenset({topics.LABELS, topics.RELEASES})
"""Topics of which compaction takes records away."""
_ENTRY: Final = struct.Struct(">QqB32s")
_PLACE: Final = struct.Struct(">IQqB")
_LENGTH: Final = struct.Struct(">I")
_NULL: Final = b"\xff\xff\xff\xff"


@dataclass(frozen=True, slots=True)
class Leaf:
    """One record's leaf, without the topic and the partition, which are its tree's."""

    offset: int
    timestamp_ms: int
    flags: int
    content: bytes
    key_hash: bytes = b""

    @property
    def is_tombstone(self) -> bool:
        """Whether the record has no value."""
        return bool(self.flags & TOMBSTONE)

    @property
    def is_salted(self) -> bool:
        """Whether a salt is needed to compare it with a record."""
        return bool(self.flags & SALTED)

    def pack(self) -> bytes:
        """49 bytes, 81 with the key's hash."""
        return _ENTRY.pack(self.offset, self.timestamp_ms, self.flags, self.content) + self.key_hash


def content_hash(
    key: bytes | None,
    value: bytes | None,
    headers: Iterable[tuple[str, bytes | None]],
    salt: bytes | None,
) -> bytes:
    """32 bytes over the whole record; see above."""
    parts = [_part(key), _part(value)]
    for name, content in headers:
        parts += [_part(name.encode()), _part(content)]
    raw = b"".join(parts)
    if salt is None:
        return hashlib.sha256(raw).digest()
    return hmac.digest(salt, raw, "sha256")


def _part(data: bytes | None) -> bytes:
    return _NULL if data is None else _LENGTH.pack(len(data)) + data


def leaf_of(record: InboundRecord, *, salt: bytes | None, keyed: bool) -> Leaf:
    """The leaf that commits to the record."""
    flags = (record.value is None) * TOMBSTONE | keyed * KEYED | (salt is not None) * SALTED
    return Leaf(
        record.offset,
        record.timestamp_ms,
        flags,
        content_hash(record.key, record.value, record.headers, salt),
        hashlib.sha256(record.key or b"").digest() if keyed else b"",
    )


class Hasher:
    """Hashes the leaves of one partition."""

    def __init__(self, topic: str, partition: int) -> None:
        """Raises IntegrityError for a number that no partition has, as a forged record names it."""
        if not 0 <= partition < 1 << 32:
            raise IntegrityError("of a partition that no topic has")
        name = topic.encode()
        self._prefix = PREFIX + _LENGTH.pack(len(name)) + name
        self._partition = partition

    def data(self, leaf: Leaf) -> bytes:
        """The leaf's bytes."""
        place = _PLACE.pack(self._partition, leaf.offset, leaf.timestamp_ms, leaf.flags)
        return self._prefix + place + leaf.content + leaf.key_hash

    def hash(self, leaf: Leaf) -> bytes:
        """The hash that the tree holds."""
        return leaf_hash(self.data(leaf))


def unpack(raw: bytes) -> Iterator[Leaf]:
    """Leaves that were packed one behind the other. Raises ValueError for anything else."""
    at = 0
    while at < len(raw):
        if len(raw) - at < _ENTRY.size:
            raise ValueError("a leaf is cut off")
        offset, timestamp_ms, flags, content = _ENTRY.unpack_from(raw, at)
        at += _ENTRY.size
        key_hash = b""
        if flags & KEYED:
            key_hash = raw[at : at + 32]
            at += 32
            if len(key_hash) != 32:
                raise ValueError("a leaf is cut off")
        yield Leaf(offset, timestamp_ms, flags, content, key_hash)


def subject_hash(salt: bytes, key: bytes | None) -> str:
    """Says whether a salt is of a record with this key, to who holds the salt."""
    return hmac.digest(salt, b"subject\x00" + (key or b""), "sha256").hex()
