"""Scorers as processes of their own, started again when they end, as Kubernetes does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import yaml

from ares_stream.errors import AresError
from ares_stream.models.bundles import Bundle
from ares_stream.processes.parent import die_with_parent
from ares_stream.processes.ports import free_port

START_SECONDS: Final = 90.0
"""On two busy cores an import alone takes several seconds."""
DRAIN_SECONDS: Final = 60.0
SAMPLE_SECONDS: Final = 0.25


class ScorerEnded(AresError):
    """A scorer did not start, or did not end as it should. The message has the end of its log."""


class Scorer:
    """One `ares scorer`, whichever process it is in now."""

    def __init__(
        self, name: str, bootstrap: str, prefix: str, folder: Path, judge: Bundle, reward: Bundle
    ) -> None:
        self.name = name
        self.exits: Counter[int] = Counter()
        """Exit codes of processes that were not killed by us."""
        self.peak_mebibytes = 0.0
        self._log = folder / f"{name}.log"
        self._port = free_port()
        self._settings = folder / f"{name}.yaml"
        self._bootstrap = bootstrap
        self._settings.write_text(
            yaml.safe_dump(
                {
                    "topic_prefix": prefix,
                    "http": {"port": self._port},
                    "scorer": {
                        "group": f"{prefix}scorer",
                        "harm": [str(judge.path)],
                        "reward": str(reward.path),
                        "threads": 1,
                        "follow_releases": False,
                    },
                }
            ),
            encoding="utf-8",
        )
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "ares_stream", "scorer", "--settings", str(self._settings)],
                env={**os.environ, "ARES_KAFKA__BOOTSTRAP": self._bootstrap},
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    async def supervise(self, stop: asyncio.Event) -> None:
        """Start it again whenever it ends, and look at its memory, until told to stop."""
        while not stop.is_set():
            code = self._process.poll()
            if code is not None:
                if code != -signal.SIGKILL:
                    self.exits[code] += 1
                self._process = self._started()
            self.peak_mebibytes = max(self.peak_mebibytes, self.memory("VmHWM"))
            await asyncio.sleep(SAMPLE_SECONDS)

    async def ready(self) -> None:
        """Return once /readyz says so."""
        deadline = time.monotonic() + START_SECONDS
        while missing := await asyncio.to_thread(self._missing):
            if time.monotonic() > deadline:
                raise ScorerEnded(
                    f"{self.name} is not ready after {START_SECONDS:.0f} s ({missing}): {self.tail}"
                )
            await asyncio.sleep(0.1)

    def _missing(self) -> str:
        """What readiness lacks, in the scorer's own words; empty once it is ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as page:
                page.read()
                return ""
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.read(2_000).decode(errors="replace")
        except (urllib.error.URLError, OSError) as error:
            return f"/readyz does not answer: {error}"

    def says(self) -> str:
        """What readiness lacks, and the end of its log."""
        return f"{self.name}: {self._missing() or 'ready'}: {self.tail}"

    def skipped(self, topic: str) -> int:
        """Offsets of a topic that its log no longer held, as it counts them; since its start."""
        return self._counted(f'ares_skipped_offsets_total{{topic="{topic}"}}')

    def rewritten(self, topic: str) -> int:
        """Partitions of a topic whose log was filled again, as it counts them; since its start."""
        return self._counted(f'ares_log_changes_total{{change="rewritten",topic="{topic}"}}')

    def _counted(self, series: str) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith(series))

    def send(self, number: signal.Signals) -> None:
        """A signal to the process."""
        self._process.send_signal(number)

    def memory(self, field: str) -> float:
        """VmRSS (now) or VmHWM (the most so far) in MiB; 0 for a process that has ended."""
        try:
            lines = (
                Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
            )
        except OSError:
            return 0.0
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field)), 0.0)

    @property
    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace", encoding="utf-8")[-3000:]

    async def drained(self) -> None:
        """Stop it as Kubernetes does.

        Raises ScorerEnded when it does not end by itself with code 0.
        """
        self.send(signal.SIGTERM)
        try:
            code = await asyncio.to_thread(self._process.wait, DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise ScorerEnded(f"{self.name} does not end: {self.tail}") from None
        if code:
            raise ScorerEnded(f"{self.name} ended with {code}: {self.tail}")

    def kill(self) -> None:
        """End it whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@contextmanager
def ended_with(*scorers: Scorer) -> Iterator[None]:
    """No process is left behind."""
    try:
        yield
    finally:
        for scorer in scorers:
            scorer.kill()
