"""What a reader that has no part in ares-stream sees: every record, and what became of it.

    python -m tests.cluster.count 127.0.0.1:9094

Reads with librdkafka, read_committed, every partition from its beginning to where it ends now.
Prints one JSON object; exits 1 where something is lost, doubled or foreign.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

STALL_SECONDS = 30.0
Place = tuple[int, int]


@dataclass(frozen=True)
class Count:
    """Records of one lane and their answers."""

    records: int
    verdicts: int
    dead_letters: int
    lost: int
    doubled: int
    foreign: int

    @property
    def holds(self) -> bool:
        """Whether each record has exactly one answer."""
        return not (self.lost or self.doubled or self.foreign)


def committed(bootstrap: str, topic: str) -> Iterator[Message]:
    """Every committed record of a topic, up to its end now (the last stable offset)."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "ares-count",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        known = consumer.list_topics(topic, timeout=20).topics[topic].partitions
        consumer.assign([TopicPartition(topic, part, OFFSET_BEGINNING) for part in known])
        unfinished, heard = set(known), time.monotonic()
        while unfinished:
            message = consumer.poll(0.2)
            if message is None:
                if time.monotonic() - heard > STALL_SECONDS:
                    raise TimeoutError(f"{topic}: nothing for {STALL_SECONDS:.0f} s")
                continue
            heard = time.monotonic()
            error = message.error()
            if error is None:
                yield message
            elif error.code() == KafkaError._PARTITION_EOF:
                unfinished.discard(message.partition())
            else:
                raise KafkaException(error)
    finally:
        consumer.close()


def places(bootstrap: str, topic: str) -> dict[Place, int]:
    """Partition and offset of every record, with its time in ms."""
    return {
        (message.partition() or 0, message.offset() or 0): message.timestamp()[1]
        for message in committed(bootstrap, topic)
    }


def answers(
    bootstrap: str, prefix: str, source: str
) -> tuple[list[tuple[Place, int]], list[Place]]:
    """Places that verdicts (with the verdict's time) and dead letters name."""
    verdicts: list[tuple[Place, int]] = []
    for message in committed(bootstrap, f"{prefix}verdicts"):
        at = json.loads(message.value() or b"{}")["source"]
        if at["topic"] == source:
            verdicts.append(((at["partition"], at["offset"]), message.timestamp()[1]))
    dead: list[Place] = []
    for message in committed(bootstrap, f"{prefix}deadletters"):
        headers = dict(message.headers() or [])
        if headers.get("__connect.errors.topic") == source.encode():
            dead.append(
                (
                    int(headers["__connect.errors.partition"] or 0),
                    int(headers["__connect.errors.offset"] or 0),
                )
            )
    return verdicts, dead


def count(sent: dict[Place, int], verdicts: list[tuple[Place, int]], dead: list[Place]) -> Count:
    """Pure."""
    seen = Counter([place for place, _ in verdicts] + dead)
    return Count(
        records=len(sent),
        verdicts=len(verdicts),
        dead_letters=len(dead),
        lost=sum(place not in seen for place in sent),
        doubled=sum(times - 1 for times in seen.values()),
        foreign=sum(place not in sent for place in seen),
    )


def main(bootstrap: str, prefix: str = "ares.", lane: str = "production") -> int:
    """See the module."""
    source = f"{prefix}interactions.{lane}"
    found = count(places(bootstrap, source), *answers(bootstrap, prefix, source))
    print(json.dumps(asdict(found)))
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
