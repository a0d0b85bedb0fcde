"""Which log an offset is of. Pure.

An offset names a record of one log. A topic that is deleted and made anew, a partition that is cut
back and filled again, or restored from a backup, has other records at the same offsets. What is
kept beside an offset (the metadata of a group's commit, a service's own state) tells them apart:
the id of the topic, and the last record that was read before the offset.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final, Literal, Self, TypeAlias

from ares_stream.streaming.records import InboundRecord

TOPIC: Final = "topic-id"
LAST: Final = "last-record"

LogChange: TypeAlias = Literal["anew", "rewritten"]
"""The topic is another one of that name; or it has other records where some were read."""


@dataclass(frozen=True, slots=True)
class LastRecord:
    """The last record that was read: its timestamp is Kafka's, its checksum a CRC-32 of key and
    value."""

    offset: int
    timestamp_ms: int
    checksum: int

    @classmethod
    def of(cls, record: InboundRecord) -> Self | None:
        """None of one that could not be read whole."""
        if record.damage is not None:
            return None
        checksum = zlib.crc32(record.value or b"", zlib.crc32(record.key or b""))
        return cls(record.offset, record.timestamp_ms, checksum)


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """What is known of the log that an offset is of; nothing where an older version or another
    tool wrote the offset, or the broker gives no ids."""

    topic_id: str = ""
    last: LastRecord | None = None

    def __str__(self) -> str:
        """As it stands in a commit's metadata, which `kafka-consumer-groups` shows. Versions that
        know of the topic's id alone look for it at the beginning, and take this for none."""
        parts = []
        if self.last is not None:
            last = self.last
            parts.append(f"{LAST}={last.offset}.{last.timestamp_ms}.{last.checksum:08x}")
        if self.topic_id:
            parts.append(f"{TOPIC}={self.topic_id}")
        return ";".join(parts)

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """What `str` wrote; of any other text what can be read of it."""
        fields = dict(part.partition("=")[::2] for part in (text or "").split(";"))
        return cls(fields.get(TOPIC, ""), _last(fields.get(LAST, "")))

    def change(self, topic_id: str, found: InboundRecord | None) -> LogChange | None:
        """How the log is another one now, None where nothing says that it is: `topic_id` is the
        topic's ("" where the broker gives none), `found` what stands now at `last.offset`.

        Compaction and retention leave offsets without a record, and never another record there.
        """
        if self.topic_id and topic_id and self.topic_id != topic_id:
            return "anew"
        if self.last is None or found is None or found.offset != self.last.offset:
            return None
        now = LastRecord.of(found)
        return "rewritten" if now is not None and now != self.last else None


def _last(text: str) -> LastRecord | None:
    try:
        offset, timestamp, checksum = text.split(".")
        return LastRecord(int(offset), int(timestamp), int(checksum, 16))
    except ValueError:
        return None
