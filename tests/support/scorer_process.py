"""The scorer as a process of its own, as it is deployed: `ares scorer --settings FILE`.

As a module it is that command with a saboteur inside, for tests that kill it:

    python -m tests.support.scorer_process STEP:NUMBER:SIGNAL scorer --settings FILE
"""

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
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yaml
from aiokafka import AIOKafkaConsumer, TopicPartition

from ares_stream.models.bundles import Bundle
from ares_stream.records.topics import topic_name
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.connection import KafkaConnection

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 150.0
"""Longest wait for anything; on two busy cores a start alone takes several seconds."""


class ScorerProcess:
    """`with ScorerProcess(...) as scorer`: started, and killed at the end if it still runs."""

    def __init__(
        self,
        bootstrap: str,
        prefix: str,
        folder: Path,
        *,
        harm: Bundle,
        reward: Bundle,
        sabotage: str = "",
        environment: Mapping[str, str] | None = None,
        **scorer: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._bootstrap, self._prefix = bootstrap, prefix
        self._log = folder / "log"
        file = folder / "settings.yaml"
        settings = {
            "topic_prefix": prefix,
            "http": {"port": 0},
            "scorer": {
                "group": f"{prefix}scorer",
                "harm": [str(harm.path.absolute())],
                "reward": str(reward.path.absolute()),
                "threads": 2,
                **scorer,
            },
        }
        file.write_text(yaml.safe_dump(settings))
        command = [str(Path(sys.executable).with_name("ares"))]
        if sabotage:
            command = [sys.executable, "-m", "tests.support.scorer_process", sabotage]
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "scorer", "--settings", str(file)],
                cwd=ROOT,
                env={**os.environ, "ARES_KAFKA__BOOTSTRAP": bootstrap, **(environment or {})},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._port: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if error is not None:
            print(self.log[-6000:])

    @property
    def log(self) -> str:
        """All that it wrote to stdout and stderr."""
        return self._log.read_text(errors="replace")

    def events(self, name: str) -> list[dict[str, Any]]:
        """Its log lines of one event."""
        lines = [line for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in map(json.loads, lines) if line["event"] == name]

    async def said(self, name: str, *, times: int = 1) -> dict[str, Any]:
        """Its log line of an event, once it is there."""
        deadline = time.monotonic() + SECONDS
        while len(lines := self.events(name)) < times:
            assert self._process.poll() is None, f"ended with {self._process.returncode}"
            assert time.monotonic() < deadline, f"it never said {name!r}"
            await asyncio.sleep(0.05)
        return lines[-1]

    async def get(self, path: str) -> httpx.Response:
        """What its HTTP side answers."""
        if self._port is None:
            self._port = (await self.said("listening"))["port"]
        async with httpx.AsyncClient() as client:
            return await client.get(f"http://127.0.0.1:{self._port}{path}", timeout=10)

    async def metric(self, name: str) -> float:
        """One sample of /metrics, given with its labels; 0 when it has not been set."""
        text = (await self.get("/metrics")).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def holds(self, *partitions: int) -> None:
        """Return once it processes exactly one of these numbers of partitions."""
        deadline = time.monotonic() + SECONDS
        while True:
            given, taken = [
                await self.metric(f'ares_rebalances_total{{change="{change}"}}')
                for change in ("assigned", "revoked")
            ]
            if given - taken in partitions:
                return
            assert time.monotonic() < deadline, f"it holds {given - taken} partitions"
            await asyncio.sleep(0.1)

    async def until_done(self, names: Sequence[str], *, records: int | None = None) -> None:
        """Return once its group has committed so many records, or all that the topics hold."""
        deadline = time.monotonic() + SECONDS
        while True:
            committed, ends = await progress(self._bootstrap, self._prefix, names)
            done, wanted = sum(committed.values()), records or sum(ends.values())
            if done >= wanted:
                return
            assert self._process.poll() is None, f"ended with {self._process.returncode}"
            assert time.monotonic() < deadline, f"{done} of {wanted} committed"
            await asyncio.sleep(0.2)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Exit code, once it has ended by itself."""
        return await asyncio.to_thread(self._process.wait, SECONDS)

    async def drained(self) -> None:
        """Stop it as Kubernetes does; it must end without an error."""
        self.send(signal.SIGTERM)
        code = await self.ended()
        assert code == 0, f"exit code {code}"


async def progress(
    bootstrap: str, prefix: str, names: Sequence[str]
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Committed and end offset of every partition of the topics, asked for without the scorer."""
    counts = await count_partitions(
        KafkaConnection(bootstrap=bootstrap), [topic_name(prefix, name) for name in names]
    )
    partitions = [TopicPartition(name, n) for name, count in counts.items() for n in range(count)]
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=f"{prefix}scorer", enable_auto_commit=False
    )
    await consumer.start()
    try:
        committed = {item: await consumer.committed(item) or 0 for item in partitions}
        return committed, await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()


def main() -> None:
    """Send this process a signal when a step of a transaction ends for the NUMBER-th time."""
    from ares_stream.cli.main import app
    from ares_stream.streaming.contract import ProcessorObserver

    step, number, kind = sys.argv.pop(1).split(":")
    left, deadly = int(number), signal.Signals[kind]

    def sabotage(self: ProcessorObserver, name: str) -> None:
        nonlocal left
        left -= name == step
        if left == 0:
            os.kill(os.getpid(), deadly)

    ProcessorObserver.step = sabotage  # type: ignore[method-assign]
    app()


if __name__ == "__main__":
    main()
