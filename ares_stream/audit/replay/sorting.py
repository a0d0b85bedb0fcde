"""One stretch of an output topic, sorted by the input records that its records name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ares_stream.audit.replay.recorded import Output, Recorded, Source, recorded
from ares_stream.audit.replay.spec import LISTED, Job, ReplaySpec
from ares_stream.audit.replay.work import Sorted
from ares_stream.errors import DecodeError
from ares_stream.streaming.records import InboundRecord

Place = tuple[str, int]
"""An input's topic and partition."""
_SETTLING: Final = frozenset({Output.VERDICT, Output.LETTER})


class Sorter:
    """Takes a stretch's records in order. `entries` are those of wanted inputs, by topic,
    partition and block of the input."""

    def __init__(
        self, spec: ReplaySpec, job: Job, wanted: dict[Place, list[tuple[int, int]]]
    ) -> None:
        """`wanted` holds the offset spans that are replayed."""
        self._spec = spec
        self._wanted = wanted
        self._job = job
        self._records = 0
        self._settled: dict[Place, int] = {}
        self._lowest: dict[Place, int] = {}
        self._strange: list[dict[str, object]] = []
        self.entries: dict[tuple[str, int, int], list[Recorded]] = {}

    @property
    def found(self) -> Sorted:
        """What the stretch holds."""
        return Sorted(
            self._job, self._records, _named(self._settled), _named(self._lowest), self._strange
        )

    def take(self, records: Sequence[InboundRecord]) -> None:
        """Sort some in."""
        outputs, deadletters = self._spec.outputs, self._spec.deadletters
        self._records += len(records)
        for record in records:
            try:
                if record.damage is not None:
                    raise DecodeError(f"unreadable: {record.damage.reason}")
                source, entry = recorded(record, outputs, deadletters)
            except DecodeError as error:
                self._pass_over(record, error)
            else:
                self._add(source, entry)

    def _add(self, source: Source, entry: Recorded) -> None:
        topic, partition, offset = source
        place = topic, partition
        if offset < self._lowest.get(place, offset + 1):
            self._lowest[place] = offset
        if offset >= self._settled.get(place, 0) and entry.output in _SETTLING:
            self._settled[place] = offset + 1
        for start, end in self._wanted.get(place, ()):
            if start <= offset < end:
                key = topic, partition, offset // self._spec.block
                known = self.entries.get(key)
                if known is None:
                    self.entries[key] = [entry]
                else:
                    known.append(entry)
                return

    def _pass_over(self, record: InboundRecord, error: DecodeError) -> None:
        if len(self._strange) < LISTED:
            self._strange.append(
                {
                    "topic": record.topic,
                    "partition": record.partition,
                    "offset": record.offset,
                    "agreement": "unexpected",
                    "detail": f"no output of a scorer: {error}",
                }
            )


def _named(offsets: dict[Place, int]) -> dict[str, int]:
    return {f"{topic} {partition}": offset for (topic, partition), offset in offsets.items()}
