"""Who is measured: the `ares scorer` and its peers, each as processes of its own on topics of its
own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import yaml

from ares_stream.errors import ScoringError
from ares_stream.lab.experiments.throughput import peers
from ares_stream.lab.experiments.throughput.models import Pair
from ares_stream.processes.parent import die_with_parent
from ares_stream.processes.ports import free_port
from ares_stream.records.topics import PRODUCTION, REPAIR, VERDICTS, topic_name

OURS: Final = "ares"
GUARANTEES: Final = {
    OURS: "exactly once",
    "confluent": "exactly once",
    "quix": "exactly once",
    "faststream": "at least once",
    "bytewax": "at least once",
}
COMMIT_SECONDS: Final = 0.25
"""The commit interval of every contestant: the scorer's own default."""
START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
_LOOK_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used up to now: the clock and their CPU time, in seconds."""

    wall: float
    cpu: float


class Contestant:
    """One or several processes that share a group."""

    def __init__(
        self,
        name: str,
        prefix: str,
        processes: Sequence[subprocess.Popen[bytes]],
        logs: Sequence[Path],
        port: int | None,
    ) -> None:
        self.name = name
        self.prefix = prefix
        self.started = time.monotonic()
        self._processes = processes
        self._logs = logs
        self._port = port

    @property
    def topic(self) -> str:
        """What it reads."""
        return topic_name(self.prefix, PRODUCTION)

    @property
    def verdicts(self) -> str:
        """What it writes."""
        return topic_name(self.prefix, VERDICTS)

    def ready_seconds(self) -> float | None:
        """Seconds from its start until /readyz answers 200; None for who has none."""
        if self._port is None:
            return None
        while time.monotonic() < self.started + START_SECONDS:
            self.check()
            if _says_ready(self._port):
                return time.monotonic() - self.started
            time.sleep(_LOOK_SECONDS)
        raise ScoringError(f"{self.name} is not ready after {START_SECONDS:.0f} s: {self._tail()}")

    def usage(self) -> Usage:
        """The clock, and the CPU time of all its processes."""
        cpu = 0.0
        for process in self._processes:
            times = psutil.Process(process.pid).cpu_times()
            cpu += times.user + times.system
        return Usage(time.monotonic(), cpu)

    def mebibytes(self) -> float:
        """Resident memory of its largest process."""
        return max(psutil.Process(item.pid).memory_info().rss for item in self._processes) / 2**20

    def check(self) -> None:
        """Raises ScoringError, with the end of its log, when one of them has ended."""
        for process in self._processes:
            if process.poll() is not None:
                raise ScoringError(f"{self.name} ended: {self._tail()}")

    def _tail(self) -> str:
        return "\n".join(
            log.read_text(errors="replace", encoding="utf-8")[-1500:] for log in self._logs
        )

    def stop(self) -> None:
        """End it as Kubernetes does."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _says_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as page:
            return bool(page.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running(
    name: str,
    prefix: str,
    pair: Pair,
    bootstrap: str,
    folder: Path,
    *,
    processes: int = 1,
    peers_python: Path | None = None,
    scorer: Mapping[str, Any] | None = None,
) -> Iterator[Contestant]:
    """A contestant, started and not waited for; killed with the block. `scorer` are settings of
    the `ares scorer` beside those that all have."""
    started: list[subprocess.Popen[bytes]] = []
    logs: list[Path] = []
    port: int | None = None
    for member in range(processes):
        log = folder / f"{prefix}{member}.log"
        settings = folder / f"{prefix}{member}.settings"
        if name == OURS:
            own = free_port()
            port = port or own
            settings.write_text(
                yaml.safe_dump(_settings(prefix, pair, bootstrap, own, scorer or {})),
                encoding="utf-8",
            )
            command = [sys.executable, "-m", "ares_stream", "scorer", "--settings", str(settings)]
        else:
            python = sys.executable if name == "confluent" else str(peers_python)
            settings.write_text(
                json.dumps(peer_settings(prefix, pair, bootstrap, folder, member)), encoding="utf-8"
            )
            command = [python, "-P", str(peers.__file__), name, str(settings)]
        with log.open("wb") as output:
            started.append(
                subprocess.Popen(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={
                        key: text for key, text in os.environ.items() if not key.startswith("ARES_")
                    },
                    preexec_fn=die_with_parent,
                )
            )
        logs.append(log)
    contestant = Contestant(name, prefix, started, logs, port)
    try:
        yield contestant
        contestant.stop()
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


def _settings(
    prefix: str, pair: Pair, bootstrap: str, port: int, scorer: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the `ares scorer`: its defaults but for `scorer`, on one input as the peers have."""
    lane: Literal["production"] = "production"
    return {
        "kafka": {"bootstrap": bootstrap},
        "topic_prefix": prefix,
        "http": {"port": port},
        "scorer": {
            "group": f"{prefix}scorer",
            "harm": [str(pair.judge.path.absolute())],
            "reward": str(pair.reward.path.absolute()),
            "inputs": [{"topic": topic_name(prefix, PRODUCTION), "lane": lane}],
            "allow_shared_lineage": True,
            **scorer,
        },
    }


def peer_settings(
    prefix: str, pair: Pair, bootstrap: str, folder: Path, member: int
) -> dict[str, Any]:
    """What peers.py is told."""
    reference = pair.reward.manifest.reference
    return {
        "bootstrap": bootstrap,
        "input": topic_name(prefix, PRODUCTION),
        "verdicts": topic_name(prefix, VERDICTS),
        "repair": topic_name(prefix, REPAIR),
        "group": f"{prefix}scorer",
        "member": member,
        "tokenizer": str(pair.judge.tokenizer.absolute()),
        "judge": str(pair.judge.model.absolute()),
        "reward": str(pair.reward.model.absolute()),
        "max_length": pair.judge.manifest.template.max_length,
        "intercept": pair.judge.manifest.calibration.intercept,
        "reference": list(reference.scores) if reference else [],
        "releases": {"judge": pair.judge.digest, "reward": pair.reward.digest},
        "threads": len(os.sched_getaffinity(0)),
        "linger": COMMIT_SECONDS,
        "folder": str(folder),
    }
