"""Kafka in, Kafka out, exactly once. Knows nothing of models.

The scheme is that of Kafka Streams before KIP-447: one transactional producer per input
partition, whose transactional id is made of service, topic and partition. Starting such a
producer fences whoever held the partition before and settles what they left open, so the
committed offset read afterwards is final. Whatever goes wrong with a transaction has one
answer: throw the producer away, start a new one, read the committed offset again, and go on
from there. Nothing is retried whose outcome is unknown.

    poll ──► windows ──► handler (several at a time) ──► watermark per partition ──► transaction
      ▲                                                                                  │
      └───────────── room: bytes and records in flight, per partition and in all ◄───────┘
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from ares_stream.errors import BreakerOpen, BrokerError, StreamError
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import Handler, ProcessorObserver, ProcessorPolicy
from ares_stream.streaming.deadletters import Breaker, dead_letter
from ares_stream.streaming.lane import Lane, LaneLost
from ares_stream.streaming.reader import inbound
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection

HEARTBEAT_MS: Final = 3_000
SESSION_TIMEOUT_MS: Final = 30_000
"""A process that is silent this long loses its partitions; ten heartbeats may be late."""
REBALANCE_TIMEOUT_MS: Final = 60_000
"""Time to finish open transactions before partitions move; aiokafka would take the session's."""
MAX_POLL_INTERVAL_MS: Final = 300_000
"""A handler that takes longer for what is in flight counts as stuck."""
POLL_MS: Final = 200
RECONNECT_SECONDS: Final = 60.0
"""A broker that restarts is back within this; past it an operator should know."""
BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
STABLE_SECONDS: Final = 30.0
"""A session that lasted this long starts the count of failures anew."""


