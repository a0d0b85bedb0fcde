"""How services end whose Kafka answers nothing, or takes nothing: at once when they are stopped,
and by themselves when their patience ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ares_stream.audit.notes import NoteSigner
from ares_stream.errors import BrokerError
from ares_stream.lab.experiments.chaos.proxy import Proxy
from ares_stream.records import topics
from ares_stream.records.topics import specs, topic_name
from ares_stream.records.verdict import FailureClass
from ares_stream.services.console import ConsoleService
from ares_stream.services.lifecycle import Life, Service, live
from ares_stream.services.monitor import MonitorService
from ares_stream.services.notary import NotaryService
from ares_stream.services.settings import Settings
from ares_stream.streaming import admin
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord
from tests.support.notarised import NAME
from tests.support.sessions import rerouted
from tests.support.verdicts import verdict

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

Make = Callable[[Settings, Life], Service]
DEFAULTS = admin.count_partitions.__kwdefaults__ or {}
PRODUCE = 0
"""Kafka's number of the request that writes."""
PATIENCE_SECONDS = 3.0


def settings_of(bootstrap: str, prefix: str, folder: Path) -> Settings:
    key = folder / "key.pem"
    key.write_bytes(NoteSigner.generate(NAME).pem())
    sections: dict[str, Any] = {
        "monitor": {"group": f"{prefix}monitor", "publish_seconds": 0.2},
        "notary": {
            "group": f"{prefix}notary",
            "name": NAME,
            "keys": [str(key)],
            "checkpoint_seconds": 0.1,
        },
        "console": {"port": 0, "identity": {"header": {}}},
    }
    return Settings.model_validate(
        {
            "kafka": {"bootstrap": bootstrap},
            "topic_prefix": prefix,
            "http": {"port": 0},
            "patience_seconds": PATIENCE_SECONDS,
            **sections,
        }
    )


@asynccontextmanager
async def proxied(bootstrap: str) -> AsyncIterator[Proxy]:
    """A port that passes everything on until it is told otherwise."""
    host, port = bootstrap.split(":")
    async with Proxy(host, int(port)) as proxy:
        yield proxy


@pytest.mark.parametrize("make", [MonitorService, NotaryService, ConsoleService])
async def test_a_service_that_kafka_does_not_answer_ends_at_once_when_it_is_stopped(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    """It waited for as long as a question may take, beyond what some orchestrators wait."""
    for_ever = 600.0
    monkeypatch.setattr("ares_stream.streaming.connection.REQUEST_TIMEOUT_MS", int(1000 * for_ever))
    monkeypatch.setitem(DEFAULTS, "seconds", for_ever)
    monkeypatch.setattr("ares_stream.streaming.reader.STALL_SECONDS", for_ever)
    async with proxied(kafka) as proxy:
        proxy.deaf = True
        settings = settings_of(f"127.0.0.1:{proxy.port}", prefix, tmp_path)
        life = Life("made", settle_seconds=for_ever)
        running = asyncio.create_task(live(make(settings, life), life, settings.http))
        while not proxy.connections:  # noqa: ASYNC110 - what is waited for comes by a socket
            await asyncio.sleep(0.02)
        life.stop()
        async with asyncio.timeout(150):
            await running


@pytest.mark.parametrize("make", [MonitorService, NotaryService])
async def test_a_leader_that_can_write_nothing_is_not_ready_and_ends_with_its_patience(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Make
) -> None:
    """It began anew again and again, and each time the moment before the group had told it what it
    owns counted as progress: ready for ever, with nothing written."""
    monkeypatch.setattr("ares_stream.streaming.journal.TRANSACTION_SECONDS", 1.0)
    monkeypatch.setattr("ares_stream.streaming.journal.ABORT_SECONDS", 0.5)
    monkeypatch.setattr("ares_stream.streaming.publisher.END_SECONDS", 0.5)
    connection = KafkaConnection(bootstrap=kafka)
    await create_topics(connection, specs(prefix, partitions=1, replication=1))
    item = verdict(1, FailureClass.CLEAN)
    async with Publisher(connection) as publisher:
        topic = topic_name(prefix, topics.VERDICTS)
        await publisher.publish([OutboundRecord(topic, b"1", item.encode())])
    said: list[str | None] = []
    async with proxied(kafka) as proxy:
        with rerouted(kafka, proxy):
            proxy.mute(PRODUCE)
            settings = settings_of(f"127.0.0.1:{proxy.port}", prefix, tmp_path)
            life = Life("made")
            service = make(settings, life)
            running = asyncio.create_task(live(service, life, settings.http))
            while not running.done():
                said.append(service.missing())
                await asyncio.sleep(0.05)
            with pytest.raises(BrokerError, match="no progress for 3 s") as ended:
                await running
    assert ended.value.exit_code == 3
    failed = next(place for place, text in enumerate(said) if "no progress" in (text or ""))
    assert None not in said[failed:]
