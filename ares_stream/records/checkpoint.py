"""What the notary writes: signed tree heads with their leaves, its state, and salts."""

from __future__ import annotations

from typing import ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ares_stream.records.base import (
    Identifier,
    Instant,
    Offset,
    OffsetRange,
    Part,
    PartitionNumber,
    Record,
    Sha256,
    canonical_json,
    refusal,
)

_BINARY: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
"""Bytes stand in JSON as base64 with the URL-safe alphabet."""


class Checkpoint(Record):
    """A signed head of one partition's tree, and the leaves that came since the one before.

    `note` is a C2SP checkpoint, which alone is signed. All else is checked against it: `leaves`
    (packed, see ares_stream.audit.leaves) cover the offsets `start` to `end` without `gaps`, and
    `peaks` are the roots of the tree's perfect subtrees, left to right, before these leaves: with
    them a checkpoint is checked by itself.
    `timestamp_token` is an RFC 3161 time stamp of the note.
    """

    model_config = _BINARY
    SCHEMA: ClassVar[str] = "ares.checkpoint/1"
    schema_: Literal["ares.checkpoint/1"] = Field("ares.checkpoint/1", alias="schema")
    topic: Identifier
    partition: PartitionNumber = Field(ge=0)
    start: Offset = Field(ge=0)
    end: Offset = Field(ge=0)
    size: int = Field(ge=0)
    note: str
    leaves: bytes
    peaks: tuple[Sha256, ...]
    gaps: tuple[OffsetRange, ...] = ()
    issued_at: Instant
    timestamp_token: bytes | None = None

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return canonical_json([self.topic, self.partition])


class PendingLeaves(Part):
    """Leaves that are in the tree and in no checkpoint yet."""

    model_config = _BINARY

    start: Offset = Field(ge=0)
    leaves: bytes
    peaks: tuple[Sha256, ...]
    """Of the tree before them."""
    gaps: tuple[OffsetRange, ...] = ()


class NotaryState(Record):
    """How far one partition's tree has grown; `log` says of which log the offsets are. Key: topic
    and partition."""

    model_config = _BINARY
    SCHEMA: ClassVar[str] = "ares.notary-state/1"
    schema_: Literal["ares.notary-state/1"] = Field("ares.notary-state/1", alias="schema")
    topic: Identifier
    partition: PartitionNumber = Field(ge=0)
    end: Offset = Field(ge=0)
    size: int = Field(ge=0)
    peaks: tuple[Sha256, ...]
    pending: PendingLeaves | None = None
    log: str = ""

    @model_validator(mode="after")
    def _one_tree(self) -> Self:
        if len(self.peaks) != self.size.bit_count():
            raise refusal(f"peaks: a tree of {self.size} leaves has {self.size.bit_count()}")
        return self

    @property
    def begins(self) -> int:
        """The offset up to which all was signed when this was written."""
        return self.end if self.pending is None else self.pending.start

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return canonical_json([self.topic, self.partition])


class Salt(Record):
    """The salt of one record's leaf, or that it was erased. Key: topic, partition and offset."""

    model_config = _BINARY
    SCHEMA: ClassVar[str] = "ares.salt/1"
    schema_: Literal["ares.salt/1"] = Field("ares.salt/1", alias="schema")
    topic: Identifier
    partition: PartitionNumber = Field(ge=0)
    offset: Offset = Field(ge=0)
    salt: bytes | None = None
    subject: Sha256 | None = None
    """HMAC of the record's key under the salt: finds the salts of a key, and goes with the salt."""
    topic_id: str | None = None
    """Which topic of that name the offset is of, where the broker gives ids."""
    erased_at: Instant | None = None
    erased_by: Identifier | None = None
    reason: str | None = None

    @property
    def key(self) -> bytes:
        """Kafka's key."""
        return canonical_json([self.topic, self.partition, self.offset])