class Processor:
    """Reads topics as a member of `group`, hands windows to `handler`, publishes outcomes and
    commits offsets in one transaction per partition and batch. `output_topics` are those that
    the handler writes: a missing one is told at the start.

    `run` returns after `stop` once everything in flight is committed or the drain's deadline
    has passed, and raises TopicError (a topic is missing), BrokerError (unreachable for a
    minute), BreakerOpen (too many dead letters) or what the handler's owner raised.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        *,
        service: str,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        deadletter_topic: str,
        output_topics: Sequence[str] = (),
        id_prefix: str = "ares.",
        policy: ProcessorPolicy | None = None,
        observer: ProcessorObserver | None = None,
        group_instance_id: str | None = None,
    ) -> None:
        self._connection = connection
        self._service = service
        self._group = group
        self._topics = tuple(topics)
        self._handler = handler
        self._deadletters = deadletter_topic
        self._output_topics = tuple(output_topics)
        self._id_prefix = id_prefix
        self._policy = policy or ProcessorPolicy()
        self._observer = observer or ProcessorObserver()
        self._instance = group_instance_id
        self._breaker = Breaker(self._policy.breaker)
        self._stopping = asyncio.Event()
        self._session: _Session | None = None

    @property
    def partitions(self) -> tuple[tuple[str, int], ...]:
        """Partitions that are open here now."""
        return () if self._session is None else self._session.open_partitions()

    def stop(self) -> None:
        """Read no more; `run` commits what is in flight and returns. Safe in a signal handler."""
        self._stopping.set()

    async def run(self) -> None:
        """Process until `stop`. See the class for what it raises."""
        await self._check_topics()
        failures = 0
        first_failure = 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._run_session()
            except (KafkaError, LaneLost, OSError, TimeoutError) as error:
                if time.monotonic() - started > STABLE_SECONDS:
                    failures = 0
                if failures == 0:
                    first_failure = time.monotonic()
                failures += 1
                if time.monotonic() - first_failure > RECONNECT_SECONDS:
                    raise BrokerError(
                        f"Kafka at {self._connection.bootstrap} failed for "
                        f"{RECONNECT_SECONDS:.0f} s: {type(error).__name__}: {error}"
                    ) from error
                self._observer.restarted(type(error).__name__)
            else:
                return
            pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    async def _run_session(self) -> None:
        session = _Session(
            self._connection,
            self._group,
            self._topics,
            self._handler,
            self._policy,
            self._observer,
            self._stopping,
            self._instance,
            self._make_lane,
        )
        self._session = session
        try:
            await session.run()
        finally:
            self._session = None

    def _make_lane(self, partition: TopicPartition, room: Callable[[], None]) -> Lane:
        return Lane(
            self._connection,
            topic=partition.topic,
            partition=partition.partition,
            group=self._group,
            transactional_id=(
                f"{self._id_prefix}{self._service}.{partition.topic}.{partition.partition}"
            ),
            policy=self._policy,
            observer=self._observer,
            dead_letter=self._dead_letter,
            judge=self._judge,
            room=room,
        )

    def _dead_letter(self, record: InboundRecord, rejection: Rejection) -> OutboundRecord:
        return dead_letter(
            record,
            rejection,
            self._deadletters,
            service=self._service,
            failed_at_ms=int(time.time() * 1000),
        )

    def _judge(self, refused: bool) -> None:
        reason = self._breaker.count(refused)
        if reason is not None:
            self._observer.breaker(reason)
            raise BreakerOpen(
                f"{reason}; stopped before more of {', '.join(self._topics)} becomes dead "
                f"letters. Look at {self._deadletters}, mend the cause, start again: nothing "
                "after the last commit is lost"
            )

    async def _check_topics(self) -> None:
        await count_partitions(
            self._connection, [*self._topics, *self._output_topics, self._deadletters]
        )


def _cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error behind a group of failed tasks: what a person must mend before what a
    restart mends."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop()
        if isinstance(error, BaseExceptionGroup):
            pending.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    fatal = [e for e in leaves if not isinstance(e, (KafkaError, LaneLost, OSError, TimeoutError))]
    return (fatal or leaves)[0]


@dataclass(slots=True)
class _Item:
    """A record on its way, with the epoch of the lane that read it."""

    record: InboundRecord
    lane: Lane
    epoch: int


class _Session(ConsumerRebalanceListener):  # type: ignore[misc]
    """One life of the consumer: from its start to its stop or its first error."""

    def __init__(
        self,
        connection: KafkaConnection,
        group: str,
        topics: Sequence[str],
        handler: Handler,
        policy: ProcessorPolicy,
        observer: ProcessorObserver,
        stopping: asyncio.Event,
        instance: str | None,
        make_lane: Callable[[TopicPartition, Callable[[], None]], Lane],
    ) -> None:
        self._topics = topics
        self._handler = handler
        self._policy = policy
        self._observer = observer
        self._stopping = stopping
        self._make_lane = make_lane
        self._lanes: dict[TopicPartition, Lane] = {}
        self._pending: deque[_Item] = deque()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._polling = True
        # Values stay bytes: a deserializer that raises makes getmany return nothing for ever.
        # The three defaults of aiokafka that lose or invent records are set right here.
        self._consumer = AIOKafkaConsumer(
            **connection.client_arguments(),
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            fetch_max_bytes=policy.fetch_bytes,
            max_partition_fetch_bytes=policy.partition_fetch_bytes,
        )

    def open_partitions(self) -> tuple[tuple[str, int], ...]:
        return tuple((lane.topic, lane.partition) for lane in self._lanes.values() if lane.is_open)

    async def run(self) -> None:
        try:
            await self._consumer.start()
            async with asyncio.TaskGroup() as tasks:
                await self._work_until_stopped(tasks)
        except BaseExceptionGroup as group:
            # One cause, many tasks: the caller gets the error itself, not a group.
            raise _cause(group) from group
        finally:
            # A consumer that cannot say goodbye must not hold up the next session.
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(10):
                    await self._consumer.stop()

    async def _work_until_stopped(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._consumer.subscribe(list(self._topics), listener=self)
        handlers = [
            tasks.create_task(self._handle_windows(), name=f"handler-{number}")
            for number in range(self._policy.concurrency)
        ]
        poll = tasks.create_task(self._poll(), name="poll")
        await self._stopping.wait()
        deadline = asyncio.get_running_loop().time() + self._policy.drain_seconds
        self._polling = False
        self._room.set()
        # Not awaited for ever: getmany ignores its time-out while the group rebalances.
        await asyncio.wait({poll}, timeout=self._policy.drain_seconds)
        poll.cancel()
        await self._drain(deadline)
        for task in handlers:
            task.cancel()
        await asyncio.gather(*(lane.close() for lane in self._lanes.values()))
        self._lanes.clear()

    # Reading

    async def _poll(self) -> None:
        while self._polling:
            ready = [tp for tp, lane in self._lanes.items() if lane.is_open and self._fits(lane)]
            if not ready or not self._has_room():
                self._room.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_MS / 1000):
                        await self._room.wait()
                continue
            # Never cancelled, since a cancelled getmany blinds the poll-interval check; and
            # asked for ready partitions instead of pausing, which would drop their buffers.
            limit = max(1, self._policy.inflight_records - self._records())
            batches = await self._consumer.getmany(*ready, timeout_ms=POLL_MS, max_records=limit)
            for partition, records in batches.items():
                self._accept(partition, records)

    def _accept(self, partition: TopicPartition, records: Sequence[Any]) -> None:
        lane = self._lanes.get(partition)
        if lane is None or not lane.is_open:
            return  # Given away while it was fetched; its next owner reads it again.
        fresh = [inbound(record) for record in records if record.offset >= lane.position]
        for record in fresh:
            refusal = lane.add(record)
            if refusal is not None:
                lane.complete(record.offset, refusal, lane.epoch)
            else:
                self._pending.append(_Item(record, lane, lane.epoch))
        if fresh:
            self._observer.consumed(partition.topic, len(fresh))
            self._report()
            self._work.set()
        highwater = self._consumer.highwater(partition)
        if highwater is not None:
            lane.highwater = highwater
        lane.report_lag()

    def _records(self) -> int:
        return sum(lane.inflight_records for lane in self._lanes.values())

    def _bytes(self) -> int:
        return sum(lane.inflight_bytes for lane in self._lanes.values())

    def _has_room(self) -> bool:
        return (
            self._records() < self._policy.inflight_records
            and self._bytes() < self._policy.inflight_bytes
        )

    def _fits(self, lane: Lane) -> bool:
        """Whether a lane is below its part, so that one slow partition cannot take all room."""
        part = max(1, min(len(self._lanes), 4))
        return (
            lane.inflight_records < self._policy.inflight_records / part
            and lane.inflight_bytes < self._policy.inflight_bytes / part
        )

    def _report(self) -> None:
        self._observer.inflight(self._records(), self._bytes())

    def _made_room(self) -> None:
        self._report()
        # Restart at half: reading in spoonfuls makes small windows and slow models.
        if self._records() <= self._policy.inflight_records // 2:
            self._room.set()

    # Handling

    async def _handle_windows(self) -> None:
        while True:
            while not self._pending:
                self._work.clear()
                await self._work.wait()
            window = [
                self._pending.popleft()
                for _ in range(min(len(self._pending), self._policy.window_records))
            ]
            window = [item for item in window if item.epoch == item.lane.epoch]
            if not window:
                continue
            outcomes = await self._outcomes([item.record for item in window])
            for item, outcome in zip(window, outcomes, strict=True):
                item.lane.complete(item.record.offset, outcome, item.epoch)

    async def _outcomes(self, records: Sequence[InboundRecord]) -> list[Outcome]:
        """The handler's outcomes; a batch that fails is halved down to the record at fault."""
        try:
            outcomes = list(await self._handler.handle(records))
            if len(outcomes) != len(records):
                raise StreamError(
                    f"the handler gave {len(outcomes)} outcomes for {len(records)} records"
                )
        except Exception as error:  # a poison record may raise anything
            if len(records) == 1:
                return [Rejection("handle", error)]
            middle = len(records) // 2
            return [
                *await self._outcomes(records[:middle]),
                *await self._outcomes(records[middle:]),
            ]
        return outcomes

    # Partitions come and go

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        # First of all and without an await: aiokafka fetches before this returns.
        self._consumer.pause(*assigned)
        assert self._tasks is not None  # noqa: S101 - subscribe comes after the group is open
        for partition in assigned:
            lane = self._make_lane(partition, self._made_room)
            self._lanes[partition] = lane
            self._tasks.create_task(
                lane.run(self._seek), name=f"lane {partition.topic}-{partition.partition}"
            )

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        leaving = [self._lanes.pop(tp) for tp in revoked if tp in self._lanes]
        await asyncio.gather(*(lane.close() for lane in leaving))
        self._report()

    async def _seek(self, lane: Lane) -> int:
        """Put the consumer on the lane's committed offset; returns that offset."""
        partition = TopicPartition(lane.topic, lane.partition)
        self._consumer.pause(partition)
        committed = await self._consumer.committed(partition)
        beginning = (await self._consumer.beginning_offsets([partition]))[partition]
        if committed is not None and committed < beginning:
            # aiokafka would go on at the beginning and tell nobody.
            self._observer.skipped(lane.topic, lane.partition, beginning - committed)
        committed = max(committed or 0, beginning)
        self._consumer.seek(partition, committed)
        self._consumer.resume(partition)
        self._room.set()
        return int(committed)

    async def _drain(self, deadline: float) -> None:
        """Wait until all that was read is committed, or the deadline (loop time) has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*(lane.drained() for lane in self._lanes.values()))
