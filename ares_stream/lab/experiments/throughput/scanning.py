"""`ares scan` beside a plain loop over the same file, by CPU time and memory of their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ares_stream.errors import ScoringError
from ares_stream.lab.experiments.throughput import peers
from ares_stream.lab.experiments.throughput.contestants import peer_settings
from ares_stream.lab.experiments.throughput.models import Pair

LOOK_SECONDS: Final = 0.05
SCANNERS: Final = ("ares scan", "plain loop")


@dataclass(frozen=True, slots=True)
class Scan:
    """What a process used over a file, its start included: seconds of the clock and of CPU time,
    and the most memory that it held."""

    wall: float
    cpu: float
    peak_mebibytes: float


def scan(name: str, pair: Pair, file: Path, folder: Path) -> Scan:
    """One of SCANNERS over a file of lines. Raises ScoringError when it fails."""
    log = folder / "scan.log"
    if name == "ares scan":
        command = [sys.executable, "-m", "ares_stream", "scan", str(file)]
        command += ["--harm", str(pair.judge.path), "--reward", str(pair.reward.path)]
        command += ["--verdicts", str(folder / "verdicts.jsonl"), "--allow-shared-lineage"]
    else:
        settings = folder / "plain.settings"
        files = {"file": str(file), "out": str(folder / "verdicts.jsonl")}
        settings.write_text(
            json.dumps(peer_settings("bench.", pair, "", folder, 0) | files), encoding="utf-8"
        )
        command = [sys.executable, "-P", str(peers.__file__), "plain", str(settings)]
    return _ran(command, log)


def _ran(command: Sequence[str], log: Path) -> Scan:
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        peak = 0.0
        # What wait4 says of its memory holds that of this process too, which it was forked from.
        while True:
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            peak = max(peak, _peak(process.pid))
            time.sleep(LOOK_SECONDS)
        wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ScoringError(
            f"{command[2]} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-1500:]}"
        )
    return Scan(wall, used.ru_utime + used.ru_stime, peak)


def _peak(pid: int) -> float:
    """The most memory that a process has held, in MiB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def write_lines(file: Path, lines: Sequence[bytes], count: int) -> None:
    """A file of so many lines, which repeat."""
    with file.open("wb") as out:
        for at in range(0, count, len(lines)):
            out.writelines(line + b"\n" for line in lines[: count - at])
