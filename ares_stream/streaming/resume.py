"""Where a partition is read on when its committed offset and its log disagree. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ares_stream.errors import ReadError
from ares_stream.records.base import OffsetRange
from ares_stream.streaming.log_identity import LogChange

OffsetReset: TypeAlias = Literal["earliest", "latest", "stop"]
"""`earliest` reads all that the log still holds, `latest` only what comes, `stop` asks a person."""


_OF: Final[Mapping[LogChange | None, str]] = {
    None: "",
    "anew": " of a topic that was made anew",
    "rewritten": ", truncated or restored and filled again,",
}


@dataclass(frozen=True, slots=True)
class OffsetLoss:
    """A committed offset that the log does not hold: what lay between was deleted unread, or the
    log is another one (truncated, restored, its topic made anew)."""

    topic: str
    partition: int
    committed: int
    beginning: int
    end: int
    resumed: int
    change: LogChange | None = None
    """The committed offset is of a log that is gone, of another topic of this name or of this one;
    how much of it was not read nobody can say."""

    @property
    def records(self) -> int:
        """Offsets that were passed over: never read here, or no longer there."""
        if self.change is not None:
            return self.resumed - self.beginning
        if self.committed < self.beginning:
            return self.resumed - self.committed
        return self.committed - self.end + self.resumed - self.beginning

    @property
    def gap(self) -> OffsetRange:
        """The offsets that name nothing any more, or other records than were read."""
        if self.change is not None:
            start, end = self.beginning, self.committed
        elif self.committed < self.beginning:
            start, end = self.committed, self.beginning
        else:
            start, end = self.end, self.committed
        return OffsetRange(
            topic=self.topic, partition=self.partition, start=min(start, end), end=end
        )

    def __str__(self) -> str:
        if self.change == "anew":
            return (
                f"{self.topic}-{self.partition}: committed offset {self.committed} is of a topic "
                f"that is gone; the one made anew holds {self.beginning} to {self.end}, reading "
                f"goes on at {self.resumed}"
            )
        if self.change == "rewritten":
            return (
                f"{self.topic}-{self.partition}: committed offset {self.committed} is of records "
                "that are gone: the log was truncated or restored and filled again; it holds "
                f"{self.beginning} to {self.end}, reading goes on at {self.resumed}"
            )
        if self.committed < self.beginning:
            cause = "retention was faster than the reader"
        else:
            cause = "the log was truncated, restored or made anew"
        return (
            f"{self.topic}-{self.partition}: committed offset {self.committed}, the log holds "
            f"{self.beginning} to {self.end}: {cause}; {self.records} offsets are lost, reading "
            f"goes on at {self.resumed}"
        )


@dataclass(frozen=True, slots=True)
class ForeignCommit:
    """An offset that nobody of this service committed: what it names of the log is nothing."""

    group: str
    topic: str
    partition: int
    committed: int

    def __str__(self) -> str:
        return (
            f"{self.topic}-{self.partition}: offset {self.committed} of the group {self.group} was "
            "committed by somebody else (kafka-consumer-groups --reset-offsets, or another "
            "consumer that uses this group): reading goes on there, whatever was read before"
        )


def resume(
    topic: str,
    partition: int,
    committed: int | None,
    beginning: int,
    end: int,
    reset: OffsetReset,
    *,
    change: LogChange | None = None,
) -> tuple[int, OffsetLoss | None]:
    """The offset to read next, and what was lost before it.

    `committed` is None where the group has not committed yet: all that the log holds is read, and
    nothing is lost. `beginning` and `end` are those of the log, which holds beginning to end - 1.
    `change` says that the log is another one than when `committed` was.
    Raises ReadError where something is lost and `reset` is stop.
    """
    if committed is None:
        return beginning, None
    if beginning <= committed <= end and change is None:
        return committed, None
    resumed = end if reset == "latest" else beginning
    loss = OffsetLoss(topic, partition, committed, beginning, end, resumed, change)
    if reset == "stop":
        raise ReadError(
            f"{topic}-{partition}: committed offset {committed}, but the log{_OF[change]} holds "
            f"{beginning} to {end}; set the group's offset with kafka-consumer-groups, or "
            "offset_reset to earliest or latest"
        )
    return resumed, loss
