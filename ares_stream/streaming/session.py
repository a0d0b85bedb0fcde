"""One life of the consumer of a Processor: what it reads, hands on and gives back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from ares_stream.errors import StreamError, root_cause
from ares_stream.streaming.contract import SessionSpec
from ares_stream.streaming.partition import PartitionLost, PartitionWorker
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.reader import inbound
from ares_stream.streaming.records import InboundRecord, Outcome, Rejection

HEARTBEAT_MS: Final = 3_000
SESSION_TIMEOUT_MS: Final = 30_000
"""A process that is silent this long loses its partitions; ten heartbeats may be late."""
REBALANCE_TIMEOUT_MS: Final = 60_000
"""Time to finish open transactions before partitions move; aiokafka would take the session's."""
MAX_POLL_INTERVAL_MS: Final = 300_000
"""A handler that takes longer for what is in flight counts as stuck."""
POLL_MS: Final = 200
PASSING: Final = (KafkaError, PartitionLost, OSError, TimeoutError)
"""What a new session may mend."""


@dataclass(slots=True)
class _Item:
    """A record on its way, with the epoch of the worker that read it."""

    record: InboundRecord
    worker: PartitionWorker
    epoch: int


class Session(ConsumerRebalanceListener):  # type: ignore[misc]
    """One life of the consumer: from its start to its stop or its first error."""

    def __init__(
        self,
        spec: SessionSpec,
        *,
        stopping: asyncio.Event,
        judge: Callable[[bool], None],
        patience: Patience,
    ) -> None:
        self._spec = spec
        self._policy = spec.policy
        self._observer = spec.observer
        self._stopping = stopping
        self._judge = judge
        self._patience = patience
        self._workers: dict[TopicPartition, PartitionWorker] = {}
        self._pending: deque[_Item] = deque()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._polling = True
        # Values stay bytes: a deserializer that raises makes getmany return nothing for ever.
        # The three defaults of aiokafka that lose or invent records are set right here.
        self._consumer = AIOKafkaConsumer(
            **spec.connection.client_arguments(),
            group_id=spec.group,
            group_instance_id=spec.group_instance_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            max_poll_interval_ms=MAX_POLL_INTERVAL_MS,
            fetch_max_bytes=spec.policy.fetch_bytes,
            max_partition_fetch_bytes=spec.policy.partition_fetch_bytes,
        )

    def open_partitions(self) -> tuple[tuple[str, int], ...]:
        """(topic, number) of the partitions that take records in."""
        return tuple(
            (worker.topic, worker.partition) for worker in self._workers.values() if worker.is_open
        )

    def missing(self) -> str | None:
        """What keeps it from reading and committing now; None while nothing does."""
        return None

    async def run(self) -> None:
        """Read until the processor stops, then drain. Raises the one error that ended it."""
        try:
            await self._consumer.start()
            async with asyncio.TaskGroup() as tasks:
                await self._work_until_stopped(tasks)
        except BaseExceptionGroup as group:
            # One cause, many tasks: the caller gets the error itself, not a group.
            raise root_cause(group, PASSING) from group
        finally:
            # A consumer that cannot say goodbye must not hold up the next session.
            with contextlib.suppress(KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(10):
                    await self._consumer.stop()

    async def _work_until_stopped(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._consumer.subscribe(list(self._spec.topics), listener=self)
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
        await asyncio.gather(*(worker.close() for worker in self._workers.values()))
        self._workers.clear()

    # Reading

    async def _poll(self) -> None:
        while self._polling:
            ready = [
                tp for tp, worker in self._workers.items() if worker.is_open and self._fits(worker)
            ]
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
        worker = self._workers.get(partition)
        if worker is None or not worker.is_open:
            return  # Given away while it was fetched; its next owner reads it again.
        fresh = [inbound(record) for record in records if record.offset >= worker.position]
        for record in fresh:
            refusal = worker.add(record)
            if refusal is not None:
                worker.complete(record.offset, refusal, worker.epoch)
            else:
                self._pending.append(_Item(record, worker, worker.epoch))
        if fresh:
            self._observer.consumed(partition.topic, len(fresh))
            self._report()
            self._work.set()
        highwater = self._consumer.highwater(partition)
        if highwater is not None:
            worker.highwater = highwater
        worker.report_lag()

    def _records(self) -> int:
        return sum(worker.inflight_records for worker in self._workers.values())

    def _bytes(self) -> int:
        return sum(worker.inflight_bytes for worker in self._workers.values())

    def _has_room(self) -> bool:
        return (
            self._records() < self._policy.inflight_records
            and self._bytes() < self._policy.inflight_bytes
        )

    def _fits(self, worker: PartitionWorker) -> bool:
        """Whether a worker is below its part, so that one slow partition cannot take all room."""
        part = max(1, min(len(self._workers), 4))
        return (
            worker.inflight_records < self._policy.inflight_records / part
            and worker.inflight_bytes < self._policy.inflight_bytes / part
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
            window = [item for item in window if item.epoch == item.worker.epoch]
            if not window:
                continue
            outcomes = await self._outcomes([item.record for item in window])
            for item, outcome in zip(window, outcomes, strict=True):
                item.worker.complete(item.record.offset, outcome, item.epoch)

    async def _outcomes(self, records: Sequence[InboundRecord]) -> list[Outcome]:
        """The handler's outcomes; a batch that fails is halved down to the record at fault."""
        try:
            outcomes = list(await self._spec.handler.handle(records))
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
        """A worker for each."""
        # First of all and without an await: aiokafka fetches before this returns.
        self._consumer.pause(*assigned)
        assert self._tasks is not None  # noqa: S101 - subscribe comes after the group is open
        for partition in assigned:
            worker = PartitionWorker(
                self._spec,
                partition.topic,
                partition.partition,
                judge=self._judge,
                room=self._made_room,
            )
            self._workers[partition] = worker
            self._tasks.create_task(
                worker.run(self._seek), name=f"partition {partition.topic}-{partition.partition}"
            )

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Their workers commit what is ready and end before the group goes on."""
        leaving = [self._workers.pop(tp) for tp in revoked if tp in self._workers]
        await asyncio.gather(*(worker.close() for worker in leaving))
        self._report()

    async def _seek(self, worker: PartitionWorker) -> int:
        """Put the consumer on the worker's committed offset; returns that offset."""
        partition = TopicPartition(worker.topic, worker.partition)
        self._consumer.pause(partition)
        committed = await self._consumer.committed(partition)
        beginning = (await self._consumer.beginning_offsets([partition]))[partition]
        if committed is not None and committed < beginning:
            # aiokafka would go on at the beginning and tell nobody.
            self._observer.skipped(worker.topic, worker.partition, beginning - committed)
        committed = max(committed or 0, beginning)
        self._consumer.seek(partition, committed)
        self._consumer.resume(partition)
        self._room.set()
        return int(committed)

    async def _drain(self, deadline: float) -> None:
        """Wait until all that was read is committed, or the deadline (loop time) has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*(worker.drained() for worker in self._workers.values()))
