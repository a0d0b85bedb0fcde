"""A repairer that kills itself right after a step, for tests of what the next start finishes.

python -m tests.support.killed_repairer SETTINGS STEP
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ares_stream.models.registry import Registry
from ares_stream.repair import pipeline
from ares_stream.repair.pipeline import Pipeline
from ares_stream.services import repairer
from ares_stream.services.settings import load_settings
from ares_stream.streaming import queue
from tests.support.live_services import run_repairer

STEPS: Final[dict[str, tuple[Any, str]]] = {
    "asked again": (Pipeline, "ask_again"),
    "gated": (pipeline, "decide"),
    "proposed": (Registry, "propose"),
    "approved": (Registry, "approve"),
    "reported": (repairer.Repairer, "_publish"),
    "committed": (repairer.Repairer, "_commit"),
}
"""In the order in which a repair takes them."""


def kill_after(owner: Any, name: str) -> None:
    """Let the step be done; then nothing more is."""
    original: Callable[..., Any] = getattr(owner, name)

    def done(*arguments: Any, **more: Any) -> Any:
        result = original(*arguments, **more)
        if asyncio.iscoroutine(result):
            return _awaited(result)
        os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, done)


async def _awaited(result: Any) -> Any:
    await result
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    # The least that a broker allows: a test need not wait half a minute for a dead member.
    queue.SESSION_TIMEOUT_MS = 6_000  # type: ignore[misc]
    kill_after(*STEPS[sys.argv[2]])
    asyncio.run(run_repairer(load_settings(Path(sys.argv[1]))))
