"""Standard output and error of a command at a terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, Final, TextIO

from ares_stream.visible import visible

if TYPE_CHECKING:
    from ares_stream.errors import DecodeError
    from ares_stream.streaming.records import InboundRecord

_COLOURS: Final = re.compile(r"(\x1b\[(?:31|0)m)")
"""What commands write of their own: an error is red."""


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
