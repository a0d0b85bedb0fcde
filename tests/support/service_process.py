"""A service as a process of its own, as it is deployed: `ares monitor --settings FILE`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import yaml

from ares_stream.audit.notes import NoteSigner

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 150.0
"""Longest wait for anything; on two busy cores a start alone takes several seconds."""


class ServiceProcess:
    """`with ServiceProcess("monitor", settings, folder) as service`: with a log; killed at the
    end if it still runs."""

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        self.settings = dict(settings)
        self.file = folder / f"settings-{time.monotonic_ns()}.yaml"
        self.file.write_text(yaml.safe_dump(self.settings))
        self.log_file = folder / f"log-{time.monotonic_ns()}"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).with_name("ares")), name, "--settings", str(self.file)],
                cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            )  # fmt: skip

    @property
    def log(self) -> str:
        """All that it wrote to stdout and stderr."""
        return self.log_file.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        lines = [item for item in self.log.splitlines() if item.startswith("{")]
        return [item for item in map(json.loads, lines) if item["event"] == name]

    async def said(self, name: str) -> dict[str, Any]:
        """Its last log line of an event, once there is one."""
        deadline = time.monotonic() + SECONDS
        while not (found := self.events(name)):
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, f"it never said {name!r}: {self.log[-3000:]}"
            await asyncio.sleep(0.05)
        return found[-1]

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, once its interpreter has come as far as to look after signals; its exit code."""
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None and not handles(self.process.pid, signal.SIGTERM):
            assert time.monotonic() < deadline, "it looks after no signal"
            time.sleep(0.01)
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self.process.poll() is None:
            self.kill()
        if error is not None:
            print(self.log[-4000:])


def handles(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = re.findall(r"^SigCgt:\s*(\w+)$", status, re.MULTILINE)
    return bool(int(mask, 16) >> (number - 1) & 1)


class MonitorProcess(ServiceProcess):
    """`ares monitor`."""

    def __init__(self, bootstrap: str, prefix: str, folder: Path, **monitor: Any) -> None:
        super().__init__("monitor", settings_of(bootstrap, prefix, **monitor), folder)


def settings_of(bootstrap: str, prefix: str, **monitor: Any) -> dict[str, Any]:
    """Settings of a monitor that publishes at once."""
    return {
        "kafka": {"bootstrap": bootstrap},
        "topic_prefix": prefix,
        "http": {"port": 0},
        "scorer": {"review_sample": 0.5},
        "monitor": {
            "group": f"{prefix}monitor",
            "slices": ["locale"],
            "cluster": "user",
            "publish_seconds": 0.2,
            **monitor,
        },
    }


class NotaryProcess(ServiceProcess):
    """`ares notary` with these keys."""

    def __init__(
        self,
        bootstrap: str,
        prefix: str,
        folder: Path,
        signers: Sequence[NoteSigner],
        **notary: Any,
    ) -> None:
        folder.mkdir(exist_ok=True, parents=True)
        keys = []
        for signer in signers:
            file = folder / f"{signer.key.key_id.hex()}.pem"
            file.write_bytes(signer.pem())
            keys.append(str(file))
        settings = {
            "kafka": {"bootstrap": bootstrap},
            "topic_prefix": prefix,
            "http": {"port": 0},
            "notary": {
                "group": f"{prefix}notary",
                "name": signers[0].key.name,
                "keys": keys,
                "checkpoint_seconds": 0.05,
                **notary,
            },
        }
        super().__init__("notary", settings, folder)


async def ares(*words: str) -> str:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("ares")),
        *words,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, words
    return output.decode()
