"""Dead letters: the record that could not be handled, byte for byte, with why; and the breaker
that stops before a bad deploy turns a topic into dead letters. Pure.

Header names are those of Kafka Connect's error reporting (DeadLetterQueueReporter), so that
existing tools read them, plus three of our own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from ares_stream.errors import DecodeError
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Rejection

PREFIX: Final = "__connect.errors."
MAX_REASON: Final = 500
"""Longest reason in a header; our errors hold no text of a record, other people's might."""


def dead_letter(
    record: InboundRecord, rejection: Rejection, topic: str, *, service: str, failed_at_ms: int
) -> OutboundRecord:
    """The record for the dead-letter topic: key, value and headers as they were, reasons added."""
    error = rejection.error
    kind = type(error)
    reasons = {
        f"{PREFIX}topic": record.topic,
        f"{PREFIX}partition": str(record.partition),
        f"{PREFIX}offset": str(record.offset),
        f"{PREFIX}stage": rejection.stage,
        f"{PREFIX}class.name": service,
        f"{PREFIX}exception.class.name": f"{kind.__module__}.{kind.__qualname__}",
        f"{PREFIX}exception.message": str(error)[:MAX_REASON],
        f"{PREFIX}exception.stacktrace": _places(error),
        "ares.errors.attempt": "1",
        "ares.errors.first_failed_at": str(failed_at_ms),
        "ares.errors.original_timestamp": str(record.timestamp_ms),
    }
    return OutboundRecord(
        topic=topic,
        key=record.key,
        value=record.value,
        headers=(
            *record.headers,
            *((name, text.encode(errors="replace")) for name, text in reasons.items()),
        ),
    )


def source_of(record: InboundRecord) -> tuple[str, int, int]:
    """Topic, partition and offset of the record that a dead letter stands for.

    Raises DecodeError for a record that is no dead letter.
    """
    headers = dict(record.headers)
    try:
        return (
            headers[f"{PREFIX}topic"].decode(),
            int(headers[f"{PREFIX}partition"]),
            int(headers[f"{PREFIX}offset"]),
        )
    except (KeyError, ValueError):
        raise DecodeError(
            f"{record.topic} {record.partition} offset {record.offset} is no dead letter: it has "
            f"no {PREFIX}topic, partition and offset"
        ) from None


def reason_of(record: InboundRecord) -> tuple[str, str]:
    """The stage that refused a dead letter's record, and why."""
    headers = dict(record.headers)
    return (
        headers.get(f"{PREFIX}stage", b"").decode(errors="replace"),
        headers.get(f"{PREFIX}exception.message", b"").decode(errors="replace"),
    )


def _places(error: Exception) -> str:
    """Where it was raised, as file:line, innermost last; no source lines, which may hold text."""
    places: list[str] = []
    trace = error.__traceback__
    while trace is not None and len(places) < 20:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return "\n".join(places)


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When too much is refused: a share of the last `window` records, or a run without a gap."""

    window: int = 500
    share: float = 0.5
    consecutive: int = 100


class Breaker:
    """Counts outcomes in the order of their commits and says when to stop."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._last: deque[bool] = deque(maxlen=policy.window)
        self._refused = 0
        self._run = 0

    def count(self, refused: bool) -> str | None:
        """Count one record; the reason to stop, or None. The share is judged on a full window."""
        if len(self._last) == self._policy.window:
            self._refused -= self._last[0]
        self._last.append(refused)
        self._refused += refused
        self._run = self._run + 1 if refused else 0
        if self._run >= self._policy.consecutive:
            return f"{self._run} records in a row were refused"
        if (
            len(self._last) == self._policy.window
            and self._refused >= self._policy.share * self._policy.window
        ):
            return f"{self._refused} of the last {self._policy.window} records were refused"
        return None
