"""What a process does with signals before it can drain. Cheap to import: it comes first."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Final

INTERRUPTED: Final = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended."""
_AGAIN_SECONDS: Final = (0.05, 0.2, 0.5, 1.0, 2.0)


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
    a file stays. A signal that whoever started it has it ignore (nohup) is ignored.

    Call it once, in the main thread: from then on no signal waits for what the command waits for,
    and none is lost in a library that catches everything.
    """
    asked: list[tuple[int, weakref.ref[_Ended]]] = []

    def end(number: int, frame: FrameType | None) -> None:
        ended = _Ended(128 + number)
        asked[:] = [(number, weakref.ref(ended))]
        try:
            raise ended
        finally:
            del ended  # Its traceback holds this frame, which would hold it.

    def look(number: int, frame: FrameType | None) -> None:
        """Whether what was raised is on its way still: nobody holds what somebody has caught."""
        if asked and asked[0][1]() is None and _is_running(frame):
            end(asked[0][0], frame)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
    _break_waits_off(look)


class _Ended(SystemExit):
    """The end that a signal asked for."""


def _is_running(frame: FrameType | None) -> bool:
    """Whether the program still runs, and is not being taken down after its end."""
    while frame is not None and frame.f_back is not None:
        frame = frame.f_back
    return frame is not None and frame.f_code.co_name == "<module>"


def _break_waits_off(look: Callable[[int, FrameType | None], None]) -> None:
    """Have the main thread answer each signal, whatever it waits for.

    Python answers a signal between two of its instructions. One that comes after the last look and
    before a call of the system that waits (a read of a pipe, an open of one, a lock of a file), or
    one that another thread is given, would be answered when that call ends, which may be never. A
    thread is told of each signal by the number that its C handler writes (`signal.set_wakeup_fd`)
    and sends the main thread a few that only `look`: the call is broken off (EINTR), and Python
    looks. An event loop that handles signals itself takes its place.
    """
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.signal(signal.SIGURG, look)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    main = threading.get_ident()

    def repeat() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while numbers := os.read(told, 1):
            if numbers[0] == signal.SIGURG:
                continue
            for seconds in _AGAIN_SECONDS:
                time.sleep(seconds)
                signal.pthread_kill(main, signal.SIGURG)

    threading.Thread(target=repeat, name="signals", daemon=True).start()
