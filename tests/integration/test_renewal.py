"""Certificates exchanged under services that run: new files, a broker that trusts nothing old."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from ares_stream.errors import BrokerError, LoginError
from ares_stream.lab.word_bundles import write_judge, write_reward
from ares_stream.records import topics
from ares_stream.records.topics import specs, topic_name
from ares_stream.services import renewals
from ares_stream.services.scorer import Scorer
from ares_stream.streaming.admin import create_topics, describe_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.secured import SecuredBroker, certificates
from tests.support.served import Served

pytestmark = pytest.mark.kafka

SECONDS = 90.0
FILES = ("ca.pem", "client.pem", "client.key")


@dataclass
class Cluster:
    """A broker with its folder, and the folder that its clients read."""

    broker: SecuredBroker
    folder: Path
    ours: Path

    def client(self, folder: Path | None = None) -> KafkaConnection:
        used = folder or self.ours
        return KafkaConnection(
            bootstrap=self.broker.tls,
            protocol="SSL",
            ca_file=used / "ca.pem",
            certificate_file=used / "client.pem",
            key_file=used / "client.key",
        )

    def hand_out(self, *names: str) -> None:
        """Write what the broker's folder holds into the clients'."""
        for name in names:
            shutil.copy(self.folder / name, self.ours / name)

    async def restart(self) -> None:
        """With the certificates that its folder holds now."""
        self.broker.kill()
        self.broker.write_keystore()
        await asyncio.to_thread(self.broker.restart)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    folder, ours = tmp_path / "broker", tmp_path / "ours"
    folder.mkdir()
    ours.mkdir()
    with SecuredBroker(folder) as broker:
        found = Cluster(broker, folder, ours)
        found.hand_out(*FILES)
        yield found


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.1)


async def patiently(work: Callable[[], Awaitable[object]]) -> None:
    """As services do: a broker that is away is waited for."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                await work()
                return
            except BrokerError:
                await asyncio.sleep(0.2)


def conversation(topic: str, number: int) -> OutboundRecord:
    value = {
        "schema": "ares.interaction/1",
        "id": f"i-{number}",
        "occurred_at": datetime.now(UTC).isoformat(),
        "messages": [{"role": "user", "content": f"question {number}"}],
        "response": "bread nice",
        "policy": {"name": "chat", "version": "1"},
    }
    return OutboundRecord(topic, b"%d" % number, json.dumps(value).encode())


async def test_a_scorer_goes_on_while_certificates_and_authority_are_exchanged(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewals, "LOOK_SECONDS", 0.1)
    plain = KafkaConnection(bootstrap=cluster.broker.bootstrap)
    source, target = (topic_name("ares.", name) for name in (topics.PRODUCTION, topics.VERDICTS))
    await create_topics(plain, specs("ares.", partitions=2, replication=1))
    judge, reward = write_judge(tmp_path / "judge"), write_reward(tmp_path / "reward")
    sent = 0

    async def send(count: int) -> None:
        nonlocal sent
        records = [conversation(source, sent + number) for number in range(count)]
        async with Publisher(plain) as publisher:
            await publisher.publish(records)
        sent += count

    async def scored() -> bool:
        ranges = await snapshot(plain, [target])
        places = [record.key async for record in read(plain, ranges)]
        assert len(places) == len(set(places)), "a record was scored twice"
        return len(places) == sent

    async with AsyncExitStack() as stack:
        served = Served(stack, {"kafka": cluster.client().model_dump(), "patience_seconds": 60.0})
        models = {"harm": [str(judge.path)], "reward": str(reward.path)}
        await served.start("scorer", Scorer, scorer=models)
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{served.ports['ares-scorer']}", trust_env=False
            )
        )

        async def shown(path: str, text: str) -> bool:
            try:
                answer = await http.get(path)
            except httpx.TransportError:
                return False
            return text in answer.text

        await send(8)
        await until(scored)

        # Another authority, and at first one half of the pair alone.
        shutil.copytree(cluster.ours, tmp_path / "before")
        certificates(cluster.folder)
        cluster.hand_out("client.pem")
        await until(lambda: shown("/readyz", "key values mismatch; what was read before stays"))
        refused = 'ares_file_refused{setting="kafka.certificate_file"}'
        assert await shown("/metrics", f"{refused} 1.0")
        await until(lambda: shown("/readyz", "ready\n"))
        await send(8)
        await until(scored)
        cluster.hand_out("client.key", "ca.pem")
        await until(lambda: shown("/metrics", f"{refused} 0.0"))

        await cluster.restart()
        with pytest.raises(LoginError, match=r"kafka\.ca_file: .* is not trusted"):
            await describe_topics(cluster.client(tmp_path / "before"), [source])
        await send(8)
        await until(scored)
        # A session that a lost connection ended may still be on its way back.
        await until(lambda: shown("/readyz", "ready\n"))


async def append(journal: Journal, connection: KafkaConnection) -> None:
    records = [OutboundRecord("out", None, b"2")]
    try:
        await journal.append(records)
    except BrokerError:
        # The outcome is unknown: a journal is entered again, as its contract says.
        async with Journal(connection, "journal") as again:
            await again.append(records)


async def test_each_kind_of_client_outlives_an_exchange_of_certificates(cluster: Cluster) -> None:
    plain = KafkaConnection(bootstrap=cluster.broker.bootstrap)
    names = [topics.TopicSpec(name, 1, 1) for name in ("in", "out")]
    await create_topics(plain, names)
    connection = cluster.client()
    queue = Queue(connection, "in", "group")
    await queue.start()
    async with (
        Publisher(connection) as publisher,
        Journal(connection, "journal") as journal,
        Follower(connection, ["in"], {}) as follower,
    ):
        await publisher.publish([OutboundRecord("in", None, b"1")])
        await journal.append([OutboundRecord("out", None, b"1")])
        assert [record.value for record in await follower.poll()] == [b"1"]

        certificates(cluster.folder)
        cluster.hand_out(*FILES)
        await cluster.restart()

        await patiently(lambda: publisher.publish([OutboundRecord("in", None, b"2")]))
        await patiently(lambda: append(journal, connection))
        await patiently(lambda: describe_topics(connection, ["in"]))
        await patiently(lambda: snapshot(connection, ["in"]))

        async def followed() -> bool:
            try:
                return b"2" in [record.value for record in await follower.poll()]
            except BrokerError:
                return False

        async def waiting() -> bool:
            try:
                # Whoever publishes again after an unknown outcome may have written it twice.
                return [item.stable >= 2 for item in await queue.waiting()] == [True]
            except BrokerError:
                return False

        await until(followed)
        await until(waiting)
    await queue.stop()
