"""A second input topic, whose log is taken away under its readers. What was sent there is known by
its own id, since a topic that is made anew gives its offsets again. Imports nothing of the package
but what stands beside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from ares_stream.lab.experiments.chaos.clients import conversation, until

ANSWER_SECONDS: Final = 20.0
VERDICT_SECONDS: Final = 90.0
"""Past every time-out that a fault can run into."""
EACH: Final = 20
"""Records of every partition at once."""
LOG_FILES: Final = ("*.log", "*.index", "*.timeindex", "*.snapshot", "leader-epoch-checkpoint")


class Aside:
    """Sends to every partition of `topic`; `verdicts` counts what came out by interaction."""

    def __init__(
        self, bootstrap: str, topic: str, partitions: int, verdicts: Mapping[str, int]
    ) -> None:
        self.topic = topic
        self.deleted: set[str] = set()
        """What was taken from the log before anyone could read it."""
        self._partitions = partitions
        self._verdicts = verdicts
        self._ends: Counter[int] = Counter()
        self._sent: list[tuple[str, int, int]] = []
        self._bootstrap = bootstrap
        self._admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})

    def send(self, each: int = EACH) -> list[str]:
        """So many to every partition; their ids, once they are acknowledged."""
        self._await_leaders()
        # A producer that knew a topic before it was made anew takes its partitions for unknown.
        producer = Producer(
            {"bootstrap.servers": self._bootstrap, "acks": "all", "linger.ms": 5, "log_level": 0}
        )
        ids: list[str] = []
        failed: list[str] = []

        def told(error: KafkaError | None, message: Message) -> None:
            partition, offset, key = message.partition(), message.offset(), message.key()
            if error is not None or partition is None or offset is None or key is None:
                failed.append("not acknowledged" if error is None else error.name())
                return
            name = bytes(key).decode()
            self._ends[partition] = offset + 1
            self._sent.append((name, partition, offset))

        for _ in range(each):
            for partition in range(self._partitions):
                key = b"aside-%06d" % (len(self._sent) + len(ids))
                ids.append(key.decode())
                producer.produce(
                    self.topic,
                    value=conversation(0, key, "bread rude"),
                    key=key,
                    partition=partition,
                    on_delivery=told,
                )
        if producer.flush(ANSWER_SECONDS) or failed:
            raise TimeoutError(f"{self.topic}: not every record was taken: {failed[:1]}")
        return ids

    def _await_leaders(self) -> None:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            found = self._admin.list_topics(self.topic, timeout=ANSWER_SECONDS).topics[self.topic]
            led = sum(item.leader >= 0 for item in found.partitions.values())
            if led == self._partitions:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.topic}: {led} of {self._partitions} partitions are led")
            time.sleep(0.1)

    async def decided(self, ids: list[str]) -> None:
        """Return once each of them that was not deleted has a verdict."""
        wanted = set(ids) - self.deleted
        await until(
            lambda: wanted <= self._verdicts.keys(),
            VERDICT_SECONDS,
            f"{self.topic}: no verdict of some of {len(wanted)} records",
        )

    def delete_all_but(self, left: int) -> int:
        """Delete the oldest records of every partition up to its last `left`, as retention does;
        how many of those were never decided."""
        before = {number: self._ends[number] - left for number in range(self._partitions)}
        places = [TopicPartition(self.topic, number, end) for number, end in before.items()]
        for answer in self._admin.delete_records(places).values():
            answer.result(ANSWER_SECONDS)
        lost = {
            name
            for name, partition, offset in self._sent
            if offset < before[partition] and name not in self._verdicts
        }
        fresh = lost - self.deleted
        self.deleted |= fresh
        return len(fresh)

    def make_anew(self) -> int:
        """Delete the topic and make another of its name; the highest offset of the first."""
        for answer in self._admin.delete_topics([self.topic]).values():
            answer.result(ANSWER_SECONDS)
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            made = self._admin.create_topics([NewTopic(self.topic, self._partitions, 1)])
            try:
                made[self.topic].result(ANSWER_SECONDS)
            except Exception:  # The broker still deletes the first.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                break
        return self.begin_again()

    def begin_again(self) -> int:
        """Count offsets from the beginning; the highest before."""
        highest = max(self._ends.values())
        self._ends.clear()
        return highest

    def truncate(self, data: Path) -> None:
        """Take every record from the files of a broker that is down."""
        truncate(data, self.topic)

    def past_the_end(self) -> int:
        """How many offsets that were read are past the log's end, once the broker is back. (It
        begins at 0, or where retention had come to, if that was written down in time.)"""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "aside"})
        try:
            ends = Counter({number: self._end(consumer, number) for number in self._ends})
        finally:
            consumer.close()
        past = (self._ends - ends).total()
        self._ends = ends
        return past

    def _end(self, consumer: Consumer, partition: int) -> int:
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                place = TopicPartition(self.topic, partition)
                return int(consumer.get_watermark_offsets(place, ANSWER_SECONDS)[1])
            except KafkaException:  # A leader that has just come back may not know it yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def counts(self) -> dict[str, int]:
        """Of the records that were not deleted: those without a verdict, and verdicts too many."""
        kept = {name for name, _, _ in self._sent} - self.deleted
        return {
            "aside_inputs": len(self._sent),
            "aside_deleted_unread": len(self.deleted),
            "aside_lost": sum(self._verdicts.get(name, 0) == 0 for name in kept),
            "aside_again": sum(max(0, self._verdicts.get(name, 0) - 1) for name in kept),
        }


def truncate(data: Path, topic: str) -> None:
    """Take every record of a topic from the files of a broker that is down."""
    for folder in data.rglob(f"{topic}-*"):
        for pattern in LOG_FILES:
            for file in folder.glob(pattern):
                file.unlink()
