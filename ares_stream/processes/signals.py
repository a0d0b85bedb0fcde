"""What a process does with signals before it can drain. Cheap to import: it comes first."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Final

INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended."""


def end_at_once() -> None:
    """Until a service can drain it has nothing to drain: SIGTERM and SIGINT end it with 0. As the
    first process of a container it would not even be ended, since such a process ignores a signal
    that it does not handle."""

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def end_in_order() -> None:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: what it began is taken back, and no half of
    a file stays. A signal that whoever started it has it ignore (nohup) is ignored."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
