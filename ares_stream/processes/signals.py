"""What a process does with SIGTERM before it can drain. Cheap to import: it comes first."""

from __future__ import annotations

import os
import signal
from types import FrameType


def end_at_once_on_sigterm() -> None:
    """Until a service can drain it has nothing to drain: SIGTERM ends it with 0. As the first
    process of a container it would not even be ended, since such a process ignores a signal that
    it does not handle."""

    def end(number: int, frame: FrameType | None) -> None:
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
