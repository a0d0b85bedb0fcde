"""A consumer that hands out whole batches, undecoded.

aiokafka decodes what it fetched inside `getmany`: a batch that it cannot read makes that call
raise, at the same offset for ever, and a compressed one is decompressed whole before anybody
can ask how large it is. BatchConsumer keeps aiokafka's fetching and leaves the reading to
`ares_stream.streaming.batches`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher, FetchResult, OffsetResetStrategy
from aiokafka.errors import (
    KafkaError,
    KafkaTimeoutError,
    LeaderNotAvailableError,
    NoError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest

from ares_stream.errors import DecodeError
from ares_stream.streaming.batches import Batches, BatchReader, RawBatch
from ares_stream.streaming.committed import stable_offset
from ares_stream.streaming.faults import client_faults
from ares_stream.streaming.log_identity import LogChange, LogIdentity
from ares_stream.streaming.publisher import retrieve
from ares_stream.streaming.records import InboundRecord, ReadLimits
from ares_stream.streaming.topic_ids import NO_LEADER, KnownTopics, known_topics
from ares_stream.streaming.unreadable import Unreadable

END_SECONDS: Final = 5.0
"""A consumer says goodbye at once, to a broker that is there."""
LEADER_SECONDS: Final = 3.0
"""An election is over within this."""
CLOSE_SECONDS: Final = 1.0
"""What is cancelled and closed has ended."""
READ_UNCOMMITTED: Final = 0
READ_COMMITTED: Final = 1
ENOUGH_BYTES: Final = 128 << 10
"""A window of usual records: no fetch waits for more."""
BATCHES: Final = 500
"""Handed out by one call, over all partitions; their bytes are bounded by what is fetched."""
LIST_BYTES: Final = 1 << 20
"""Of records handed out together: a compressed batch may hold many times as much as it takes."""
_log = logging.getLogger(__name__)


class BatchConsumer(AIOKafkaConsumer):  # type: ignore[misc]
    """An AIOKafkaConsumer whose `getbatches` stands in for `getone` and `getmany`."""

    _gather_ms = 0

    def gather(self, seconds: float) -> None:
        """While records come, have the broker wait so long for more before it answers a fetch; a
        record that comes after none is still answered at once. Ask before `start`."""
        self._gather_ms = round(1000 * seconds)

    async def start(self) -> None:
        """Connect; see AIOKafkaConsumer. Subscribe or assign afterwards."""
        await super().start()
        # Nothing is assigned yet, so the fetcher that start() made has fetched nothing.
        made: Fetcher = self._fetcher
        await made.close()
        self._fetcher: Fetcher = _BatchFetcher(
            self._gather_ms,
            self._client,
            self._subscription,
            fetch_min_bytes=self._fetch_min_bytes,
            fetch_max_bytes=self._fetch_max_bytes,
            fetch_max_wait_ms=self._fetch_max_wait_ms,
            max_partition_fetch_bytes=self._max_partition_fetch_bytes,
            fetcher_timeout=self._consumer_timeout,
            retry_backoff_ms=self._retry_backoff_ms,
            auto_offset_reset=self._auto_offset_reset,
            isolation_level=self._isolation_level,
        )

    @property
    def member_id(self) -> str:
        """As the group knows this consumer; "" before it has joined. Set it before subscribing."""
        return str(getattr(self._coordinator, "member_id", ""))

    @member_id.setter
    def member_id(self, value: str) -> None:
        self._coordinator.member_id = value

    async def committed_of_log(
        self, partition: TopicPartition, refused: Callable[[KafkaError], None]
    ) -> tuple[int | None, LogIdentity]:
        """The group's committed offset (None before the first) and what it says of the log that
        it is of. `refused` is told of what is asked again."""
        found = await stable_offset(self._coordinator, partition, refused)
        if found is None:
            return None, LogIdentity()
        return int(found.offset), LogIdentity.parse(found.metadata)

    async def change_of(
        self, partition: TopicPartition, known: LogIdentity, topic_id: str
    ) -> LogChange | None:
        """How the partition's log is another one than what was `known` of it; `topic_id` is its
        topic's now. Asks the broker for one batch at most. Raises KafkaError."""
        found = None
        if known.last is not None and known.change(topic_id, None) is None:
            found = await self._record_at(partition, known.last.offset)
        return known.change(topic_id, found)

    async def _record_at(self, partition: TopicPartition, offset: int) -> InboundRecord | None:
        """What stands at an offset, or behind it in its batch; None where there is nothing."""
        node = self._client.cluster.leader_for_partition(partition)
        if node is None or node == NO_LEADER:
            raise LeaderNotAvailableError([partition])
        place = [(partition.topic, [(partition.partition, offset, 1)])]
        # One byte at most: then the batch comes that holds the offset, and no other (KIP-74).
        response = await self._client.send(node, FetchRequest(0, 0, 1, READ_UNCOMMITTED, place))
        if not response.topics:
            # What a broker answers whose quota is used up (KIP-219), or which refuses the request.
            raise KafkaError("the broker answers no fetch now: this user's quota may be spent")
        _, code, highwater, *details = response.topics[0][1][0]
        kind = for_code(code)
        if kind is OffsetOutOfRangeError:
            return None
        if kind is not NoError:
            raise kind(partition)
        batches = Batches(
            partition.topic,
            partition.partition,
            details[-1] or b"",
            position=offset,
            highwater=highwater,
            aborted=None,
        )
        records = (record for batch in batches for record in BatchReader(batch, ReadLimits()))
        return await asyncio.to_thread(next, records, None)

    async def known_topics(self, topics: Collection[str]) -> KnownTopics:
        """See `ares_stream.streaming.topic_ids`."""
        return await known_topics(self._client, topics)

    async def getbatches(
        self, *partitions: TopicPartition, timeout_ms: int, most: int = BATCHES
    ) -> dict[TopicPartition, list[RawBatch]]:
        """Up to `most` batches that were fetched of the partitions (all, if none is named). The
        position of a partition is then behind them."""
        batches: dict[TopicPartition, list[RawBatch]] = await super().getmany(
            *partitions, timeout_ms=timeout_ms, max_records=most
        )
        return batches

    def limit_partition_fetch(self, size: int) -> None:
        """Fetch at most `size` bytes of a partition at once from now on; a larger batch comes
        alone (KIP-74)."""
        self._fetcher._max_partition_fetch_bytes = size


