"""Structured logs: one JSON object a line on stderr, without a word of any conversation.

Callers log ids, coordinates, counts and the names of errors. As a second line of defence
`_no_text` cuts any string longer than a label may be, so that a conversation which slipped
into an event never reaches the log whole.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, WrappedLogger

MAX_FIELD = 512
"""Longest string of a log field; an error's message fits, a conversation does not."""


def _no_text(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > MAX_FIELD:
            event[key] = f"{value[:MAX_FIELD]}… ({len(value)} characters)"
    return event


def configure(*, level: str = "info", pretty: bool = False) -> None:
    """Send this process's logs to stderr; `pretty` for a terminal, JSON otherwise.

    What libraries log through the standard library comes in the same form, from warning up.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _no_text,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(
        level=max(threshold, logging.WARNING), handlers=[_FromLibraries()], force=True
    )


class _FromLibraries(logging.Handler):
    """Passes a library's record on, without its traceback: a message may quote what was read."""

    def emit(self, record: logging.LogRecord) -> None:
        event: dict[str, str] = {"library": record.name}
        if record.exc_info and record.exc_info[0]:
            event["error"] = record.exc_info[0].__name__
        structlog.get_logger().log(record.levelno, record.getMessage(), **event)


def get(service: str) -> Any:
    """A logger whose lines carry the service's name."""
    return structlog.get_logger().bind(service=service)
