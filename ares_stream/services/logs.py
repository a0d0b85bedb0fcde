"""Structured logs: one JSON object a line on stderr, without a word of any conversation.

Callers log ids, coordinates, counts and the names of errors. As a second line of defence
`_no_text` cuts any string longer than a label may be, so that a conversation which slipped
into an event never reaches the log whole.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TextIO, cast

import structlog
from structlog.typing import EventDict, WrappedLogger

from ares_stream.errors import masked

FOLD_SECONDS: Final = 30.0
"""How often a line that a library repeats is written again, with its count."""
TOLD: Final = 20
"""Records that cannot be read have a line each up to this many, then each thousandth has one."""
MAX_FIELD = 512
"""Longest string of a log field; an error's message fits, a conversation does not."""


def _no_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > MAX_FIELD:
            event[key] = f"{value[:MAX_FIELD]}… ({len(value)} characters)"
    return event


def _masked(_: WrappedLogger, __: str, line: Any) -> str:
    """The rendered line without any secret that this process has read, whoever quoted it."""
    return masked(str(line))


def configure(*, level: str = "info") -> None:
    """Send this process's logs to stderr.

    What libraries log through the standard library comes in the same form, from warning up.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _no_text,
            structlog.processors.JSONRenderer(),
            _masked,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Stderr())),
    )
    logging.basicConfig(
        level=max(threshold, logging.WARNING), handlers=[FromLibraries()], force=True
    )


class _Stderr:
    """Standard error, where a line that cannot be written is dropped: a full disk behind it, or
    a reader that has gone, must not end a service."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


@dataclass(slots=True)
class _Fold:
    """What one line of a library's code has said since it was written last."""

    written: float
    record: logging.LogRecord
    repeated: int = 0


class FromLibraries(logging.Handler):
    """Passes a library's record on, without its traceback: a message may quote what was read.

    While a broker is away a client says the same many times a second. The first is written; what
    the same line of code says after it is counted, and written with its count (`repeated`) once
    every `seconds`.
    """

    def __init__(
        self, seconds: float = FOLD_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._folds: dict[tuple[str, str, int], _Fold] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write or count a record."""
        now = self._clock()
        place = (record.name, record.pathname, record.lineno)
        fold = self._folds.get(place)
        if fold is None:
            self._folds[place] = _Fold(now, record)
            _write(record, 0)
        else:
            fold.record = record
            fold.repeated += 1
        self._unfold(now)

    def flush(self) -> None:
        """Write what is counted and not yet written."""
        self._unfold(float("inf"))

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        super().close()

    def _unfold(self, now: float) -> None:
        for place, fold in list(self._folds.items()):
            if now - fold.written < self._seconds:
                continue
            if fold.repeated:
                _write(fold.record, fold.repeated)
                fold.written, fold.repeated = now, 0
            else:
                del self._folds[place]


def _write(record: logging.LogRecord, repeated: int) -> None:
    event: dict[str, Any] = {"library": record.name}
    if record.exc_info and record.exc_info[0]:
        event["error"] = record.exc_info[0].__name__
    if repeated:
        event["repeated"] = repeated
    structlog.get_logger().log(record.levelno, record.getMessage(), **event)


def is_told(count: int) -> bool:
    """Whether the so-manieth record that cannot be read gets a line."""
    return count <= TOLD or count % 1000 == 0


def get(service: str) -> Any:
    """A logger whose lines carry the service's name."""
    return structlog.get_logger().bind(service=service)
