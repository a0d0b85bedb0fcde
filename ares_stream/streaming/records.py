"""Records as the processor sees them: bytes with coordinates, nothing decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class InboundRecord:
    """One record as it was read. `timestamp_ms` is Kafka's, -1 where it has none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def size(self) -> int:
        """Bytes that the record holds in memory, without the object's own overhead."""
        return (
            len(self.key or b"")
            + len(self.value or b"")
            + sum(len(name) + len(value or b"") for name, value in self.headers)
        )


@dataclass(frozen=True, slots=True)
class OutboundRecord:
    """One record to publish; records of one key keep their order."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None
    note: object = field(default=None, compare=False)
    """What the observer is told once the record is committed; never sent."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that cannot be handled: it goes to the dead letters with this reason.

    `stage` names the step that refused it: decode, score, publish.
    """

    stage: str
    error: Exception


Outcome: TypeAlias = tuple[OutboundRecord, ...] | Rejection
"""What became of one inbound record: the records it turned into (none is fine), or why not."""
