"""Standard input, output and error of a command."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

from ares_stream.errors import ResourceError
from ares_stream.visible import visible

if TYPE_CHECKING:
    from ares_stream.errors import DecodeError
    from ares_stream.streaming.records import InboundRecord

_COLOURS: Final = re.compile(r"(\x1b\[(?:31|0)m)")
"""What commands write of their own: an error is red."""


CLOSED_PIPE: Final = 141
"""Whoever read the output has closed it, as `head` does: 128 + SIGPIPE, as a shell counts it."""


class _Output(io.FileIO):
    """Standard output. What cannot be written there is told from the errors of files and sockets,
    and ends the command; after that nothing more is written."""

    ended = False

    def write(self, data: Any, /) -> int:
        if self.ended:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.ended = True
            if error.errno == errno.EPIPE:
                raise SystemExit(CLOSED_PIPE) from None
            reason = error.strerror
        raise ResourceError(f"standard output: cannot be written: {reason}")


class _Errors(io.FileIO):
    """Standard error. A command whose messages nobody can get does its work all the same."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_streams() -> None:
    """Standard streams that are there, are written whole or not at all, and take any text: files
    and pipes get UTF-8 whatever the locale."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened would stand in its place.
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
    # What somebody has put in their place stays.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text(_Output(1, "wb", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text(_Errors(2, "wb", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: TextIO | None) -> TextIO:
    terminal = raw.isatty()
    known = before.encoding if before is not None and terminal else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=known,
        errors="backslashreplace",
        line_buffering=terminal or raw.fileno() == 2,
    )


class Terminal:
    """A terminal that is written what people can see: a topic, a file or a server of others may
    hold what moves its cursor, renames its window or turns its text around.

    Rich writes beside it (`rich_proxied_file`), and guards its own strings (`cli.terminal`).
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write out what a terminal would act on; the length of the text."""
        if not isinstance(text, str):
            raise TypeError("a terminal takes text")
        parts = _COLOURS.split(text)
        parts[::2] = [visible(part) for part in parts[::2]]
        self.rich_proxied_file.write("".join(parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


def guard_terminals() -> None:
    """From here on, what this process prints at a terminal is made visible. Files and pipes take
    what is written to the byte."""
    if sys.stdout.isatty():
        sys.stdout = Terminal(sys.stdout)
    if sys.stderr.isatty():
        sys.stderr = Terminal(sys.stderr)


def tell_passed_over(record: InboundRecord, error: DecodeError) -> None:
    """Name on standard error what a command cannot read of a topic, and goes on without."""
    where = f"{record.topic} {record.partition}@{record.offset}"
    sys.stderr.write(f"passed over {where}: {error}\n")
