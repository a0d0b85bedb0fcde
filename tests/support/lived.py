"""A stretch of traffic on a real broker that the scorer's own handler has decided, and its replay:
what happens to a topic meanwhile is the test's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from ares_stream.audit.ranges import TopicReader
from ares_stream.audit.replay.models import MadeWith, Resources
from ares_stream.audit.replay.report import Circumstances, report
from ares_stream.audit.replay.run import Progress, run_replay
from ares_stream.audit.replay.selecting import Names, select
from ares_stream.audit.replay.spec import ReplaySpec, Selection
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.topics import TopicSpec
from ares_stream.scoring.handler import Input, Outputs, ScoringHandler
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.deadletters import dead_letter
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import ids_of, read, snapshot
from ares_stream.streaming.records import OutboundRecord, Rejection
from tests.support.golden_month import Bundles, conversation

POLICY = DetectionPolicy()
PARTITIONS = 2
LARGE = {"max.message.bytes": str(16 << 20)}
DEADLINE = 30.0


@dataclass(frozen=True)
class Lived:
    """Names of one test's topics, and the models."""

    connection: KafkaConnection
    prefix: str
    bundles: Bundles
    folder: Path

    @property
    def production(self) -> str:
        return f"{self.prefix}production"

    @property
    def deadletters(self) -> str:
        return f"{self.prefix}deadletters"

    @property
    def outputs(self) -> Outputs:
        return Outputs(*(f"{self.prefix}{name}" for name in ("verdicts", "repair", "review")))

    @property
    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.production, "production"),)

    def record(self, number: int, answer: str = "bread nice", **changed: Any) -> OutboundRecord:
        """An interaction to publish."""
        value = json.dumps(conversation(number, answer, **changed)).encode()
        return OutboundRecord(self.production, f"key-{number % 7}".encode(), value)

    async def create(self, **config: str) -> None:
        """Every topic; `config` is that of the input."""
        outputs = (*self.outputs.all, self.deadletters)
        specs = [TopicSpec(name, PARTITIONS, 1, LARGE) for name in outputs]
        named = {key.replace("_", "."): value for key, value in config.items()}
        specs.append(TopicSpec(self.production, PARTITIONS, 1, LARGE | named))
        await create_topics(self.connection, specs)

    async def publish(self, records: Sequence[OutboundRecord]) -> None:
        """To any topic."""
        async with Publisher(self.connection) as publisher:
            await publisher.publish(list(records))

    async def live(self) -> int:
        """Decide on what the input holds, and publish that; the number of records."""
        panel = Panel.open(
            [self.bundles.judge], self.bundles.rewards[0], ScoringConfig(threads=1)
        )  # fmt: skip
        handler = ScoringHandler(
            panel, inputs=self.inputs, outputs=self.outputs, policy=POLICY,
            limits=DecodingLimits(), review_sample=0.1,
        )  # fmt: skip
        ranges = await snapshot(self.connection, [self.production])
        records = [record async for record in read(self.connection, ranges)]
        made: list[OutboundRecord] = []
        for record, outcome in zip(records, await handler.handle(records), strict=True):
            if isinstance(outcome, Rejection):
                made.append(
                    dead_letter(record, outcome, self.deadletters, service="scorer", failed_at_ms=1)
                )
            else:
                made += outcome
        await panel.aclose()
        await self.publish(made)
        return len(records)

    @property
    def spec(self) -> ReplaySpec:
        judge, reward = self.bundles.judge, self.bundles.rewards[0]
        return ReplaySpec(
            mode="proof", source=self.connection, inputs=self.inputs, outputs=self.outputs,
            deadletters=self.deadletters, limits=DecodingLimits(), block=64,
            resources=Resources(
                policies=(POLICY,), bundles=(str(judge.path), str(reward.path)),
                config=ScoringConfig(threads=1),
            ),
            configured=MadeWith(
                (("judge", judge.digest),), ("reward", reward.digest), POLICY.digest
            ),
        )  # fmt: skip

    async def choose(self, **chosen: Any) -> Selection:
        """Ranges, fixed now."""
        outputs = (*self.outputs.all, self.deadletters)
        names = Names((self.production,), outputs, self.outputs.verdicts, f"{self.prefix}repairs")
        ids = await ids_of(self.connection, [self.production, *outputs])
        selection = await select(TopicReader(self.connection), names, **chosen)
        return replace(selection, topic_ids=ids)

    async def replay(
        self,
        selection: Selection | None = None,
        progress: Progress = lambda stage, count: None,
        work: str | None = None,
    ) -> dict[str, Any]:
        """The report of a replay, by default of all."""
        selection = selection or await self.choose()
        folder = self.folder / (work or f"work-{len(list(self.folder.iterdir()))}")
        done = await asyncio.to_thread(
            run_replay, self.spec, selection, folder, progress=progress
        )  # fmt: skip
        now = datetime(2026, 11, 1, tzinfo=UTC)
        return report(self.spec, done, Circumstances(now, now, 1, (0, 1), {}))

    async def delete_records(self, topic: str, before: int) -> None:
        """Of every partition those before an offset, as retention does."""
        async with self.admin() as client:
            await client.delete_records(
                {
                    TopicPartition(topic, number): RecordsToDelete(before_offset=before)
                    for number in range(PARTITIONS)
                }
            )

    async def delete(self, topic: str) -> None:
        """Return when the topic is gone."""
        async with self.admin() as client:
            await client.delete_topics([topic])
            async with asyncio.timeout(DEADLINE):
                while topic in await client.list_topics():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    async def make_anew(self, topic: str) -> None:
        """Another topic of the name, with as many records and more."""
        ranges = await snapshot(self.connection, [topic])
        kept = [record async for record in read(self.connection, ranges)]
        await self.delete(topic)
        async with asyncio.timeout(DEADLINE):
            spec = TopicSpec(topic, PARTITIONS, 1)
            while not await create_topics(self.connection, [spec]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await self.publish(
            [OutboundRecord(topic, item.key, item.value, item.headers) for item in kept * 2]
        )

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AIOKafkaAdminClient]:
        client = AIOKafkaAdminClient(bootstrap_servers=self.connection.bootstrap)
        await client.start()
        try:
            yield client
        finally:
            await client.close()


def once(stage: str, action: Callable[[], Any]) -> Progress:
    """What a replay is told to do when it first comes to a stage: `action` gives a coroutine."""
    done: list[str] = []

    def progress(told: str, _: int) -> None:
        if told == stage and not done:
            done.append(told)
            asyncio.run(action())

    return progress
