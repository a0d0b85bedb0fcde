"""Where a worker reads the records of its jobs: one consumer of the broker, or an archive."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.replay.spec import Job, ReplaySpec, Selection
from ares_stream.streaming.fetching import record_lists
from ares_stream.streaming.reader import SteadyReader
from ares_stream.streaming.records import Damage, InboundRecord


class Source:
    """Reads one job after another."""

    def __init__(self, spec: ReplaySpec, selection: Selection) -> None:
        self._limits = spec.read
        self._archive = ArchiveReader(spec.source) if isinstance(spec.source, str) else None
        self._topics = (
            None if isinstance(spec.source, str) else SteadyReader(spec.source, selection.topic_ids)
        )

    async def lists(self, job: Job) -> AsyncGenerator[list[InboundRecord], None]:
        """Every record of a job's range in order, in lists, those that cannot be read as their
        coordinates.

        Raises ReadError and TopicError as readers do.
        """
        if self._archive is not None:
            limit = self._limits.record_bytes
            archived = self._archive.records(job.range)
            for records in record_lists(_limited(record, limit) for record in archived):
                yield records
        elif self._topics is not None:
            async with aclosing(self._topics.read(job.range, limits=self._limits)) as lists:
                async for records in lists:
                    yield records

    async def aclose(self) -> None:
        """Disconnect."""
        if self._topics is not None:
            await self._topics.aclose()


def _limited(record: InboundRecord, limit: int) -> InboundRecord:
    """What a scorer with this limit saw of an archived record."""
    size = len(record.key or b"") + len(record.value or b"")
    if size + sum(len(name) + len(value or b"") for name, value in record.headers) <= limit:
        return record
    digest = hashlib.sha256(record.value or b"").hexdigest()
    damage = Damage(f"it has {size} bytes; up to {limit} are read", size, digest, "value")
    return replace(record, key=None, value=None, headers=(), damage=damage)
