"""A service as a process of its own, as in production: started, waited for, drained."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from ares_stream.errors import ScoringError

LOOK_SECONDS: Final = 0.25
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 30.0


class Service:
    """A service's process and its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    async def said(self, event: str, text: str, seconds: float) -> None:
        """Return once its log holds an event whose line has this text."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            lines = self._log.read_text(errors="replace", encoding="utf-8").splitlines()
            if any(f'"{event}"' in line and text in line for line in lines):
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise ScoringError(f"the {self.name} did not say {event!r} within {seconds:.0f} s")

    def check(self) -> None:
        """Raise ScoringError, with the end of its log, if it ended by itself."""
        if self._process.returncode is not None:
            tail = "\n".join(
                self._log.read_text(errors="replace", encoding="utf-8").splitlines()[-15:]
            )
            raise ScoringError(
                f"the {self.name} ended with code {self._process.returncode}:\n{tail}"
            )

    async def stop(self) -> None:
        """SIGTERM, and wait for it to drain. Raises ScoringError if it does not end cleanly."""
        self.check()
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            raise ScoringError(
                f"the {self.name} did not drain within {STOP_SECONDS:.0f} s"
            ) from None
        if code != 0:
            self.check()


@asynccontextmanager
async def service_process(
    name: str, settings: dict[str, Any], scratch: Path
) -> AsyncIterator[Service]:
    """`ares NAME` of this environment with these settings; killed if the block fails."""
    file, log = scratch / f"{name}.yaml", scratch / f"{name}.log"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ares_stream", name, "--settings", str(file)),
            stdout=stderr,
            stderr=stderr,
            env={key: value for key, value in os.environ.items() if not key.startswith("ARES_")},
        )
    try:
        yield Service(name, process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def until_ready(service: Service, port: int) -> None:
    """Return once its /readyz says so. Raises ScoringError when it ends or is not ready in time."""
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            service.check()
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # It does not listen yet.
            await asyncio.sleep(LOOK_SECONDS)
    raise ScoringError(f"the {service.name} was not ready within {READY_SECONDS:.0f} s")
