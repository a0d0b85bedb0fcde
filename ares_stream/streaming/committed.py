"""The offsets that a group has committed, asked for so that an answer is never taken for less than
it says.

aiokafka asks with version 3 of OffsetFetch (API 9) and looks at the errors of partitions alone. An
error of the whole group (its coordinator has moved, or still loads what was committed) stands
beside them since version 2, with no partition: aiokafka takes that for a group that has committed
nothing, and whoever believed it would read everything again. And it gets the offset before a
transaction that is about to move it. Since version 7 (Kafka 2.5, KIP-447) a broker that is asked
for stable offsets names such a one unstable, and it is asked for again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any, Final

from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaError,
    NoError,
    NotCoordinatorForGroupError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest_v3
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition

NOTHING_COMMITTED: Final = -1
RETRY_SECONDS: Final = 0.1


class _Answer(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _Answer
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        ("group", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class _CommittedOffsets(Request[OffsetFetchRequest_v3 | _Question]):  # type: ignore[misc]
    API_KEY = 9

    def __init__(self, group: str, partitions: Collection[TopicPartition], *, stable: bool) -> None:
        self._group = group
        self._stable = stable
        self._numbers: defaultdict[str, list[int]] = defaultdict(list)
        for partition in partitions:
            self._numbers[partition.topic].append(partition.partition)

    def build(self, request_struct_class: type[RequestStruct]) -> RequestStruct:
        topics = list(self._numbers.items())
        if request_struct_class is _Question:
            return _Question(self._group, [(*topic, {}) for topic in topics], self._stable, {})
        return request_struct_class(self._group, topics)


async def committed_offsets(
    coordinator: Any, partitions: Collection[TopicPartition], *, stable: bool = False
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What the group of an aiokafka GroupCoordinator has committed of each partition; without those
    of which it has committed nothing.

    `stable` is for whoever goes on from the offset: where a transaction that moves it is open,
    an error is raised. Owners of a partition share a transactional id, and the start of a
    producer ends what the owner before left open; but a service that was given another
    `id_prefix` fences nobody, and a broker before 4.0 may know of a commit only after the
    producer's start was answered. Who only looks on takes what is committed.

    Raises KafkaError, a retriable one where the same question may be answered soon.
    """
    question = _CommittedOffsets(coordinator.group_id, partitions, stable=stable)
    answer = await coordinator._send_req(question)
    _look_at(answer.error_code, coordinator)
    found: dict[TopicPartition, OffsetAndMetadata] = {}
    for topic, numbers, *_ in answer.topics:
        # Version 7 has the epoch of the leader behind the offset, and tags at the end.
        for number, offset, *more in numbers:
            metadata, code = more[-3:-1] if len(more) > 2 else more
            if for_code(code) is UnknownTopicOrPartitionError:
                continue
            _look_at(code, coordinator)
            if offset != NOTHING_COMMITTED:
                found[TopicPartition(topic, number)] = OffsetAndMetadata(offset, metadata)
    return found


def _look_at(code: int, coordinator: Any) -> None:
    kind = for_code(code)
    if kind is NoError:
        return
    if kind is NotCoordinatorForGroupError:
        coordinator.coordinator_dead()
    raise kind(coordinator.group_id) if kind is GroupAuthorizationFailedError else kind()


async def stable_offset(
    coordinator: Any, partition: TopicPartition, refused: Callable[[KafkaError], None]
) -> OffsetAndMetadata | None:
    """The offset to go on from, once no transaction can move it any more; None where the group has
    committed nothing. Waits for as long as its caller does; `refused` is told why. Raises
    KafkaError."""
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            return (await committed_offsets(coordinator, [partition], stable=True)).get(partition)
        except KafkaError as error:
            if not error.retriable:
                raise
            refused(error)
        await asyncio.sleep(RETRY_SECONDS)
