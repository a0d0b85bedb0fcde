"""Records as the processor sees them: bytes with coordinates, nothing decoded."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Final, Literal, TypeAlias

from ares_stream.errors import AresError

Headers: TypeAlias = tuple[tuple[str, bytes | None], ...]

_RECORD_OVERHEAD: Final = 300
_HEADER_OVERHEAD: Final = 160
"""Bytes of Python's objects around a record's own: a megabyte of empty headers takes eighty."""

MAX_PLACES: Final = 20


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What is read into memory of one record, and of one compressed batch in all."""

    record_bytes: int = 32 << 20
    batch_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """Why a record is not there as a whole, its size in bytes, and a SHA-256: of its value, of
    the record as the topic holds it, or of the whole batch that could not be read."""

    reason: str
    size: int
    sha256: str
    of: Literal["value", "record", "batch"]


@dataclass(frozen=True, slots=True, init=False)
class InboundRecord:
    """One record as it was read. `timestamp_ms` is Kafka's, -1 where it has none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    damage: Damage | None
    """Set where no record can be read at this offset: then key and value are None."""
    size: int = field(init=False, compare=False)
    """Bytes that the record holds in memory, nearly: added up once, and asked for several times."""

    def __init__(
        self,
        topic: str,
        partition: int,
        offset: int,
        timestamp_ms: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        damage: Damage | None = None,
    ) -> None:
        # One is made for every record that is read: a frozen class's own way takes twice as long.
        _SET_TOPIC(self, topic)
        _SET_PARTITION(self, partition)
        _SET_OFFSET(self, offset)
        _SET_TIMESTAMP(self, timestamp_ms)
        _SET_KEY(self, key)
        _SET_VALUE(self, value)
        _SET_HEADERS(self, headers)
        _SET_DAMAGE(self, damage)
        size = _RECORD_OVERHEAD + len(key or b"") + len(value or b"")
        for name, content in headers:
            size += _HEADER_OVERHEAD + len(name) + len(content or b"")
        _SET_SIZE(self, size)

    @property
    def header_map(self) -> dict[str, bytes]:
        """Headers by name: the last of a name, a null value as empty bytes."""
        return {name: value or b"" for name, value in self.headers}


(
    _SET_TOPIC, _SET_PARTITION, _SET_OFFSET, _SET_TIMESTAMP, _SET_KEY, _SET_VALUE, _SET_HEADERS,
    _SET_DAMAGE, _SET_SIZE,
) = (vars(InboundRecord)[item.name].__set__ for item in fields(InboundRecord))  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutboundRecord:
    """One record to publish; records of one key keep their order."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None
    partition: int | None = None
    """Where it goes; None: where its key does."""
    note: object = field(default=None, compare=False)
    """What the observer is told once the record is committed; never sent."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that cannot be handled: it goes to the dead letters with this reason.

    `stage` names the step that refused it: fetch, decode, score, handle, publish. Of an error
    its texts are kept and never the exception, whose traceback would keep every record alive
    that was handled beside this one.
    """

    stage: str
    kind: str
    """The error's class with its module."""
    reason: str
    """Not masked, so that a replay gives the same wherever it runs: dead letters and logs mask."""
    places: str = ""
    """Where it was raised, as file:line, innermost last; no source lines, which may hold text."""

    @classmethod
    def of(cls, stage: str, error: BaseException) -> Rejection:
        """From an error."""
        kind = type(error)
        reason = error.unmasked if isinstance(error, AresError) else str(error)
        return cls(stage, f"{kind.__module__}.{kind.__qualname__}", reason, _places(error))


def _places(error: BaseException) -> str:
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None and len(places) < MAX_PLACES:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return "\n".join(places)


Outcome: TypeAlias = tuple[OutboundRecord, ...] | Rejection
"""What became of one inbound record: the records it turned into (none is fine), or why not."""