class _BatchFetcher(Fetcher):  # type: ignore[misc]
    """aiokafka's Fetcher, which keeps whole batches of a response instead of decoding them."""

    def __init__(self, gather_ms: int, *arguments: Any, **settings: Any) -> None:
        self._gather_ms = gather_ms
        super().__init__(*arguments, **settings)
        self._fetch_min_bytes: int
        self._fetch_max_wait_ms: int
        self._usual = (self._fetch_min_bytes, self._fetch_max_wait_ms)

    def _ask_next(self, *, any_came: bool) -> None:
        """How the next fetch waits: for records that come one after another, or for the first."""
        gathers = any_came and self._gather_ms > 0
        self._fetch_min_bytes, self._fetch_max_wait_ms = (
            (ENOUGH_BYTES, self._gather_ms) if gathers else self._usual
        )

    async def _retrieve_offsets(
        self, timestamps: Mapping[TopicPartition, int], timeout_ms: int | None = None
    ) -> Any:
        """As in aiokafka, which asks for a partition without a leader until the time is up, and
        then does not say which one it was. Raises LeaderNotAvailableError."""
        leader, now = self._client.cluster.leader_for_partition, asyncio.get_running_loop().time
        deadline = now() + LEADER_SECONDS
        while missing := [item for item in timestamps if leader(item) in (None, NO_LEADER)]:
            if now() > deadline:
                self._raise_leaderless(missing)
                break
            for item in missing:
                self._client.add_topic(item.topic)
            await asyncio.wait([self._client.force_metadata_update()], timeout=LEADER_SECONDS)
            if any(leader(item) in (None, NO_LEADER) for item in missing):
                await asyncio.sleep(self._retry_backoff)
        try:
            return await super()._retrieve_offsets(timestamps, timeout_ms)
        except KafkaTimeoutError:
            self._raise_leaderless(timestamps)
            raise

    def _raise_leaderless(self, partitions: Iterable[TopicPartition]) -> None:
        leader = self._client.cluster.leader_for_partition
        if leaderless := [item for item in partitions if leader(item) == NO_LEADER]:
            raise LeaderNotAvailableError(leaderless)

    async def _proc_fetch_request(self, assignment: Any, node_id: int, request: Any) -> bool:
        """Send one fetch and keep what came back. Returns whether a waiting reader should look.

        As in aiokafka, whoever moved a partition's position meanwhile wins.
        """
        try:
            response = await self._client.send(node_id, request)
        except KafkaError as error:
            _log.error("Failed fetch messages from %s: %s", node_id, error)
            await asyncio.sleep(self._retry_backoff)
            return False
        except asyncio.CancelledError:
            return False
        if not assignment.active:
            return False
        asked = {
            TopicPartition(topic, number): offset
            for topic, partitions in request.topics
            for number, offset, _ in partitions
        }
        wake = any_came = any_failed = False
        for topic, partitions in response.topics:
            for number, code, highwater, *details in partitions:
                any_came = any_came or bool(details[-1])
                partition = TopicPartition(topic, number)
                state = assignment.state_value(partition)
                if not state.has_valid_position or state.position != asked[partition]:
                    continue
                kind = for_code(code)
                if kind is NoError:
                    state.highwater, state.lso = highwater, details[0]
                    state.timestamp = int(1000 * time.time())
                    # Response 11 and later name a replica between the transactions and the bytes.
                    aborted = details[2] if response.API_VERSION >= 11 else details[-2]
                    wake |= self._keep(assignment, partition, state, details[-1], aborted)
                else:
                    any_failed = True
                    wake |= self._failed(partition, state, kind)
        if any_failed and not any_came:
            await asyncio.sleep(self._retry_backoff)
        self._ask_next(any_came=any_came)
        return wake

    def _keep(
        self,
        assignment: Any,
        partition: TopicPartition,
        state: Any,
        data: bytes,
        aborted: Sequence[tuple[int, int]] | None,
    ) -> bool:
        if not data:
            return False
        committed_only = self._isolation_level == READ_COMMITTED
        batches = Batches(
            partition.topic,
            partition.partition,
            data,
            position=state.position,
            highwater=state.highwater,
            aborted=list(aborted or ()) if committed_only else None,
        )
        self._records[partition] = FetchResult(
            partition,
            assignment=assignment,
            partition_records=batches,
            backoff=self._prefetch_backoff,
        )
        return True

    def _failed(self, partition: TopicPartition, state: Any, kind: type[Exception]) -> bool:
        if kind in (NotLeaderForPartitionError, UnknownTopicOrPartitionError):
            self._client.force_metadata_update()
        elif kind is OffsetOutOfRangeError:
            if self._default_reset_strategy == OffsetResetStrategy.NONE:
                self._set_error(partition, kind({partition: state.position}))
                return True
            _log.info("Fetch offset %s of %s is out of range", state.position, partition)
            state.await_reset(self._default_reset_strategy)
        elif kind is TopicAuthorizationFailedError:
            self._set_error(partition, kind(partition.topic))
            return True
        else:
            # Such as KafkaStorageError: a folder of the broker's is gone, and another one may lead
            # by now, while this one says the same for ever.
            self._client.force_metadata_update()
            _log.warning("Unexpected error while fetching data: %s", kind.__name__)
        return False


