"""One life of the consumer of a Processor: what it reads, hands on and gives back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from ares_stream.errors import BreakerOpen, ResourceError, StreamError, root_cause
from ares_stream.streaming.breaker import Breaker
from ares_stream.streaming.contract import SessionSpec
from ares_stream.streaming.faults import client_faults, said
from ares_stream.streaming.fetching import BatchConsumer, end_consumer
from ares_stream.streaming.log_identity import LogIdentity
from ares_stream.streaming.partition import (
    OPENINGS,
    TURNS,
    Inflight,
    PartitionLost,
    PartitionWorker,
)
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.publisher import retrieve
from ares_stream.streaming.records import Damage, InboundRecord, Outcome, Rejection
from ares_stream.streaming.resume import ForeignCommit, OffsetLoss, resume
from ares_stream.streaming.shared_clients import SharedClients
from ares_stream.streaming.topic_ids import KnownTopics
from ares_stream.streaming.unread import Unread
from ares_stream.streaming.watch import Watch

_log = logging.getLogger(__name__)
POLL_MS: Final = 200
START_SECONDS: Final = 30.0
SEEK_SECONDS: Final = 3.0
"""A broker that comes back may for a moment know less of its log than it has."""
STOP_SECONDS: Final = 5.0
"""After the drain: for what hangs on a broker that is gone."""
MAX_IDLE_SHARE: Final = 0.25
"""Of the poll interval: then a member that has nothing to read shows itself."""
ID_SECONDS: Final = 1.0
"""How long a topic's id is taken for known by partitions that open for the first time."""
FIRST_OPENING: Final = 1
"""Epoch of a worker that opens for the first time."""
NOBODY: Final = TopicPartition("", -1)
"""Asking for it fetches nothing and counts as a poll."""
PASSING: Final = (KafkaError, PartitionLost, OSError, TimeoutError)
"""What a new session may mend."""
FULL_MS: Final = 20
"""Between two looks for room while records wait to be read."""
LEAST_FETCH_BYTES: Final = 64 << 10
"""Of one partition at once, however many there are."""


