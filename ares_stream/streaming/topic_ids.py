"""Which topics are there now, and which one a name stands for: the id that a broker gives each
topic it makes.

A topic that is deleted and made anew keeps its name, and begins its offsets again: an offset of the
old one names another record of the new one. aiokafka asks in a version of the protocol that has no
ids (Metadata, API 3, before version 10; brokers have it since Kafka 2.8).
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)
from aiokafka.structs import TopicPartition

ANSWER_SECONDS: Final = 8.0
NEXT_SECONDS: Final = 3.0
"""After which the next broker is asked, where there is one."""
NO_LEADER: Final = -1
_NONE: Final = uuid.UUID(int=0)


class _Uuid(AbstractType[uuid.UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replica_nodes", CompactArray(Int32)),
                        ("isr_nodes", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _Answer
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicIds(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_Question]) -> _Question:
        return request_struct_class([(_NONE, name, {}) for name in self._topics], False, False, {})


@dataclass(frozen=True, slots=True)
class KnownTopics:
    """What a broker says of topics: the id and the number of partitions of each that is there, the
    names of which it knows none, and the partitions that have no leader, since no broker that holds
    them is up. All empty from a broker that gives no ids."""

    ids: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, int] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    leaderless: tuple[TopicPartition, ...] = ()


async def known_topics(client: AIOKafkaClient, topics: Collection[str]) -> KnownTopics:
    """What brokers say of these topics now; of none where none is named. One that is down is not
    waited for, and a topic that one does not know is asked of the others: who comes back hears
    late of what is new.

    Raises KafkaError or TimeoutError where no broker answers.
    """
    found: dict[str, Any] = {}
    failure: Exception = KafkaError("no broker is known")
    nodes = nodes_of(client)
    while nodes:
        wanted = [name for name in topics if name not in found or found[name][0]]
        if not wanted:
            break
        try:
            node = nodes.pop()
            async with asyncio.timeout(NEXT_SECONDS if nodes else ANSWER_SECONDS):
                answer: Any = await client.send(node, _TopicIds(wanted))
        except NotImplementedError:
            return KnownTopics()
        except (KafkaError, TimeoutError) as error:
            failure = error
        else:
            # Code and name come first.
            found |= {item[1]: item for item in answer.topics}
    if topics and not found:
        raise failure
    there = {name: item for name, item in found.items() if not item[0]}
    absent = [n for n, item in found.items() if item[0] == UnknownTopicOrPartitionError.errno]
    return KnownTopics(
        {name: str(item[2]) for name, item in there.items() if item[2].int},
        {name: len(item[4]) for name, item in there.items()},
        tuple(sorted(absent)),
        tuple(
            sorted(
                TopicPartition(name, number)
                for name, item in there.items()
                for _, number, leader, *_ in item[4]
                if leader == NO_LEADER
            )
        ),
    )


def nodes_of(client: AIOKafkaClient) -> list[int]:
    """The brokers that a client knows, each once, in any order."""
    nodes = [int(node.nodeId) for node in client.cluster.brokers()]
    random.shuffle(nodes)
    return nodes
