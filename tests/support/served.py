"""Services in the test's own process, each on its life cycle and with its HTTP side."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from ares_stream.models.bundles import Bundle
from ares_stream.processes.ports import free_port
from ares_stream.services.lifecycle import Life, Service, live
from ares_stream.services.settings import Settings
from tests.support.failures import REPLAY


class Served:
    """Services in this process, each with its port."""

    def __init__(self, stack: AsyncExitStack, base: dict[str, Any]) -> None:
        self._stack = stack
        self._base = base
        self.ports: dict[str, int] = {}
        self._running: dict[str, tuple[Life, asyncio.Task[None]]] = {}

    async def start(
        self, name: str, make: Callable[[Settings, Life], Service], **sections: Any
    ) -> None:
        port = free_port()
        settings = Settings.model_validate({**self._base, "http": {"port": port}, **sections})
        life = Life(name)
        self._running[name] = (
            life,
            asyncio.create_task(live(make(settings, life), life, settings.http)),
        )
        self._stack.push_async_callback(self.stop, name)
        self.ports[f"ares-{name}"] = port

    async def stop(self, name: str) -> None:
        """Drain it, if it still runs. Raises what ended it."""
        life, task = self._running.pop(name, (None, None))
        if life is not None and task is not None:
            life.stop()
            await task


def repairer_settings(prefix: str, folder: Path, incumbent: Bundle) -> dict[str, Any]:
    """Settings under which repairs follow each other, their steps done by a team's own commands."""
    (folder / "replay").mkdir(parents=True)
    for name, rows in REPLAY:
        lines = [row.model_dump_json() for row in rows]
        (folder / "replay" / f"{name}.jsonl").write_text("\n".join(lines))
    steps = [sys.executable, "-m", "tests.support.repair_steps"]
    rules = {"cfr": "fall", "policy_harm": "fall", "rm_accuracy": "hold_high"}
    return {
        "work": str(folder / "work"),
        "group": f"{prefix}repairer",
        "policy_model": "chat",
        "incumbent": str(incumbent.path),
        "reference": str(incumbent.path / "model.onnx"),
        "replay": str(folder / "replay"),
        "recipe": {"policy": str(folder), "reward": str(folder)},
        "plan": {"min_train": 4, "max_share": 1.0},
        "gate": {"rules": [{"figure": name, "kind": kind} for name, kind in rules.items()]},
        "approval": "automatic",
        "min_failures": 10,
        "max_failures": 32,
        "poll_seconds": 0.2,
        "resample": 0,
        **{f"{step}_command": [*steps, step] for step in ("resample", "train", "export")},
    }
