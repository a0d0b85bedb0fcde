"""Records of our own topics that cannot be read: passed over, and each told once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ares_stream.errors import DecodeError
from ares_stream.streaming.records import InboundRecord

_log = logging.getLogger(__name__)

Unreadable: TypeAlias = Callable[[InboundRecord, DecodeError], None]
"""Told of a record that cannot be read, as a PassedOver is; who must not pass over it raises."""


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """Where it stands, and why it cannot be read. The reason names a field and quotes nothing."""

    topic: str
    partition: int
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.topic} {self.partition}@{self.offset}: {self.reason}"


class PassedOver:
    """Takes what a reader passes over and tells it once, however often the topic is read again:
    a record is known by its offset, behind which its partition was told already."""

    def __init__(self, tell: Callable[[UnreadableRecord], None]) -> None:
        self._tell = tell
        self._reported: dict[tuple[str, int], int] = {}

    def __call__(self, record: InboundRecord, error: DecodeError) -> None:
        """Pass over a record."""
        place = record.topic, record.partition
        if record.offset <= self._reported.get(place, -1):
            return
        self._reported[place] = record.offset
        self._tell(UnreadableRecord(*place, record.offset, str(error)))


def log_unreadable(record: InboundRecord, error: DecodeError) -> None:
    """Name a record in the log: what readers do for whoever tells them nothing else."""
    place = UnreadableRecord(record.topic, record.partition, record.offset, str(error))
    _log.warning("passed over %s", place)
