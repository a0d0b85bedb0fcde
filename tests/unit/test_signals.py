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
    default = ["env", f"--default-signal={number.name[3:]}", sys.executable, "-c", PROGRAM]
    reads, writes = os.pipe()  # Nothing is written to it.
    try:
        done = subprocess.run(
            [*default, str(tmp_path / "file"), str(int(number)), wait],
            stdin=reads, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(reads)
        os.close(writes)
    interrupted = -signal.SIGINT if number == signal.SIGINT else 128 + number
    assert done.returncode == interrupted, done.stderr
    assert done.stdout == "taken back\n"