async def read_batches(
    batches: Sequence[RawBatch], limits: ReadLimits, unreadable: Unreadable
) -> AsyncIterator[InboundRecord]:
    """The records of batches, one at a time; of an offset where none can be read `unreadable` is
    told. Gives way to other tasks between two batches."""
    for batch in batches:
        for record in whole(BatchReader(batch, limits), unreadable):
            yield record
        await asyncio.sleep(0)


def whole(records: Iterable[InboundRecord], unreadable: Unreadable) -> Iterator[InboundRecord]:
    """Those that could be read; of the others `unreadable` is told."""
    for record in records:
        if record.damage is None:
            yield record
        else:
            unreadable(record, DecodeError(record.damage.reason))


def record_lists(records: Iterable[InboundRecord]) -> Iterator[list[InboundRecord]]:
    """Records in lists of LIST_BYTES, the last one as it comes."""
    found: list[InboundRecord] = []
    size = 0
    for record in records:
        found.append(record)
        size += record.size
        if size >= LIST_BYTES:
            yield found
            found, size = [], 0
    if found:
        yield found


async def end_consumer(consumer: AIOKafkaConsumer, seconds: float = END_SECONDS) -> None:
    """End a consumer in whatever state it is, within about `seconds`.

    aiokafka's stop() first waits for what the group's coordinator is asked; cut off there, it
    leaves its tasks and sockets behind.
    """
    ended = False
    try:
        with contextlib.suppress(KafkaError, OSError, TimeoutError), client_faults():
            async with asyncio.timeout(seconds):
                await consumer.stop()
                ended = True
    finally:
        # Whoever cancels waits for no goodbye, and wants no open socket either.
        if not ended:
            tasks = _let_go(consumer)
    if not ended and tasks:
        await asyncio.wait(tasks, timeout=CLOSE_SECONDS)


def _let_go(consumer: AIOKafkaConsumer) -> list[asyncio.Future[Any]]:
    """Cancel the consumer's tasks and close its connections. Returns what then ends."""
    client, coordinator, fetcher = consumer._client, consumer._coordinator, consumer._fetcher
    names = ("_coordination", "_heartbeat", "_commit_refresh", "_reset_committed")
    found = [getattr(coordinator, f"{name}_task", None) for name in names]
    if fetcher is not None:
        found += [fetcher._fetch_task, *fetcher._pending_tasks]
    ending: list[asyncio.Future[Any]] = []
    for task in (*found, client._sync_task):
        if task is not None and not task.done():
            task.add_done_callback(retrieve)
            task.cancel()
            ending.append(task)
    ending += [connection.close() for connection in list(client._conns.values())]
    return ending
