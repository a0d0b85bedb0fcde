"""Transactions of one transactional id: Kafka's requests in their order.

aiokafka's producer keeps a task, a buffer, a timer and connections of its own for each
transactional id, and several futures for each batch; a session has an id for each partition.
Here a transaction is a coroutine on a client that others use too. Protocol: KIP-98; the order of
requests is that of Kafka's own producer.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Container, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    BrokerResponseError,
    ConcurrentTransactions,
    CoordinatorNotAvailableError,
    DuplicateSequenceNumber,
    GroupAuthorizationFailedError,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NoError,
    NotCoordinatorError,
    OperationNotAttempted,
    ProducerFenced,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    for_code,
)
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
    TxnOffsetCommitRequest,
)

from ares_stream.streaming.connection import REQUEST_TIMEOUT_MS
from ares_stream.streaming.faults import said, without_leader
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.sending import Batch, Unsent, batches_of
from ares_stream.streaming.topic_ids import NO_LEADER

RETRY_SECONDS: Final = 0.1
"""A coordinator or a leader moves within some of these."""
MARKERS_SECONDS: Final = 0.02
"""The markers of the transaction before are still being written."""
ALL_REPLICAS: Final = -1
COMMIT: Final = True
MAX_SEQUENCE: Final = 1 << 31

_MOVED = (CoordinatorNotAvailableError, NotCoordinatorError)
_NO_ANSWER = (KafkaConnectionError, RequestTimedOutError)
"""The broker may have done what it was asked, or may do so yet."""

T = TypeVar("T")
U = TypeVar("U")
Check: TypeAlias = Callable[[Any], None]
"""Raises what an answer says."""


class TransactionalProducer:
    """One transactional id on a client that others use as well.

        await producer.start()
        await producer.begin(records, group)
        unsent = await producer.write(offsets)
        await producer.commit()

    Each method asks again until it is answered: the caller sets the deadline. After an error
    nothing more may be asked of this producer: the next `start`, of this id by anybody, settles
    what it left open. Raises ProducerFenced once somebody else has started, KafkaError besides;
    what the broker forbids names the topic, partition, group or id.
    """

    def __init__(
        self, client: AIOKafkaClient, name: str, *, timeout_ms: int, batch_bytes: int
    ) -> None:
        self._client = client
        self._name = name
        self._timeout_ms = timeout_ms
        self._batch_bytes = batch_bytes
        self._id = -1
        self._epoch = -1
        self._sequences: dict[TopicPartition, int] = {}
        self._coordinators: dict[int, int] = {}
        self._group = ""
        self._batches: dict[TopicPartition, list[Batch]] = {}
        self._unanswered = False
        self._waits_for = ""

    @property
    def client(self) -> AIOKafkaClient:
        """Whose connections it uses."""
        return self._client

    @property
    def lacks_answers(self) -> bool:
        """Whether a request was lost on its way or back. The broker may still do what it was asked,
        in a later transaction of the same epoch (KAFKA-17754, KAFKA-14402): start another."""
        return self._unanswered

    @property
    def waits_for(self) -> str:
        """What is asked, and why it is asked again; "" while nothing is asked again."""
        return self._waits_for

    async def start(self) -> None:
        """Take the name: end what its last owner left open, and refuse whatever that one still
        asks."""
        request = InitProducerIdRequest(self._name, self._timeout_ms)

        def started(response: Any) -> None:
            self._raise_for(response.error_code)
            self._id, self._epoch = response.producer_id, response.producer_epoch

        await self._ask_about_id(request, started)
        self._unanswered = False

    async def begin(
        self, records: Sequence[OutboundRecord], group: str, *, alone: Container[int] = frozenset()
    ) -> None:
        """Begin a transaction that writes records and offsets of a group. The order of a
        partition's records is kept; those at the places `alone` share no batch."""
        topics = {record.topic for record in records}
        counts = {topic: len(await self._client._wait_on_metadata(topic)) for topic in topics}
        self._batches = batches_of(records, counts, size=self._batch_bytes, alone=alone)
        self._group = group
        await _together(self._add_partitions(), self._add_group())

    async def write(
        self, offsets: Mapping[TopicPartition, tuple[int, str]]
    ) -> Mapping[int, Unsent]:
        """Write the records, and the group's offsets, each with its metadata. Returns what became
        of the records that were not written, by their place: a transaction that lacks one must not
        be committed."""
        # One after the other: a broker asks the coordinator whether each of the two belongs to the
        # transaction, and of two questions of one id that it has at a time it refuses the first
        # (KIP-890), which costs a pause.
        refused = await self._refused()
        if not refused:
            await self._write_offsets(offsets)
        return {
            place: Unsent(error, len(batch.places) > 1)
            for batch, error in refused
            for place in batch.places
        }

    async def commit(self) -> None:
        """End the transaction. After an error its outcome is not known."""
        request = EndTxnRequest(self._name, self._id, self._epoch, COMMIT)
        await self._ask_about_id(
            request, lambda response: self._raise_for(response.error_code), again=False
        )
        self._batches = {}

    async def _add_group(self) -> None:
        request = AddOffsetsToTxnRequest(self._name, self._id, self._epoch, self._group)
        await self._ask_about_id(request, lambda response: self._raise_for(response.error_code))

    async def _write_offsets(self, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        of_topics: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        for partition, (offset, metadata) in offsets.items():
            of_topics[partition.topic].append((partition.partition, offset, metadata))
        request = TxnOffsetCommitRequest(
            self._name, self._group, self._id, self._epoch, list(of_topics.items())
        )

        def answered(response: Any) -> None:
            for topic, number, code in _each(response):
                self._raise_for(code, TopicPartition(topic, number))

        await self._ask(CoordinationType.GROUP, self._group, request, answered)

    async def _add_partitions(self) -> None:
        if not self._batches:
            return
        of_topics: dict[str, list[int]] = defaultdict(list)
        for partition in self._batches:
            of_topics[partition.topic].append(partition.partition)
        request = AddPartitionsToTxnRequest(
            self._name, self._id, self._epoch, list(of_topics.items())
        )

        def answered(response: Any) -> None:
            answers = list(_each(response))
            forbidden = {
                topic
                for topic, _, code in answers
                if for_code(code) is TopicAuthorizationFailedError
            }
            if forbidden:
                raise TopicAuthorizationFailedError(forbidden)
            # One that is refused has the others not attempted.
            codes = [code for *_, code in answers if for_code(code) is not OperationNotAttempted]
            for code in codes:
                self._raise_for(code)
            if len(codes) < len(answers):
                raise OperationNotAttempted(self._name)

        await self._ask_about_id(request, answered)

    async def _refused(self) -> list[tuple[Batch, KafkaError]]:
        """Write the batches, of each partition one after another. Returns those that a broker does
        not take, with the reason; what is refused has used no sequence number."""
        refused: list[tuple[Batch, KafkaError]] = []
        waiting = {partition: several[::-1] for partition, several in self._batches.items()}
        while waiting:
            by_leader, leaderless = self._by_leader(waiting)
            self._waits_for = without_leader(leaderless) if leaderless else ""
            answers = await asyncio.gather(
                *(self._produce(leader, found) for leader, found in by_leader.items())
            )
            later = bool(leaderless)
            for partition, error in (pair for several in answers for pair in several):
                batch = waiting[partition][-1]
                if error is None:
                    sequence = self._sequences.get(partition, 0) + len(batch.places)
                    self._sequences[partition] = sequence % MAX_SEQUENCE
                elif error.retriable:
                    later = True
                    continue
                else:
                    refused.append((batch, error))
                waiting[partition].pop()
                if not waiting[partition]:
                    del waiting[partition]
            if later:
                self._client.force_metadata_update()
                await asyncio.sleep(RETRY_SECONDS)
        return refused

    def _by_leader(
        self, waiting: Mapping[TopicPartition, list[Batch]]
    ) -> tuple[dict[int, dict[TopicPartition, bytes]], list[TopicPartition]]:
        """The next batch of each partition by its leader; the partitions whose leader is not
        known."""
        leaderless: list[TopicPartition] = []
        found: dict[int, dict[TopicPartition, bytes]] = defaultdict(dict)
        for partition, several in waiting.items():
            leader = self._client.cluster.leader_for_partition(partition)
            if leader in (None, NO_LEADER):
                leaderless.append(partition)
                continue
            sequence = self._sequences.get(partition, 0)
            found[leader][partition] = several[-1].encoded(self._id, self._epoch, sequence)
        return found, leaderless

    async def _produce(
        self, leader: int, batches: Mapping[TopicPartition, bytes]
    ) -> list[tuple[TopicPartition, KafkaError | None]]:
        """Send a leader one batch of each partition."""
        topics: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for partition, data in batches.items():
            topics[partition.topic].append((partition.partition, data))
        request = ProduceRequest(
            transactional_id=self._name,
            required_acks=ALL_REPLICAS,
            timeout=REQUEST_TIMEOUT_MS,
            topics=list(topics.items()),
        )
        try:
            response = await self._client.send(leader, request)
        except KafkaError as error:
            self._note(error)
            return [(partition, error) for partition in batches]
        found: list[tuple[TopicPartition, KafkaError | None]] = []
        for topic, partitions in response.topics:
            for number, code, *_ in partitions:
                kind = for_code(code)
                if kind is InvalidProducerEpoch:
                    raise ProducerFenced
                # Sent again, it may have been there already.
                written = kind in (NoError, DuplicateSequenceNumber)
                named = (topic,) if kind is TopicAuthorizationFailedError else ()
                found.append((TopicPartition(topic, number), None if written else kind(*named)))
        return found

    async def _ask_about_id(self, request: Any, check: Check, *, again: bool = True) -> None:
        await self._ask(CoordinationType.TRANSACTION, self._name, request, check, again=again)

    async def _ask(
        self, kind: int, key: str, request: Any, check: Check, *, again: bool = True
    ) -> None:
        """Ask a coordinator until it has answered; where `again` is false, one that may have heard
        it is not asked twice."""
        while True:
            pause = RETRY_SECONDS
            try:
                node = await self._coordinator(kind, key)
                response = await self._client.send(
                    node, request, group=ConnectionGroup.COORDINATION
                )
                check(response)
            except ConcurrentTransactions as error:
                reason: KafkaError = error
                pause = MARKERS_SECONDS
            except (*_MOVED, NodeNotReadyError) as error:
                reason = error
                self._coordinators.pop(kind, None)
            except _NO_ANSWER as error:
                reason = error
                self._note(error)
                if not again:
                    raise
                self._coordinators.pop(kind, None)
            except BrokerResponseError as error:
                reason = error
                if not error.retriable:
                    raise
            else:
                self._waits_for = ""
                return
            self._waits_for = f"{type(request).__name__}: {said(reason)}"
            await asyncio.sleep(pause)

    async def _coordinator(self, kind: int, key: str) -> int:
        node = self._coordinators.get(kind)
        if node is None:
            try:
                node = int(await self._client.coordinator_lookup(kind, key))
            except TransactionalIdAuthorizationFailed as error:
                raise TransactionalIdAuthorizationFailed(self._name) from error
            except GroupAuthorizationFailedError as error:
                raise GroupAuthorizationFailedError(key) from error
            except (KafkaConnectionError, RequestTimedOutError) as error:
                # A look-up that is lost changes nothing.
                raise NodeNotReadyError(str(error)) from error
            except NodeNotReadyError:
                self._client.force_metadata_update()
                raise
            self._coordinators[kind] = node
        return node

    def _note(self, error: Exception) -> None:
        if isinstance(error, _NO_ANSWER):
            self._unanswered = True

    def _raise_for(self, code: int, partition: TopicPartition | None = None) -> None:
        """Raise what an answer's code says, with the resource that it is about."""
        error = for_code(code)
        if error is NoError:
            return
        if error is InvalidProducerEpoch:
            raise ProducerFenced
        if error is TransactionalIdAuthorizationFailed:
            raise error(self._name)
        if error is GroupAuthorizationFailedError:
            raise error(self._group)
        raise error(*(() if partition is None else (partition,)))


async def _together(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Both, at once; raises what the one raises that fails first, and ends the other."""
    try:
        async with asyncio.TaskGroup() as tasks:
            one, two = tasks.create_task(first), tasks.create_task(second)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group
    return one.result(), two.result()


def _each(response: Any) -> Iterator[tuple[str, int, int]]:
    """Topic, partition and code of an answer."""
    for topic, partitions in response.errors:
        for number, code in partitions:
            yield topic, number, code
