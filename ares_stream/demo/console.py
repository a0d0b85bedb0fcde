"""The review console beside the demo: of its own topics, with one person who may do everything."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ares_stream.demo.contract import View
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.files import written_whole
from ares_stream.lab.streams import PREFIX, Stream
from ares_stream.processes.ports import free_port
from ares_stream.processes.service import service_process, until_ready
from ares_stream.streaming.connection import KafkaConnection

PERSON: Final = "you"


@asynccontextmanager
async def console_beside(
    port: int | None,
    connection: KafkaConnection,
    stream: Stream,
    policy: DetectionPolicy,
    view: View,
    scratch: Path,
) -> AsyncIterator[None]:
    """Serve it at `port` of loopback, 0 for any, and tell the view where; nothing for None."""
    if port is None:
        yield
        return
    token = secrets.token_urlsafe(12)
    tokens = scratch / "tokens.json"
    with written_whole(tokens) as out:
        os.fchmod(out.fileno(), 0o600)
        out.write(json.dumps({PERSON: hashlib.sha256(token.encode()).hexdigest()}).encode())
    pages, health = port or free_port(), free_port()
    console: dict[str, Any] = {"port": pages, "identity": {"tokens": str(tokens)}}
    if stream.victim is not None:
        from ares_stream.lab.victims.traffic import reference_interactions

        benign = scratch / "benign.jsonl"
        with written_whole(benign) as out:
            for item in reference_interactions(stream.victim):
                out.write(item.encode() + b"\n")
        console["reference"] = str(benign)
    settings = {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": health},
        "registry": {"root": str(scratch / "registry")},
        "repairer": {"work": str(scratch / "repairs")},
        "scorer": {
            "reward": str(stream.reward.absolute()),
            "detection": policy.model_dump(mode="json"),
        },
        "console": console,
    }
    async with service_process("console", settings, scratch) as service:
        await until_ready(service, health)
        view.invites(f"http://127.0.0.1:{pages}/login", token)
        yield
        await service.stop()
