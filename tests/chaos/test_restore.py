"""Back up and restore as docs/kubernetes.md tells it: the cluster of Kafka is lost, and what comes
back is a copy of its disks from some time before. What was sent since is gone, and nothing else:
every record that is there has one verdict, and what was signed since is shown to be missing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from ares_stream.audit.notes import NoteSigner
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.topics import specs
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord
from tests.support.golden_month import Bundles, conversation
from tests.support.scorer_process import ScorerProcess
from tests.support.service_process import ROOT, MonitorProcess, NotaryProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(900)]

PREFIX = "ares."
SOURCE = f"{PREFIX}interactions.production"
SIGNER = NoteSigner.generate("example.com/ares")
SECONDS = 120.0


async def send(bootstrap: str, numbers: Sequence[int]) -> None:
    async with Publisher(KafkaConnection(bootstrap=bootstrap)) as publisher:
        await publisher.publish(
            [
                OutboundRecord(
                    SOURCE, b"%d" % number, json.dumps(conversation(number, "bread")).encode()
                )
                for number in numbers
            ]
        )


async def counted(bootstrap: str) -> tuple[set[tuple[int, int]], Counter[tuple[int, int]]]:
    """Places of the records that are there, and of what verdicts were made."""
    connection = KafkaConnection(bootstrap=bootstrap)
    records = {
        (item.partition, item.offset)
        async for item in read(connection, await snapshot(connection, [SOURCE]))
    }
    verdicts: Counter[tuple[int, int]] = Counter()
    async for item in read(connection, await snapshot(connection, [f"{PREFIX}verdicts"])):
        at = json.loads(item.value or b"{}")["source"]
        verdicts[at["partition"], at["offset"]] += 1
    return records, verdicts


async def reached(count: int, ask: Callable[[], Awaitable[int]]) -> None:
    """Return once an answer is so much; waits for as long as it grows."""
    answer, heard = -1, time.monotonic()
    while answer < count:
        before, answer = answer, await ask()
        if answer > before:
            heard = time.monotonic()
        assert time.monotonic() - heard < SECONDS, f"{answer} of {count}"
        await asyncio.sleep(0.3)


async def until_answered(bootstrap: str, count: int) -> None:
    async def answered() -> int:
        return len((await counted(bootstrap))[1])

    await reached(count, answered)


async def until_signed(bootstrap: str, key: str, count: int) -> None:
    """Return once so many verdicts have leaves under signed heads."""

    async def signed() -> int:
        _, said = await verified(bootstrap, key, "--topic", "verdicts")
        return sum(map(int, re.findall(r"verdicts \d+: (\d+) leaves", said)))

    await reached(count, signed)


async def verified(bootstrap: str, key: str, *words: str) -> tuple[int, str]:
    """Exit code and output of `ares audit verify`."""
    process = await asyncio.create_subprocess_exec(
        *(str(Path(sys.executable).with_name("ares")), "audit", "verify"),
        *("--bootstrap", bootstrap, "--key", key, *words),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


class Installation:
    """A scorer, a monitor and a notary on a broker."""

    def __init__(self, stack: ExitStack, bootstrap: str, folder: Path, bundles: Bundles) -> None:
        folder.mkdir()
        self.scorer = stack.enter_context(
            ScorerProcess(
                bootstrap,
                PREFIX,
                folder / "scorer",
                harm=bundles.judge,
                reward=bundles.rewards[0],
                inputs=[{"topic": SOURCE, "lane": "production"}],
            )
        )
        self.monitor = stack.enter_context(MonitorProcess(bootstrap, PREFIX, folder / "monitor"))
        self.notary = stack.enter_context(
            NotaryProcess(bootstrap, PREFIX, folder / "notary", [SIGNER])
        )

    async def stop(self) -> None:
        await self.scorer.drained()
        assert await asyncio.to_thread(self.monitor.stop) == 0
        assert await asyncio.to_thread(self.notary.stop) == 0


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


async def test_a_cluster_that_was_lost_and_restored_from_disks_of_before(
    tmp_path: Path, stack: ExitStack
) -> None:
    (tmp_path / "bundles").mkdir()
    bundles = Bundles.write(tmp_path / "bundles")
    key, heads = str(SIGNER.key), str(tmp_path / "heads")

    # Before the backup: 60 records, all answered and signed.
    broker = EmbeddedBroker(data_dir=tmp_path / "lost")
    with broker:
        await create_topics(
            KafkaConnection(bootstrap=broker.bootstrap), specs(PREFIX, partitions=2, replication=1)
        )
        first = Installation(stack, broker.bootstrap, tmp_path / "first", bundles)
        await send(broker.bootstrap, range(60))
        await until_answered(broker.bootstrap, 60)
        await until_signed(broker.bootstrap, key, 60)
        broker.kill()
        shutil.copytree(tmp_path / "lost", tmp_path / "backup")
        broker.restart()
        # Between the backup and the loss: 40 more, and an auditor keeps the heads.
        await send(broker.bootstrap, range(60, 100))
        await until_answered(broker.bootstrap, 100)
        await until_signed(broker.bootstrap, key, 100)
        await first.stop()
        code, said = await verified(broker.bootstrap, key, "--keep", heads)
        assert code == 0, said
    shutil.rmtree(tmp_path / "lost")

    # The restored cluster: the heads of the time between are what is left of it.
    with EmbeddedBroker(data_dir=tmp_path / "backup") as restored:
        code, said = await verified(restored.bootstrap, key, "--known", heads)
        assert code == 1
        assert said.count("unknown_head: the head of") == 2
        assert "2 differences" in said
        second = Installation(stack, restored.bootstrap, tmp_path / "second", bundles)
        await send(restored.bootstrap, range(200, 250))
        await until_answered(restored.bootstrap, 110)
        await until_signed(restored.bootstrap, key, 110)
        await second.stop()
        records, verdicts = await counted(restored.bootstrap)
        assert len(records) == 110
        assert verdicts == dict.fromkeys(records, 1)
        code, said = await verified(restored.bootstrap, key)
        assert code == 0, said
        code, said = await verified(restored.bootstrap, key, "--known", heads)
        assert code == 1
        assert "2 differences" in said


def mirrored(source: str, target: str) -> None:
    """Every committed record in its partition of another cluster, as mirrors copy: keys, values,
    headers and times are kept, offsets are new."""
    reader = Consumer(
        {
            "bootstrap.servers": source, "group.id": "mirror", "enable.auto.commit": False,
            "isolation.level": "read_committed", "enable.partition.eof": True,
        }
    )  # fmt: skip
    writer = Producer({"bootstrap.servers": target})
    topics = reader.list_topics(timeout=20).topics
    places = [
        TopicPartition(name, number, OFFSET_BEGINNING)
        for name, topic in topics.items()
        if name.startswith(PREFIX)
        for number in topic.partitions
    ]
    reader.assign(places)
    left = len(places)
    while left:
        message = reader.poll(SECONDS)
        assert message is not None
        if (error := message.error()) is not None:
            assert error.code() == KafkaError._PARTITION_EOF
            left -= 1
            continue
        writer.produce(
            message.topic() or "", message.value(), message.key(), message.partition() or 0,
            timestamp=message.timestamp()[1], headers=message.headers() or [],
        )  # fmt: skip
    writer.flush(SECONDS)
    reader.close()


async def test_a_mirror_gives_records_new_offsets_and_what_was_signed_of_them_holds_no_more(
    tmp_path: Path, stack: ExitStack
) -> None:
    (tmp_path / "bundles").mkdir()
    bundles = Bundles.write(tmp_path / "bundles")
    with EmbeddedBroker() as first, EmbeddedBroker() as second:
        wanted = specs(PREFIX, partitions=2, replication=1)
        for broker in (first, second):
            await create_topics(KafkaConnection(bootstrap=broker.bootstrap), wanted)
        services = Installation(stack, first.bootstrap, tmp_path / "first", bundles)
        # In several transactions, each of which takes an offset for its end.
        for number in range(0, 60, 20):
            await send(first.bootstrap, range(number, number + 20))
            await until_answered(first.bootstrap, number + 20)
            await until_signed(first.bootstrap, str(SIGNER.key), number + 20)
        await services.stop()
        code, said = await verified(first.bootstrap, str(SIGNER.key))
        assert code == 0, said
        await asyncio.to_thread(mirrored, first.bootstrap, second.bootstrap)
        records, verdicts = await counted(second.bootstrap)
        assert verdicts == dict.fromkeys(records, 1)
        code, said = await verified(second.bootstrap, str(SIGNER.key))
        assert code == 1
        assert "verdicts" in said
        assert "moved: holds what was signed for offset" in said
