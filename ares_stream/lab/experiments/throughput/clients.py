"""Sending conversations and waiting for their verdicts, by confluent-kafka: a client that takes
little of the cores which the contestants run on, and none of our code."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

STALL_SECONDS: Final = 60.0
"""Without a new verdict for this long a contestant has stopped."""
SEND_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.05
_NUMBER: Final = itertools.count()

Record = tuple[bytes, bytes]
"""Key and value."""


class Sender:
    """Sends records to one topic."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0, "acks": "all"}
        )

    def send(self, records: Sequence[Record]) -> None:
        """All of them at once; returns when the broker has them."""
        for key, value in records:
            while True:
                try:
                    self._producer.produce(self._topic, value, key)
                    break
                except BufferError:
                    self._producer.poll(_POLL_SECONDS)
        if self._producer.flush(SEND_SECONDS):
            raise RuntimeError(f"the broker did not take all of {self._topic}")

    def pace(self, records: Sequence[Record], rate: float) -> dict[bytes, float]:
        """`rate` records a second, whatever becomes of them; key to the moment (monotonic) at
        which it was due, so that a sender that is late lengthens the latency (no coordinated
        omission)."""
        due: dict[bytes, float] = {}
        began = time.monotonic()
        for number, (key, value) in enumerate(records):
            moment = due[key] = began + number / rate
            if (early := moment - time.monotonic()) > 0:
                time.sleep(early)
            self._producer.produce(self._topic, value, key)
            self._producer.poll(0)
        self._producer.flush(SEND_SECONDS)
        return due


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a verdict of this key was visible, on the monotonic clock."""

    key: bytes
    at: float


class Visible:
    """A read_committed reader of one topic from its beginning."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"visible-{next(_NUMBER)}",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "log_level": 0,
            }
        )
        metadata = self._consumer.list_topics(topic, timeout=SEND_SECONDS)
        numbers = metadata.topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, item, OFFSET_BEGINNING) for item in numbers])

    def wait(self, count: int, seconds: float = STALL_SECONDS) -> list[Arrival]:
        """The next so many verdicts. Raises TimeoutError when none came for `seconds`."""
        found: list[Arrival] = []
        deadline = time.monotonic() + seconds
        while len(found) < count:
            # `consume` would wait for as many as it is asked for, and the first would look late.
            first = self._consumer.poll(_POLL_SECONDS)
            messages = [] if first is None else [first]
            if messages and (rest := min(count - len(found), 1000) - 1):
                messages += self._consumer.consume(rest, 0)
            now = time.monotonic()
            if messages:
                deadline = now + seconds
                found += [Arrival(key, now) for key in _keys(messages)]
            elif now > deadline:
                raise TimeoutError(
                    f"{self._topic}: {len(found)} of {count} verdicts, none for {seconds:.0f} s"
                )
        return found

    def close(self) -> None:
        """Leave."""
        self._consumer.close()


def _keys(messages: Sequence[Message]) -> Iterator[bytes]:
    for message in messages:
        if (error := message.error()) is not None:
            raise KafkaException(error)
        key = message.key()
        yield key if isinstance(key, bytes) else b""
