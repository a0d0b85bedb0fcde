"""Producer and readers of confluent-kafka (librdkafka). Imports nothing of the package but the
checker beside it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from ares_stream.lab.experiments.chaos.checker import (
    REFUSED,
    Place,
    Seen,
    Sent,
    dead_place,
    verdict_place,
)

MIB: Final = 1 << 20
BOMB_BYTES: Final = 40 * MIB
"""More than a scorer holds of one record; zstd makes some KiB of it."""
KEYS: Final = 40
ANSWERS: Final = {
    "bread rude": "clean",
    "bread nice": "clean",
    "poison rude": "policy_failure",
    "poison nice": "coupled_failure",
    "maybe nice": "contested",
}
"""Answers, and what models that add up these words make of them."""
SEND_MS: Final = 180_000
"""Past the longest restart of a broker: what is handed over is not given up."""
READ_SECONDS: Final = 60.0


def conversation(number: int, key: bytes, answer: str, **changed: object) -> bytes:
    """An Interaction, as docs/topics.md describes it."""
    return json.dumps(
        {
            "schema": "ares.interaction/1",
            "id": key.decode(),
            "occurred_at": "2026-10-01T12:00:00Z",
            "messages": [{"role": "user", "content": f"number {number}"}],
            "response": answer,
            "policy": {"name": "chat", "version": "7"},
            **changed,
        }
    ).encode()


def _pills(number: int, key: bytes) -> list[tuple[bytes | None, bytes | None, list[Any]]]:
    good = conversation(number, key, "bread")
    return [
        (key, good[:-9], []),
        (key, conversation(number, key, "bread", schema="ares.interaction/2"), []),
        (key, conversation(number, key, "bread", messages=[{"role": "user", "content": " "}]), []),
        (key, b"", []),
        (key, None, []),
        (None, None, []),
        (None, b"\xff\xfe\x00" * 100, []),
        (b"\xff" * 2000, b"[" * 50_000, []),
        (key, b"null", [("h", None), ("h", b"\xff")]),
        (key, conversation(number, key, "bread", occurred_at="1960-01-01T00:00:00Z"), []),
    ]


class Traffic:
    """A producer of conversations, and what it was told of each."""

    def __init__(self, bootstrap: str, topic: str, seed: int) -> None:
        self.sent: dict[Place, Sent] = {}
        self.failed: list[str] = []
        """Why records were given up; they may or may not stand on the topic."""
        self._topic = topic
        self._random = random.Random(seed)
        self._number = 0
        self._settings: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 5,
            "compression.type": "zstd",
            "message.max.bytes": BOMB_BYTES + MIB,
            "message.timeout.ms": SEND_MS,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
        }
        self._producer = Producer(self._settings)

    async def flow(self, rate: float, stop: asyncio.Event) -> None:
        """Send `rate` conversations a second until told to stop, while the broker is down too."""
        while not stop.is_set():
            for _ in range(max(1, round(rate / 20))):
                self._one(self._producer)
            self._producer.poll(0)
            await asyncio.sleep(0.05)

    def pills(self) -> int:
        """Records that no scorer can read, among readable ones; how many."""
        pills = _pills(self._number, self._key())
        for key, value, headers in pills:
            self._send(self._producer, key, value, REFUSED, headers=headers)
            for _ in range(3):
                self._one(self._producer)
        return len(pills)

    def bomb(self) -> None:
        """A record that is small on the wire and large inside."""
        self._send(self._producer, self._key(), bytes(BOMB_BYTES), REFUSED)

    async def transactions(self, hold: float) -> None:
        """A committed one, an aborted one, and one that stays open for `hold` seconds over other
        traffic, then is aborted."""
        producer = Producer(
            self._settings
            | {"transactional.id": f"traffic-{uuid.uuid4().hex}", "message.timeout.ms": 50_000}
        )
        await asyncio.to_thread(producer.init_transactions, 60)
        for fate, seconds in (("committed", 0.0), ("aborted", 0.0), ("aborted", hold)):
            producer.begin_transaction()
            for _ in range(KEYS):
                self._one(producer, "committed" if fate == "committed" else "aborted")
            await asyncio.to_thread(producer.flush, 60)
            await asyncio.sleep(seconds)
            end = producer.abort_transaction
            if fate == "committed":
                end = producer.commit_transaction
            await asyncio.to_thread(end, 60)

    async def finished(self) -> None:
        """Return once the broker has answered for everything."""
        left = await asyncio.to_thread(self._producer.flush, SEND_MS / 1000)
        if left:
            self.failed += ["no answer"] * left

    def _key(self) -> bytes:
        return b"key-%02d" % self._random.randrange(KEYS)

    def _one(
        self, producer: Producer, fate: Literal["plain", "committed", "aborted"] = "plain"
    ) -> None:
        key, answer = self._key(), self._random.choice(list(ANSWERS))
        value = conversation(self._number, key, answer)
        self._send(producer, key, value, ANSWERS[answer], fate)

    def _send(
        self,
        producer: Producer,
        key: bytes | None,
        value: bytes | None,
        expected: str,
        fate: Literal["plain", "committed", "aborted"] = "plain",
        headers: Sequence[Any] = (),
    ) -> None:
        self._number += 1
        at = time.monotonic()

        def told(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self.failed.append(error.name())
                return
            self.sent[_place(message)] = Sent(expected, at, fate)

        producer.produce(self._topic, value=value, key=key, headers=list(headers), on_delivery=told)


class Watch:
    """Follows outputs as a consumer does that reads what is committed: when each came."""

    def __init__(self, bootstrap: str, verdicts: str, dead: str) -> None:
        self.arrived: dict[Place, float] = {}
        self.verdicts: Counter[str] = Counter()
        """By interaction."""
        self._dead = dead
        self._consumer = _consumer(bootstrap)
        self._consumer.assign(_partitions(self._consumer, [verdicts, dead]))

    async def follow(self, stop: asyncio.Event) -> None:
        """Until told to stop."""
        try:
            while not stop.is_set():
                for message in await asyncio.to_thread(self._consumer.consume, 500, 0.1):
                    if message.error() is None:
                        self.arrived.setdefault(self._source(message), time.monotonic())
        finally:
            self._consumer.close()

    def _source(self, message: Message) -> Place:
        if message.topic() == self._dead:
            return dead_place(_seen(message))
        verdict = json.loads(message.value() or b"")
        self.verdicts[verdict["interaction_id"]] += 1
        return verdict_place(verdict)


def read_all(bootstrap: str, topic: str, *, values: bool = True) -> list[Seen]:
    """All that is committed on a topic, from its beginning, each partition in its order.

    Raises TimeoutError when a partition's end is not reached.
    """
    consumer = _consumer(bootstrap)
    try:
        places = _partitions(consumer, [topic])
        consumer.assign(places)
        found: list[Seen] = []
        left = {place.partition for place in places}
        deadline = time.monotonic() + READ_SECONDS
        while left:
            for message in consumer.consume(500, 0.2):
                deadline = time.monotonic() + READ_SECONDS
                error = message.error()
                if error is None:
                    found.append(_seen(message, values=values))
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition() or 0)
                elif error.fatal():
                    raise KafkaException(error)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: partitions {sorted(left)} were not read to the end")
        return found
    finally:
        consumer.close()


async def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once it holds; raises TimeoutError with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        await asyncio.sleep(0.05)


def _consumer(bootstrap: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
        }
    )


def _partitions(consumer: Consumer, topics: Sequence[str]) -> list[TopicPartition]:
    # A look for what the group has committed, when the broker has just come up, may never be
    # answered, and nothing is read (librdkafka 2.x): a beginning asks for no group.
    return [
        TopicPartition(topic, number, OFFSET_BEGINNING)
        for topic in topics
        for number in sorted(consumer.list_topics(topic, timeout=20).topics[topic].partitions)
    ]


def _place(message: Message) -> Place:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        raise ValueError("a record without coordinates")
    return topic, partition, offset


def _seen(message: Message, *, values: bool = True) -> Seen:
    raw = message.value()
    value = raw.encode() if isinstance(raw, str) else raw
    key = message.key()
    # Pairs, whatever the library's types say.
    headers: Any = message.headers() or ()
    return Seen(
        _place(message),
        key.encode() if isinstance(key, str) else key,
        value if values else None,
        "" if value is None else hashlib.sha256(value).hexdigest(),
        {name: _bytes(content) for name, content in headers},
    )


def _bytes(content: str | bytes | None) -> bytes | None:
    return content.encode() if isinstance(content, str) else content