def damaged(damage: Damage) -> Rejection:
    """Why a record that could not be read is a dead letter."""
    return Rejection("fetch", "ares_stream.errors.DecodeError", f"unreadable: {damage.reason}")


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
        breaker: Breaker,
        size_limits: Mapping[str, int],
        patience: Patience,
        notes: deque[OffsetLoss | ForeignCommit],
        member_id: str = "",
    ) -> None:
        """`member_id` is what the group knew the session before this one as, which may not have
        been able to say goodbye: who joins as somebody else waits until the group has given that
        one up."""
        self.member_id = member_id
        self._spec = spec
        self._policy = spec.policy
        self._observer = spec.observer
        self._stopping = stopping
        self._breaker = breaker
        self._size_limits = size_limits
        self._notes = notes
        self._workers: dict[TopicPartition, PartitionWorker] = {}
        self._unread: dict[TopicPartition, Unread] = {}
        self._inflight = Inflight()
        self._turns = asyncio.Semaphore(TURNS)
        self._openings = asyncio.Semaphore(OPENINGS)
        self._clients = SharedClients(spec.connection, TURNS)
        self._decompressing: dict[TopicPartition, int] = {}
        """Bytes that decompression keeps, of the partitions whose batch is not read to its end."""
        self._pending: deque[_Item] = deque()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None
        self._living: set[asyncio.Task[None]] = set()
        self._polling = True
        self._joined = False
        self._polled = 0.0
        self._settled: dict[TopicPartition, tuple[int, LogIdentity]] = {}
        self._reported_topics: set[str] = set()
        self._ids: dict[str, tuple[float, asyncio.Future[KnownTopics]]] = {}
        # The three defaults of aiokafka that lose or invent records are set right here.
        self._consumer = BatchConsumer(
            **spec.connection.client_arguments(),
            group_id=spec.group,
            group_instance_id=spec.group_instance_id,
            enable_auto_commit=False,
            # A position that the log does not hold is ours to judge, never skipped in silence.
            auto_offset_reset="none",
            isolation_level="read_committed",
            session_timeout_ms=int(spec.policy.session_seconds * 1000),
            heartbeat_interval_ms=int(spec.policy.heartbeat_seconds * 1000),
            rebalance_timeout_ms=int(spec.policy.rebalance_seconds * 1000),
            max_poll_interval_ms=int(spec.policy.poll_interval_seconds * 1000),
            metadata_max_age_ms=int(spec.policy.metadata_seconds * 1000),
            fetch_max_bytes=spec.policy.fetch_bytes,
            max_partition_fetch_bytes=spec.policy.partition_fetch_bytes,
        )
        self._consumer.gather(spec.policy.gather_seconds)

        self._watch = Watch(
            spec,
            self._consumer,
            self._workers,
            buffered=self._is_buffered,
            is_paused=lambda topic: self._breaker.opened(topic) is not None,
            has_joined=lambda: self._joined,
            patience=patience,
        )

    def open_partitions(self) -> tuple[tuple[str, int], ...]:
        """(topic, number) of the partitions that take records in."""
        return tuple(
            (worker.topic, worker.partition) for worker in self._workers.values() if worker.is_open
        )

    def missing(self) -> str | None:
        """What keeps it from reading and committing now; None while nothing does. A member
        without partitions is a standby, and lacks nothing."""
        return self._watch.missing()

    async def run(self) -> None:
        """Read until the processor stops, then drain. Raises the one error that ended it."""
        try:
            if not await self._started():
                return
            async with asyncio.TaskGroup() as tasks:
                await self._work_until_stopped(tasks)
        except BaseExceptionGroup as group:
            # One cause, many tasks: the caller gets the error itself, not a group.
            raise root_cause(group, PASSING) from group
        finally:
            self.member_id = self._consumer.member_id
            try:
                await self._clients.close()
            finally:
                # A consumer that cannot say goodbye must not hold up the next session.
                await end_consumer(self._consumer, STOP_SECONDS)

    async def _started(self) -> bool:
        """Connect, unless the processor stops first."""
        start = asyncio.create_task(self._start_consumer(), name="start")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
            return start.done()
        finally:
            for task in (start, stop):
                task.cancel()
            await asyncio.gather(start, stop, return_exceptions=True)

    async def _start_consumer(self) -> None:
        with client_faults():
            async with asyncio.timeout(START_SECONDS):
                await self._consumer.start()
        self._consumer.member_id = self.member_id

    async def _work_until_stopped(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._consumer.subscribe(list(self._spec.topics), listener=self)
        handlers = [
            tasks.create_task(self._handle_windows(), name=f"handler-{number}")
            for number in range(self._policy.concurrency)
        ]
        poll = tasks.create_task(self._poll(), name="poll")
        watch = tasks.create_task(self._watch.run(), name="watch")
        await self._stopping.wait()
        deadline = asyncio.get_running_loop().time() + self._policy.drain_seconds
        self._polling = False
        self._room.set()
        # Not awaited for ever: getmany ignores its time-out while the group rebalances.
        await asyncio.wait({poll}, timeout=self._policy.drain_seconds)
        poll.cancel()
        await self._drain(deadline)
        for task in (*handlers, watch):
            task.cancel()
        await asyncio.gather(
            *(worker.close(seconds=STOP_SECONDS) for worker in self._workers.values())
        )
        for task in self._living:  # They hang on a broker that is gone.
            task.cancel()
        self._workers.clear()

    # Reading

    async def _poll(self) -> None:
        while self._polling:
            read = await self._read()
            await self._end_if_all_paused()
            ready = [
                tp
                for tp, worker in self._workers.items()
                if self._wanted(worker) and not self._unread[tp]
            ]
            if not ready or not self._has_room():
                if not read:
                    await self._wait_for_room(POLL_MS)
                await self._stay_in_group(is_reading=read)
                continue
            # Never cancelled, since a cancelled getmany blinds the poll-interval check; and
            # asked for ready partitions instead of pausing, which would drop their buffers.
            full = any(self._unread.values())
            try:
                with client_faults():
                    batches = await self._consumer.getbatches(
                        *ready, timeout_ms=0 if full else POLL_MS
                    )
            except OffsetOutOfRangeError as error:
                self._reopen(error)
                continue
            self._polled = asyncio.get_running_loop().time()
            for partition, fetched in batches.items():
                if partition in self._unread:  # Else it was given away meanwhile.
                    self._unread[partition].put(fetched)
            if full and not batches and not read:
                await self._wait_for_room(FULL_MS)

    async def _stay_in_group(self, *, is_reading: bool) -> None:
        """A member that polls nothing is thrown out of the group: one without partitions, one
        whose partitions do not open, one that reads what it fetched long ago. One that is stuck
        with what it has is not spared."""
        now = asyncio.get_running_loop().time()
        patient = self._policy.poll_interval_seconds * MAX_IDLE_SHARE
        if (is_reading or not self._inflight.records) and now - self._polled >= patient:
            self._polled = now
            with client_faults():
                await self._consumer.getbatches(NOBODY, timeout_ms=0)

    def _reopen(self, error: OffsetOutOfRangeError) -> None:
        """The log no longer holds the position: what is in flight is committed first, then the
        worker looks where to go on."""
        assert self._tasks is not None  # noqa: S101 - polling comes after the group is open
        for partition in error.args[0]:
            worker = self._workers.get(partition)
            if worker is not None:
                worker.reopen()

    def _is_buffered(self, partition: TopicPartition) -> bool:
        """Whether records of a partition were fetched that its worker does not know yet."""
        return bool(self._unread.get(partition))

    async def _wait_for_room(self, milliseconds: int) -> None:
        self._room.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(milliseconds / 1000):
                await self._room.wait()

    async def _read(self) -> bool:
        """Read what was fetched, as far as there is room; whether there was any."""
        read = False
        for partition, worker in list(self._workers.items()):
            unread = self._unread.get(partition)
            if not unread or not self._wanted(worker) or not self._has_room():
                continue
            epoch = worker.epoch
            records = await unread.take(*self._room_of(worker))
            if self._unread.get(partition) is not unread:
                continue
            if await self._is_of_another_log(partition, worker, unread.leader_epoch):
                worker.reopen()
                continue
            self._decompressing.pop(partition, None)
            if held := unread.held:
                self._decompressing[partition] = held
            if worker.epoch == epoch:
                self._accept(partition, worker, records)
                read = True
        return read

    async def _is_of_another_log(
        self, partition: TopicPartition, worker: PartitionWorker, epoch: int
    ) -> bool:
        """Whether records that were read last are no longer there, or nobody can say. A log can be
        cut back and filled again under a reader only while its leader changes (KIP-320)."""
        before, worker.leader_epoch = worker.leader_epoch, epoch
        if epoch == before or -1 in (epoch, before):
            return False
        known = worker.read_of
        try:
            with client_faults():
                async with asyncio.timeout(SEEK_SECONDS):
                    change = await self._consumer.change_of(partition, known, known.topic_id)
        except (KafkaError, OSError, TimeoutError):
            return True  # A leader that has just come; who opens again asks until it answers.
        return change is not None

    async def _end_if_all_paused(self) -> None:
        """Raise BreakerOpen once no topic is left that may be read: what was read is committed
        first, and no transaction is left open for readers to wait for."""
        reasons = {topic: self._breaker.opened(topic) for topic in self._spec.topics}
        for topic, reason in reasons.items():
            if reason is not None and topic not in self._reported_topics:
                self._reported_topics.add(topic)
                self._observer.breaker(topic, reason)
                _log.error("breaker open: no more of %s is read: %s", topic, reason)
        if all(reasons.values()):
            await self._drain(asyncio.get_running_loop().time() + self._policy.drain_seconds)
            await asyncio.gather(*(worker.close() for worker in self._workers.values()))
            raise BreakerOpen(
                "; ".join(f"{topic}: {reason}" for topic, reason in reasons.items())
                + f". They are in {self._spec.deadletter_topic}: mend the cause and start again, "
                "or start with --accept-dead-letters"
            )

    def _accept(
        self, partition: TopicPartition, worker: PartitionWorker, records: Sequence[InboundRecord]
    ) -> None:
        if not worker.is_open:
            return  # Its next owner reads it again.
        fresh = [record for record in records if record.offset >= worker.position]
        for record in fresh:
            worker.add(record)
            if record.damage is None:
                self._pending.append(_Item(record, worker, worker.epoch))
            else:
                worker.complete(record.offset, damaged(record.damage), worker.epoch)
        if fresh:
            self._observer.consumed(partition.topic, len(fresh))
            self._report()
            self._work.set()
        highwater = self._consumer.highwater(partition)
        if highwater is not None:
            worker.highwater = highwater
        worker.report_lag()

    def _bytes(self) -> int:
        return self._inflight.size + sum(self._decompressing.values())

    def _has_room(self) -> bool:
        records = self._inflight.records
        # With nothing in flight nothing would ever make room: then one more is read.
        return records == 0 or (
            records < self._policy.inflight_records and self._bytes() < self._policy.inflight_bytes
        )

    def _room_of(self, worker: PartitionWorker) -> tuple[int, int]:
        """Records and bytes that may be read of a partition now; one record at least."""
        part = max(1, min(len(self._workers), 4))
        records = min(
            self._policy.inflight_records // part - worker.inflight_records,
            self._policy.inflight_records - self._inflight.records,
        )
        size = min(
            self._policy.inflight_bytes // part - worker.inflight_bytes,
            self._policy.inflight_bytes - self._bytes(),
        )
        return max(1, records), max(1, size)

    def _wanted(self, worker: PartitionWorker) -> bool:
        return worker.is_open and self._fits(worker) and self._breaker.opened(worker.topic) is None

    def _fits(self, worker: PartitionWorker) -> bool:
        """Whether a worker is below its part, so that one slow partition cannot take all room."""
        part = max(1, min(len(self._workers), 4))
        return (
            worker.inflight_records < self._policy.inflight_records / part
            and worker.inflight_bytes < self._policy.inflight_bytes / part
        )

    def _report(self) -> None:
        self._observer.inflight(self._inflight.records, self._bytes())

    def _made_room(self) -> None:
        self._report()
        # Restart at half: reading in spoonfuls makes small windows and slow models.
        if self._inflight.records <= self._policy.inflight_records // 2:
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
        """The handler's outcomes; a batch that fails is halved down to the record at fault. Raises
        what says that the machine is at fault, and no record."""
        try:
            outcomes = list(await self._spec.handler.handle(records))
            if len(outcomes) == len(records):
                return outcomes
            failure = Rejection.of(
                "handle",
                StreamError(
                    f"the handler gave {len(outcomes)} outcomes for {len(records)} records"
                ),
            )
        except (ResourceError, MemoryError):
            raise
        except Exception as error:  # a poison record may raise anything
            failure = Rejection.of("handle", error)
        if len(records) == 1:
            return [failure]
        middle = len(records) // 2
        return [
            *await self._outcomes(records[:middle]),
            *await self._outcomes(records[middle:]),
        ]

    # Partitions come and go

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        """A worker for each."""
        # First of all and without an await: aiokafka fetches before this returns.
        self._consumer.pause(*assigned)
        for partition in assigned:
            # aiokafka would look for a commit itself, and end the session where there is none.
            self._consumer.seek(partition, 0)
        self._joined = True
        self._ids.clear()
        self._polled = asyncio.get_running_loop().time()
        assert self._tasks is not None  # noqa: S101 - subscribe comes after the group is open
        # What is fetched is held twice at most, here and in aiokafka, of every partition.
        share = self._policy.inflight_bytes // (2 * max(1, len(self._consumer.assignment())))
        self._consumer.limit_partition_fetch(
            min(self._policy.partition_fetch_bytes, max(LEAST_FETCH_BYTES, share))
        )
        for partition in assigned:
            worker = PartitionWorker(
                self._spec,
                partition.topic,
                partition.partition,
                breaker=self._breaker,
                inflight=self._inflight,
                turns=self._turns,
                openings=self._openings,
                clients=self._clients,
                room=self._made_room,
                lost=self._tell_loss,
                size_limits=self._size_limits,
            )
            work = worker.run(self._seek)
            try:
                life = self._tasks.create_task(
                    work, name=f"partition {partition.topic}-{partition.partition}"
                )
            except RuntimeError:  # The session ends: the next one is given the partition.
                work.close()
                return
            self._workers[partition] = worker
            self._unread[partition] = Unread(self._policy.read)
            self._living.add(life)
            life.add_done_callback(self._living.discard)

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        """Their workers commit what is ready and end before the group goes on."""
        self._joined = False
        for partition in revoked:
            self._unread.pop(partition, None)
            self._decompressing.pop(partition, None)
        leaving = [self._workers.pop(tp) for tp in revoked if tp in self._workers]
        await asyncio.gather(*(worker.close() for worker in leaving))
        for worker in leaving:
            partition = TopicPartition(worker.topic, worker.partition)
            self._settled[partition] = (worker.committed, worker.log)
        self._report()

    async def _seek(self, worker: PartitionWorker) -> int:
        """Put the consumer on the worker's committed offset; returns that offset."""
        partition = TopicPartition(worker.topic, worker.partition)
        self._consumer.pause(partition)
        worker.step = "the committed offset is asked for"

        def refused(error: KafkaError) -> None:
            worker.step = f"the committed offset is asked for: {said(error)}"

        committed, before = await self._consumer.committed_of_log(partition, refused)
        if committed is None:
            # A topic that is deleted takes the group's offsets with it.
            here = (worker.committed, worker.log)
            settled = self._settled.get(partition, (0, LogIdentity()))
            last, before = max(here, settled, key=lambda pair: pair[0])
            committed = last or None
        if worker.epoch > FIRST_OPENING:
            self._ids.pop(worker.topic, None)  # It opens again since something has changed.
        worker.step = "the topic's id is asked for"
        now = await self._topic_id(worker.topic)
        if committed is not None and now and before == LogIdentity():
            # Commits of ours name the topic's id.
            self._tell_foreign(
                ForeignCommit(self._spec.group, worker.topic, worker.partition, committed)
            )
        change = before.change(now, None)
        deadline = asyncio.get_running_loop().time() + SEEK_SECONDS
        worker.step = "the ends of the log are asked for"
        while True:
            beginning = (await self._consumer.beginning_offsets([partition]))[partition]
            end = (await self._consumer.end_offsets([partition]))[partition]
            known = change is not None or committed is None or committed <= end
            if known or asyncio.get_running_loop().time() > deadline:
                break
            worker.step = f"the log holds {beginning} to {end}, not yet the committed {committed}"
            await asyncio.sleep(SEEK_SECONDS / 10)
        if committed is not None and beginning < committed <= end:
            worker.step = "the last record that was read is asked for"
            change = await self._consumer.change_of(partition, before, now)
        offset, loss = resume(
            worker.topic,
            worker.partition,
            committed,
            beginning,
            end,
            self._policy.offset_reset,
            change=change,
        )
        worker.log = replace(before if loss is None else LogIdentity(), topic_id=now)
        worker.loss = loss
        self._unread[partition] = Unread(self._policy.read)
        self._decompressing.pop(partition, None)
        self._consumer.seek(partition, offset)
        self._consumer.resume(partition)
        self._room.set()
        return offset

    async def _topic_id(self, topic: str) -> str:
        """The topic's id, asked once for the partitions that open together: an answer names every
        partition of the topic, and thousands that each read it take minutes."""
        now = asyncio.get_running_loop().time()
        asked, answer = self._ids.get(topic, (float("-inf"), None))
        if answer is None or now - asked > ID_SECONDS:
            answer = asyncio.ensure_future(self._consumer.known_topics([topic]))
            answer.add_done_callback(retrieve)
            self._ids[topic] = now, answer
        try:
            # Whoever gives up leaves it to the others that wait for it.
            return (await asyncio.shield(answer)).ids.get(topic, "")
        except Exception:
            self._ids.pop(topic, None)
            raise

    def _tell_loss(self, loss: OffsetLoss) -> None:
        _log.error("%s", loss)
        self._notes.append(loss)
        self._observer.lost(loss)

    def _tell_foreign(self, commit: ForeignCommit) -> None:
        if commit not in self._notes:
            _log.warning("%s", commit)
            self._notes.append(commit)

    async def _drain(self, deadline: float) -> None:
        """Wait until all that was read is committed, or the deadline (loop time) has passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.gather(*(worker.drained() for worker in self._workers.values()))
