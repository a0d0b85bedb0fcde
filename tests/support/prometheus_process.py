"""A real Prometheus with our rules, on short intervals."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import pytest
import yaml

from ares_stream.processes.ports import free_port

ROOT: Final = Path(__file__).resolve().parents[2]
RULES: Final = ROOT / "helm/ares-stream/rules"
SECONDS: Final = 90.0
"""Longest wait for an alert or for data."""


def require_prometheus() -> None:
    """Skip where it is not installed; fail with ARES_REQUIRE_PROMETHEUS=1."""
    if shutil.which("prometheus") is None:
        reason = "prometheus is not installed (Debian: apt-get install prometheus)"
        if os.environ.get("ARES_REQUIRE_PROMETHEUS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


class PrometheusProcess:
    """`async with PrometheusProcess(...) as prometheus`: scrapes and evaluates every second.

    `jobs`: port of each job. The rules are the chart's, but for `for`: a second in the place of
    minutes, since the test cannot wait for hours. Expressions stay as they are.
    """

    def __init__(self, folder: Path, jobs: Mapping[str, int]) -> None:
        folder.mkdir()
        rules = folder / "rules"
        rules.mkdir()
        for file in RULES.rglob("*.yaml"):
            text = re.sub(r"^( +for:) \w+$", r"\1 1s", file.read_text(), flags=re.MULTILINE)
            (rules / file.name).write_text(text)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{rules}/*.yaml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for job, port in jobs.items()
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._address = f"127.0.0.1:{free_port()}"
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={self._address}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

        self._client = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()
        self._process.terminate()
        self._process.wait(SECONDS)
        if error is not None:
            print(self._log.read_text()[-3000:])

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self._address}"

    async def ask(self, path: str, **parameters: Any) -> Any:
        """`data` of an answer of its API; asked again while it starts."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                url = f"http://{self._address}/api/v1/{path}"
                answer = await self._client.get(url, params=parameters, timeout=10)
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    break
            except httpx.TransportError:
                assert self._process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        body = answer.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    async def firing(self) -> dict[str, list[dict[str, Any]]]:
        """Alerts that fire, by name."""
        found: dict[str, list[dict[str, Any]]] = {}
        for alert in (await self.ask("alerts"))["alerts"]:
            if alert["state"] == "firing":
                found.setdefault(alert["labels"]["alertname"], []).append(alert)
        return found

    async def fires(self, name: str) -> dict[str, Any]:
        """The alert, once it fires."""
        deadline = time.monotonic() + SECONDS
        while name not in (found := await self.firing()):
            assert time.monotonic() < deadline, f"{name} does not fire: {sorted(found)}"
            await asyncio.sleep(0.5)
        return found[name][0]

    async def quiet(self, name: str) -> None:
        """Return once the alert no longer fires."""
        deadline = time.monotonic() + SECONDS
        while name in await self.firing():
            assert time.monotonic() < deadline, f"{name} still fires"
            await asyncio.sleep(0.5)
