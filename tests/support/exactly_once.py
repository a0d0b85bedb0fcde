"""What fault tests share: input, copiers in child processes, and the count at the end.

The count is taken from the topics by a reader that the processor has no part in. A topic only
grows, so what it shows at the end is all that any read_committed consumer ever saw.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

from aiokafka import AIOKafkaConsumer, TopicPartition

from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.support.copier import GROUP, POISON

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 3
END_SECONDS = 150.0


class Copier:
    """A copier in a process of its own."""

    def __init__(
        self, bootstrap: str, prefix: str, log: Path, *, instance: str = "", sabotage: str = ""
    ) -> None:
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.support.copier"),
                    *(bootstrap, prefix, instance, sabotage),
                ],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._log = log

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
        if isinstance(error, AssertionError):
            print(self._log.read_text(errors="replace")[-6000:])

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self, seconds: float = END_SECONDS) -> int:
        """Exit code, once it has ended."""
        return await asyncio.to_thread(self._process.wait, seconds)

    async def stopped(self, seconds: float = END_SECONDS) -> None:
        """Return once the process is stopped by SIGSTOP."""
        deadline = time.monotonic() + seconds
        stat = Path(f"/proc/{self._process.pid}/stat")  # memory, not a disk
        while stat.read_text().rsplit(")", 1)[1].split()[0] != "T":  # noqa: ASYNC240
            assert time.monotonic() < deadline, "the copier never reached the step"
            await asyncio.sleep(0.05)

    async def assigned(self, seconds: float = END_SECONDS) -> None:
        """Return once it was given a partition."""
        deadline = time.monotonic() + seconds
        while "assigned" not in self._log.read_text(errors="replace"):
            assert time.monotonic() < deadline, "the copier was given no partition"
            await asyncio.sleep(0.05)

    async def drained(self) -> None:
        """Stop it as Kubernetes does; it must end by itself, without an error."""
        self.send(signal.SIGTERM)
        code = await self.ended()
        assert code == 0, f"exit code {code}"


def mixed(prefix: str, count: int, *, start: int = 0) -> list[OutboundRecord]:
    """Records of 40 keys; every eleventh is poison, some with odd bytes."""
    return [
        OutboundRecord(
            f"{prefix}in",
            b"key-%d" % (number % 40),
            (POISON + b"\xff\x00" if number % 11 == 0 else b"") + b"%06d" % number,
            (("trace", b"%d" % number),),
        )
        for number in range(start, start + count)
    ]


async def create(bootstrap: str, prefix: str, *, replication: int = 1) -> None:
    """The three topics of a copier."""
    await create_topics(
        KafkaConnection(bootstrap=bootstrap),
        [TopicSpec(f"{prefix}{name}", PARTITIONS, replication) for name in ("in", "out", "dead")],
    )


async def publish(bootstrap: str, records: list[OutboundRecord]) -> None:
    async with Publisher(KafkaConnection(bootstrap=bootstrap)) as publisher:
        await publisher.publish(records)


async def committed(bootstrap: str, prefix: str) -> dict[int, int]:
    """The group's committed offset of every input partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=f"{prefix}{GROUP}", enable_auto_commit=False
    )
    await consumer.start()
    try:
        return {
            number: await consumer.committed(TopicPartition(f"{prefix}in", number)) or 0
            for number in range(PARTITIONS)
        }
    finally:
        await consumer.stop()


async def until_committed(
    bootstrap: str, prefix: str, records: int, *, seconds: float = 150.0
) -> None:
    """Return once the group has committed `records` in all."""
    deadline = time.monotonic() + seconds
    while (done := sum((await committed(bootstrap, prefix)).values())) < records:
        assert time.monotonic() < deadline, f"{done} of {records} committed after {seconds} s"
        await asyncio.sleep(0.2)


async def content(bootstrap: str, topic: str) -> list[InboundRecord]:
    connection = KafkaConnection(bootstrap=bootstrap)
    return [record async for record in read(connection, await snapshot(connection, [topic]))]


async def audit(bootstrap: str, prefix: str) -> None:
    """Count: what lies before the committed offsets came out exactly once, and nothing else."""
    inputs = await content(bootstrap, f"{prefix}in")
    outputs = await content(bootstrap, f"{prefix}out")
    dead = await content(bootstrap, f"{prefix}dead")
    offsets = await committed(bootstrap, prefix)
    done = [record for record in inputs if record.offset < offsets[record.partition]]

    def place(record: InboundRecord) -> tuple[int, int]:
        _, partition, offset = record.header_map["source"].decode().split(":")
        return int(partition), int(offset)

    def dead_place(record: InboundRecord) -> tuple[int, int]:
        headers = record.header_map
        return (
            int(headers["__connect.errors.partition"]),
            int(headers["__connect.errors.offset"]),
        )

    good = {
        (record.partition, record.offset): record
        for record in done
        if not (record.value or b"").startswith(POISON)
    }
    poison = {
        (record.partition, record.offset): record
        for record in done
        if (record.value or b"").startswith(POISON)
    }
    seen = Counter(map(place, outputs))
    assert not good.keys() - seen.keys(), "lost"
    assert not seen.keys() - good.keys(), "beyond the committed prefix, or from an abort"
    assert set(seen.values()) <= {1}, "doubled"
    for record in outputs:
        assert (record.key, record.value) == (good[place(record)].key, good[place(record)].value)

    assert Counter(map(dead_place, dead)) == Counter(dict.fromkeys(poison, 1))
    for record in dead:
        original = poison[dead_place(record)]
        assert (record.key, record.value) == (original.key, original.value)
        assert record.headers[: len(original.headers)] == original.headers

    by_key: dict[bytes | None, list[tuple[int, int]]] = defaultdict(list)
    for record in outputs:
        by_key[record.key].append(place(record))
    for places in by_key.values():
        assert places == sorted(places), "order of a key"
