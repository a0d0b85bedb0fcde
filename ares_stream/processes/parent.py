"""Child processes that do not outlive the process that started them."""

from __future__ import annotations

import ctypes
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have this process sent a signal when its parent ends, however it ends (Linux; elsewhere
    nothing). Without it the orphan of a service that was killed outright goes on, and writes
    where the restarted service does. See prctl(2)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
