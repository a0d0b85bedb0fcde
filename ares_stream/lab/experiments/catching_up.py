"""How fast the monitor catches up with verdicts that are written already."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.base import digest
from ares_stream.records.observation import read_observation
from ares_stream.records.topics import TopicSpec
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.records import OutboundRecord

_TOPIC = "verdicts"
_SLICES = ("locale", "product", "tier")


def _verdict(number: int, rng: random.Random) -> bytes:
    """A verdict of about 900 bytes with three attributes, as a scorer writes it."""
    failure = rng.choices(("clean", "coupled_failure", "policy_failure", "contested"),
                          (90, 3, 3, 4))[0]  # fmt: skip
    harm, quantile = rng.random(), rng.random()
    return (
        f'{{"schema":"ares.verdict/1","id":"{digest([number])[:32]}",'
        f'"interaction_id":"interaction-{number}","lane":"production",'
        f'"source":{{"topic":"interactions.production","partition":{number % 6},'
        f'"offset":{number},"timestamp_ms":1790000000000}},"occurred_at":"2026-10-01T12:00:00Z",'
        f'"policy":{{"name":"chat","version":"{number // 50_000}"}},'
        f'"attributes":{{"locale":"l{number % 20}","product":"p{number % 7}",'
        f'"tier":"t{number % 3}"}},"harm":{{"probability":{harm},"judges":{{"judge":{harm}}},'
        f'"disagreement":0.0}},"reward":{{"score":{quantile},"quantile":{quantile}}},'
        f'"scored_high":{{"above_quantile":true}},"failure_class":"{failure}",'
        f'"reasons":["harm_above_threshold","reward_at_or_above_quantile"],'
        f'"releases":{{"judge":"{"a" * 64}","reward":"{"b" * 64}"}},'
        f'"detection_policy":"{"c" * 64}"}}'
    ).encode()


def measure(count: int) -> dict[str, Any]:
    """Verdicts per second of processor time of one core: decoding and counting alone, and with
    reading them from an embedded broker."""
    rng = random.Random(15)
    raw = [_verdict(number, rng) for number in range(count)]
    ledger = Ledger(LedgerPolicy(slices=_SLICES))
    began = time.process_time()
    for number, item in enumerate(raw):
        seen = read_observation(item, "either")
        ledger.add(seen, 1_790_000_000_000 + number * 10, (0, number))
    counting = time.process_time() - began
    following, wall = asyncio.run(_follow(raw))
    return {
        "schema": "ares.bench-monitor/1",
        "verdicts": count,
        "bytes_per_verdict": sum(map(len, raw)) / count,
        "slices": sum(1 for _ in ledger.tallies()),
        "counting_per_second": count / counting,
        "following_per_second": count / following,
        "following_wall_per_second": count / wall,
    }


async def _follow(raw: list[bytes]) -> tuple[float, float]:
    """Processor seconds of this process, and seconds by the clock."""
    with EmbeddedBroker() as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        await create_topics(connection, [TopicSpec(_TOPIC, 3, 1, {})])
        async with Publisher(connection, publish_seconds=300.0) as publisher:
            for start in range(0, len(raw), 5_000):
                await publisher.publish(
                    [OutboundRecord(_TOPIC, str(start + place).encode(), item)
                     for place, item in enumerate(raw[start : start + 5_000])]
                )  # fmt: skip
        ledger, taken = Ledger(LedgerPolicy(slices=_SLICES)), 0
        async with Follower(connection, [_TOPIC], {}) as follower:
            began, wall = time.process_time(), time.monotonic()
            while taken < len(raw):
                for record in await follower.poll():
                    seen = read_observation(record.value or b"", "either")
                    place = (record.partition, record.offset)
                    ledger.add(seen, record.timestamp_ms, place)
                    taken += 1
            return time.process_time() - began, time.monotonic() - wall
