"""Running a step of a repair as a process of its own: bounded in time and memory, its progress
told, its log kept, and never outliving the service that started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ares_stream.errors import DecodeError, RepairError
from ares_stream.files import parse_json
from ares_stream.processes.parent import die_with_parent

STOP_SECONDS: Final = 10.0
"""To write a checkpoint after SIGTERM; then SIGKILL."""
POLL_SECONDS: Final = 0.5
"""How often the memory is read: an overshoot of half a second is bearable."""
LINE_BYTES: Final = 1 << 20
MAX_STEPS: Final = 1 << 53
"""What a metric, which is a float, still tells apart."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a step may take: seconds of wall time, bytes of resident memory with its children."""

    seconds: float
    memory_bytes: int


async def run_child(
    command: Sequence[str], folder: Path, limits: Limits, log: Path, progress: Progress
) -> None:
    """Run `command folder` to its end. Standard output is read for lines of JSON with stage,
    done and total; both outputs go to the end of `log`.

    Raises RepairError when it cannot start, exceeds a limit, or ends with another code than 0;
    then nothing of it runs any more. Cancelling this call ends it too.
    """
    if _resident(os.getpid()) == 0:
        raise RepairError("memory of a child cannot be read here: /proc is needed (Linux)")
    with _opened(log) as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                str(folder),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                limit=LINE_BYTES,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            raise RepairError(f"{command[0]}: cannot be started: {error.strerror}") from error
        try:
            await _supervise(process, limits, output, progress)
        finally:
            await _end(process)
    if process.returncode != 0:
        raise RepairError(_explained(command, process.returncode, log))


async def _supervise(
    process: asyncio.subprocess.Process, limits: Limits, output: int, progress: Progress
) -> None:
    reading = asyncio.create_task(_read(process, output, progress))
    deadline = time.monotonic() + limits.seconds
    try:
        while not reading.done():
            await asyncio.wait({reading}, timeout=POLL_SECONDS)
            if time.monotonic() > deadline:
                raise RepairError(
                    f"ran for more than {limits.seconds:.0f} s and was ended; raise the limit, or "
                    "train for fewer steps"
                )
            used = sum(map(_resident, _tree(process.pid)))
            if used > limits.memory_bytes:
                raise RepairError(
                    f"took {used >> 20} MiB of memory, {limits.memory_bytes >> 20} MiB are "
                    "allowed, and was ended; take smaller batches or shorter texts"
                )
        await reading
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            await process.wait()
    except TimeoutError:
        raise RepairError("closed its output and did not end in time") from None
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(process: asyncio.subprocess.Process, output: int, progress: Progress) -> None:
    assert process.stdout is not None  # noqa: S101 - it was asked for
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:
            raise RepairError(f"wrote a line longer than {LINE_BYTES} bytes") from None
        if not line:
            return
        try:
            os.write(output, line)
        except OSError as error:
            raise RepairError(f"the log cannot be written: {error.strerror}") from error
        if (told := _told(line)) is not None:
            progress(*told)


def _told(line: bytes) -> tuple[str, int, int] | None:
    """Progress, where a line is that; whatever else a program prints stands in its log."""
    try:
        found = parse_json(line)
        done, total = int(found["done"]), int(found["total"])
        stage = str(found["stage"])[:64]
    except (DecodeError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return (stage, done, total) if 0 <= done < MAX_STEPS and 0 <= total < MAX_STEPS else None


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the whole group, whatever state it is in."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
    # Also after an orderly end: a grandchild may be left.
    _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for task in tasks:
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text(encoding="utf-8").split():
                yield from _tree(int(child))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0  # It ended between being listed and being read.


@contextlib.contextmanager
def _opened(log: Path) -> Iterator[int]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise RepairError(f"{log}: cannot be written: {error.strerror}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _explained(command: Sequence[str], code: int | None, log: Path) -> str:
    """Its own last word where it is one of ours, which never quote a conversation."""
    with contextlib.suppress(OSError):
        # Launchers of several processes add a page of their own.
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-200:]
        for line in reversed(lines):
            if line.startswith("repair: "):
                return f"{line.removeprefix('repair: ')[:400]} (log: {log})"
    ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return f"{Path(command[0]).name} ended with {ended}; its log: {log}"
