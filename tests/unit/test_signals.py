"""A signal ends a command whatever call of the system it waits in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WAITS = {
    "a read of a pipe": "os.read(os.pipe()[0], 1)",
    "a line of standard input": "sys.stdin.readline()",
    "an open of a pipe": "os.mkfifo(name); open(name)",
    "a lock of a file": (
        "first = open(name, 'w'); fcntl.flock(first, fcntl.LOCK_EX); "
        "fcntl.flock(open(name), fcntl.LOCK_EX)"
    ),
    "a child": "subprocess.run(['sleep', '600'])",
    "an event loop": "asyncio.run(asyncio.sleep(600))",
    "a write to a pipe": "os.write(os.pipe()[1], bytes(1 << 20))",
}
# The signal comes to another thread: what the main thread waits for is not broken off by it, as
# where it comes between Python's last look after signals and the wait.
PROGRAM = """
import asyncio, fcntl, os, signal, subprocess, sys, threading
from ares_stream.processes.signals import end_in_order
name, number, wait = sys.argv[1], int(sys.argv[2]), sys.argv[3]
end_in_order()
waiting = threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), number))
waiting.daemon = True
try:
    waiting.start()
    exec(wait)
finally:
    print("taken back", flush=True)
"""


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_thread_gets_breaks_a_wait_off(
    tmp_path: Path, wait: str, number: signal.Signals
) -> None:
    reads, writes = os.pipe()  # Nothing is written to it.
    try:
        done = _run(number, PROGRAM, str(tmp_path / "file"), str(int(number)), wait, stdin=reads)
    finally:
        os.close(reads)
        os.close(writes)
    interrupted = -signal.SIGINT if number == signal.SIGINT else 128 + number
    assert done.returncode == interrupted, done.stderr
    assert done.stdout == "taken back\n"


SWALLOWS = {
    "a library that catches everything": """
try:
    os.kill(os.getpid(), number); time.sleep(600)
except:
    pass
""",
    "a finaliser": """
class Held:
    def __del__(self):
        os.kill(os.getpid(), number)
        for _ in range(10_000): pass
Held()
""",
}
LONG_CLEANUP = """
import os, sys, time
from ares_stream.processes.signals import end_in_order
end_in_order()
try:
    os.kill(os.getpid(), int(sys.argv[1])); time.sleep(600)
finally:
    time.sleep(1.0)
    print("taken back", flush=True)
"""


@pytest.mark.parametrize("swallow", SWALLOWS.values(), ids=SWALLOWS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_whose_end_was_swallowed_ends_the_command_all_the_same(
    tmp_path: Path, swallow: str, number: signal.Signals
) -> None:
    program = "import time; number = int(sys.argv[2])\n" + swallow + "time.sleep(600)"
    unsent = PROGRAM.replace("    waiting.start()\n", "")
    done = _run(number, unsent, str(tmp_path / "file"), str(int(number)), program)
    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == "taken back\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_a_command_takes_back_is_not_broken_off_by_the_signal_that_ended_it(
    number: signal.Signals,
) -> None:
    done = _run(number, LONG_CLEANUP, str(int(number)))
    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == "taken back\n"


def _run(
    number: signal.Signals, program: str, *words: str, stdin: int | None = None
) -> subprocess.CompletedProcess[str]:
    """A program that does not have the signal ignored, as a shell has it in the background."""
    return subprocess.run(
        ["env", f"--default-signal={number.name[3:]}", sys.executable, "-c", program, *words],
        stdin=stdin, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
