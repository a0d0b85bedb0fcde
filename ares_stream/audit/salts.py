"""The salts of leaves that are drawn now, and those that records had before. Pure.

A notary of another name, or one whose state is lost, reads records again that have a salt. A second
salt in the place of the first would make every proof of the first notary fail, and one for a record
whose salt was erased would let its text be tested again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Final, NamedTuple

from ares_stream.audit.leaves import SALT_BYTES, subject_hash
from ares_stream.records.base import EPOCH
from ares_stream.records.checkpoint import Salt
from ares_stream.streaming.records import InboundRecord

_MILLISECOND: Final = timedelta(milliseconds=1)


class _Erased(NamedTuple):
    """When, in Unix milliseconds, and of which topic of that name."""

    at_ms: int
    topic_id: str | None


class Salts:
    """Gives each record its salt. About 200 bytes for each one that is known from before."""

    def __init__(self, draw: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._draw = draw
        self._before: dict[tuple[str, int, int], bytes | _Erased] = {}

    def recall(self, item: Salt) -> None:
        """Take in what stands on the salts' topic; what was erased stays so."""
        place = (item.topic, item.partition, item.offset)
        if item.erased_at is not None:
            at_ms = (item.erased_at - EPOCH) // _MILLISECOND
            self._before[place] = _Erased(at_ms, item.topic_id)
        elif item.salt is None or item.subject is None:
            return
        elif not isinstance(self._before.get(place), _Erased):
            self._before[place] = item.salt + bytes.fromhex(item.subject)

    def of(self, record: InboundRecord, topic_id: str | None = None) -> tuple[bytes, Salt | None]:
        """The record's salt, and what is to be written of it: nothing where it stands there, or
        where it was erased.

        A salt of before is this record's where it names its key. An erasure is another record's
        where topic and time say so: of a topic that was made anew, and written after it.
        """
        place = (record.topic, record.partition, record.offset)
        known = self._before.pop(place, None)
        if isinstance(known, bytes):
            salt, subject = known[:-32], known[-32:].hex()
            if subject_hash(salt, record.key) == subject:
                return salt, None
        salt = self._draw(SALT_BYTES)
        if isinstance(known, _Erased) and not _is_other(known, record, topic_id):
            return salt, None
        topic, partition, offset = place
        subject = subject_hash(salt, record.key)
        return salt, Salt(
            topic=topic, partition=partition, offset=offset, salt=salt, subject=subject,
            topic_id=topic_id,
        )  # fmt: skip


def _is_other(erased: _Erased, record: InboundRecord, topic_id: str | None) -> bool:
    """Clocks of producers jump, and a topic that is restored has another id: neither alone says
    that it is another record."""
    is_other_topic = bool(topic_id and erased.topic_id and topic_id != erased.topic_id)
    return is_other_topic and record.timestamp_ms > erased.at_ms
