"""One input partition's way to exactly once: its transactional producer, its watermark, its
commits.

A worker opens (start the producer, which fences the owner before; read the committed offset;
seek), then commits batch after batch. A transaction that fails in any way ends the producer;
the worker opens again and reads everything after the last commit once more. The new producer's
start settles what the old one left open, so a worker never aborts and never asks what became
of a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
    RecordListTooLargeError,
)

from ares_stream.errors import LimitError
from ares_stream.streaming.breaker import Breaker
from ares_stream.streaming.contract import SessionSpec
from ares_stream.streaming.deadletters import batch_size, dead_letter, fits, kept_whole
from ares_stream.streaming.faults import client_faults, explained, first_refusal, said
from ares_stream.streaming.log_identity import LastRecord, LogIdentity
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection
from ares_stream.streaming.resume import OffsetLoss
from ares_stream.streaming.sending import Unsent
from ares_stream.streaming.shared_clients import SharedClients
from ares_stream.streaming.transactions import TransactionalProducer
from ares_stream.streaming.watermark import Watermark

OPEN_SECONDS: Final = 30.0
"""A coordinator that moves is back within this; a start that takes longer hangs for ever."""
CLOSE_SECONDS: Final = 20.0
"""A revoked partition may finish its transaction, well inside the rebalance time-out."""
SLOW_COMMIT_SECONDS: Final = 5.0
"""KAFKA-17754: after a commit this slow a late EndTxn could end a later transaction of the same
epoch. So the worker opens again, which starts a new one and reads the committed offset: whoever
slept so long may have lost the partition, and must not go on from memory."""
REOPEN_PAUSE_SECONDS: Final = 0.2
MAX_PAUSE_SECONDS: Final = 1.0
"""A worker opens again and again: the session's watch says when that is no use."""
BATCH_BYTES: Final = 128 << 10
"""A commit of the usual size is one batch of each partition."""
OPENINGS: Final = 16
"""Workers of a session that open at once: a broker that hundreds of producers ask at the same
moment answers none of them in time."""
TURNS: Final = 8
"""Transactions of a session at once: more of them take the longer each, and readers of committed
records wait for the slowest."""
_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


class PartitionLost(Exception):
    """Another owner has this partition, or the coordinator gave the transaction up."""


class _Refused(Exception):
    """The broker refuses the size of what some input records turned into."""


class PartitionState(Enum):
    """Where a PartitionWorker stands."""

    OPENING = "opening"
    """The producer starts and the committed offset is read; nothing is taken in."""
    OPEN = "open"
    """Records are taken in, outcomes committed."""
    CLOSING = "closing"
    """No record is taken in; outcomes that are ready are committed."""
    CLOSED = "closed"
    """The producer has ended."""


TRANSITIONS: Final[Mapping[PartitionState, frozenset[PartitionState]]] = {
    PartitionState.OPENING: frozenset(
        {PartitionState.OPEN, PartitionState.CLOSING, PartitionState.CLOSED}
    ),
    PartitionState.OPEN: frozenset(
        {PartitionState.OPENING, PartitionState.CLOSING, PartitionState.CLOSED}
    ),
    PartitionState.CLOSING: frozenset({PartitionState.CLOSED}),
    PartitionState.CLOSED: frozenset(),
}


@dataclass(slots=True)
class Inflight:
    """Records and bytes that all workers of a session have read and not yet committed."""

    records: int = 0
    size: int = 0


class PartitionWorker:
    """The processing of one partition, from its assignment to its revocation.

             ┌──── a transaction failed ────┐
             ▼                              │
       ┌──► OPENING ─── committed offset ──► OPEN ───┐
    created  │  │                            │  │    │
             │  └────────── close ───────────┼──┴──► CLOSING
             │                               │         │
             └── lost, forbidden, failed ────┴─────────┴──► CLOSED
    """

    def __init__(
        self,
        spec: SessionSpec,
        topic: str,
        partition: int,
        *,
        breaker: Breaker,
        inflight: Inflight,
        turns: asyncio.Semaphore,
        openings: asyncio.Semaphore,
        clients: SharedClients,
        room: Callable[[], None],
        lost: Callable[[OffsetLoss], None],
        size_limits: Mapping[str, int],
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.epoch = 0
        """Results that carry another epoch were read before the worker opened last: dropped."""
        self.position = 0
        """The next offset to read."""
        self.highwater = 0
        self.log = LogIdentity()
        """Of what is read, as of the last commit."""
        self.leader_epoch = -1
        """Of the last batch that was read; -1 before the first, and where it is not known."""
        self.loss: OffsetLoss | None = None
        """What the log no longer held when the worker opened: told once an offset behind it is
        committed, so that it is told once."""
        self.commits = 0
        """Transactions committed."""
        self.step = ""
        """Of opening, which it is at, in words."""
        self._state = PartitionState.OPENING
        self._committed = 0
        self._advance_to = 0
        self._reopening = False
        self._failure = ""
        self._spec = spec
        self._policy = spec.policy
        self._observer = spec.observer
        self._breaker = breaker
        self._inflight = inflight
        self._turns = turns
        self._openings = openings
        self._clients = clients
        self._room = room
        self._lost = lost
        self._size_limits = size_limits
        self._producer: TransactionalProducer | None = None
        self._watermark: Watermark[Outcome] = Watermark()
        self._records: dict[int, InboundRecord] = {}
        self._bytes = 0
        self._alone: set[int] = set()
        """Offsets whose outputs share no batch: one of theirs was refused for its size."""
        self._too_large_outputs: set[int] = set()
        self._too_large_letters: set[int] = set()
        self._oldest_ready: float | None = None
        self._transaction_seconds = 0.0
        """What the last transaction took."""
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()

    @property
    def state(self) -> PartitionState:
        """Where it stands; see the class."""
        return self._state

    @property
    def is_open(self) -> bool:
        """Whether records may be added."""
        return self._state is PartitionState.OPEN and not self._reopening

    def _is_closing(self) -> bool:
        return self._state in (PartitionState.CLOSING, PartitionState.CLOSED)

    def _enter(self, state: PartitionState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(
                f"{self.topic}-{self.partition}: {self._state.value} cannot become {state.value}"
            )
        self._state = state

    @property
    def committed(self) -> int:
        """The offset after the last one that is settled."""
        return self._committed

    def missing(self) -> str | None:
        """Why no record is taken in, if none is."""
        if self._state is not PartitionState.OPENING:
            return None
        reason = self._failure or (f": {self.step}" if self.step else "")
        answer = self._producer.waits_for if self._producer is not None else ""
        return f"{self.topic}-{self.partition} does not open yet{reason}" + (
            f" ({answer})" if answer else ""
        )

    @property
    def read_of(self) -> LogIdentity:
        """Of what is read, as of the last record that was taken in."""
        return replace(self.log, last=_last_of(self._records.values()) or self.log.last)

    @property
    def inflight_records(self) -> int:
        """Records read and not yet committed."""
        return len(self._records)

    @property
    def inflight_bytes(self) -> int:
        """Their bytes."""
        return self._bytes

    def add(self, record: InboundRecord) -> None:
        """Take a record in."""
        size = record.size
        self._watermark.add(record.offset, size)
        self._records[record.offset] = record
        self._bytes += size
        self._inflight.records += 1
        self._inflight.size += size
        self.position = record.offset + 1
        self._idle.clear()

    def complete(self, offset: int, outcome: Outcome, epoch: int) -> None:
        """Give a record its outcome. A stale epoch's outcome is dropped: its record is read
        again."""
        if epoch != self.epoch or self._state is PartitionState.CLOSED:
            return
        self._watermark.complete(offset, outcome)
        if self._watermark.ready:
            if self._oldest_ready is None:
                self._oldest_ready = time.monotonic()
            self._changed.set()

    def advance(self, position: int) -> None:
        """Have the group's offset moved to `position` when nothing is in flight before it: behind
        the last record stand the marker of its transaction and what was aborted, which nobody
        reads and everybody counts as lag (KEDA#5675)."""
        if self.is_open and not self._records and position > self._committed:
            self._advance_to = position
            self._changed.set()

    def reopen(self) -> None:
        """Commit what is in flight, then read the committed offset again."""
        self._reopening = True
        self._changed.set()

    def report_lag(self) -> None:
        """Tell the observer how far the last commit is behind what was written."""
        behind = max(self.highwater, self.position) - self._committed
        self._observer.lag(self.topic, self.partition, behind)

    async def drained(self) -> None:
        """Return once nothing is in flight."""
        await self._idle.wait()

    async def close(self, *, seconds: float = CLOSE_SECONDS) -> None:
        """Commit what is ready, end the producer. Returns within `seconds`."""
        if not self._is_closing():
            self._enter(PartitionState.CLOSING)
        self._closing.set()
        self._changed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def run(self, seek: Callable[[PartitionWorker], Awaitable[int]]) -> None:
        """Live until `close`. `seek` puts the consumer on the committed offset and returns it.

        Raises PartitionLost when another owner fenced this one and the group does not give the
        partition to anyone else, and StreamError for what only a person can mend. Whatever else
        fails is tried again until `close`.
        """
        failures = 0
        owned = False
        try:
            while not self._is_closing():
                try:
                    with client_faults():
                        if not await self._opened(seek):
                            return
                        if not owned:
                            owned = True
                            self._observer.assigned(self.topic, self.partition)
                        while await self._due():
                            # What is ready meanwhile goes with the rest.
                            async with share(self._turns, self._policy.commit_seconds):
                                slow = await self._commit()
                            failures = 0
                            self._failure = ""
                            if slow:
                                break
                except (ProducerFenced, InvalidProducerEpoch) as error:
                    self._observer.transaction("fenced")
                    if await self._given_up():
                        return
                    raise PartitionLost(f"{self.topic}-{self.partition}{self._failure}") from error
                except (KafkaError, OSError, TimeoutError, _Refused) as error:
                    await self._discard(failed=not isinstance(error, _Refused))
                    self._raise_forbidden(error)
                    self._observer.transaction(_outcome_of(error))
                    if not isinstance(error, _Refused):
                        failures += 1
                        self._failure = f": {said(error)}"
                    with contextlib.suppress(TimeoutError):
                        pause = min(MAX_PAUSE_SECONDS, REOPEN_PAUSE_SECONDS * failures)
                        async with asyncio.timeout(pause):
                            await self._closing.wait()
        finally:
            if self._state is not PartitionState.CLOSED:
                self._enter(PartitionState.CLOSED)
            self.epoch += 1
            self._clear()
            await self._discard()
            if owned:
                self._observer.revoked(self.topic, self.partition)
            self._closed.set()

    async def _given_up(self) -> bool:
        """Whether the group takes the partition from a worker that was fenced, as it does from a
        process that was taken for dead: the next heartbeat says so. A session that ended instead
        would leave its other partitions alone, and leave the group a member that nobody is."""
        if self._state is PartitionState.OPEN:
            self._enter(PartitionState.OPENING)
        self.epoch += 1
        self._clear()
        name = self._spec.transactional_id(self.topic, self.partition)
        self._failure = f": another owner has fenced it (transactional id {name})"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._policy.session_seconds):
                await self._closing.wait()
        return self._is_closing()

    def _raise_forbidden(self, error: Exception) -> None:
        """Raise AccessError where the broker forbids what failed, LimitError where it lies beyond
        one of its limits."""
        if first_refusal([error]) is not None:
            where = self._spec.connection.bootstrap
            raise explained(error, where, on_topic="Write", name=self._spec.group) from error

    async def _opened(self, seek: Callable[[PartitionWorker], Awaitable[int]]) -> bool:
        """Open, unless it is closed first: nothing is in flight yet, and a producer that starts
        late would fence the next owner's."""
        opening = asyncio.create_task(self._open(seek))
        closing = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait({opening, closing}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                await opening
            return opening.done()
        finally:
            for task in (opening, closing):
                task.cancel()
            await asyncio.gather(opening, closing, return_exceptions=True)

    async def _open(self, seek: Callable[[PartitionWorker], Awaitable[int]]) -> None:
        if self._state is PartitionState.OPEN:
            self._enter(PartitionState.OPENING)
        self.epoch += 1
        self.highwater = 0
        self.leader_epoch = -1
        self._clear()
        self.step = "it waits for its turn"
        async with share(self._openings, OPEN_SECONDS):
            self.step = "its producer starts"
            await self._start_producer()
            async with asyncio.timeout(OPEN_SECONDS):
                self.position = self._committed = self._advance_to = await seek(self)
        if not self._is_closing():
            self._enter(PartitionState.OPEN)

    def _clear(self) -> None:
        self._watermark = Watermark()
        self._inflight.records -= len(self._records)
        self._inflight.size -= self._bytes
        self._records.clear()
        self._bytes = 0
        self._oldest_ready = None
        self._idle.set()
        self._room()

    async def _start_producer(self) -> None:
        await self._discard()
        async with asyncio.timeout(OPEN_SECONDS):
            self._producer = TransactionalProducer(
                await self._clients.take(self.partition),
                self._spec.transactional_id(self.topic, self.partition),
                timeout_ms=int(self._policy.transaction_seconds * 1000),
                # A batch of several records must fit where each of them does.
                batch_bytes=min((BATCH_BYTES, *self._size_limits.values())),
            )
            await self._producer.start()

    async def _discard(self, *, failed: bool = False) -> None:
        """Let go of the producer, whatever state it is in."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._clients.give_back(producer.client, failed=failed)

    async def _due(self) -> bool:
        """Wait until there is something to commit; False when closing or opening again, and none
        is ready."""
        while True:
            ready = self._watermark.ready
            if self._reopening and not self._records:
                self._reopening = False
                return False
            moves = self._advance_to > self._committed or self.loss is not None
            if not self._records and moves and not self._is_closing():
                return True
            if ready and (self._is_closing() or ready >= self._policy.commit_records):
                return True
            if self._is_closing():
                return False
            wait = None
            if ready and self._oldest_ready is not None:
                patience = commit_after(
                    self._policy.commit_seconds,
                    self._policy.gather_seconds,
                    self._transaction_seconds,
                )
                wait = self._oldest_ready + patience - time.monotonic()
                if wait <= 0:
                    return True
            self._changed.clear()
            # A timer of its own: getmany ignores its time-out during a rebalance.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _commit(self) -> bool:
        """One transaction: outputs, dead letters and the offset after them. Whether it was so slow,
        or so much was lost on the way, that another epoch must follow."""
        batch = [
            (offset, self._fitting(offset, outcome))
            for offset, outcome in self._watermark.take(self._policy.commit_records)
        ]
        end = batch[-1][0] + 1 if batch else self._advance_to
        last = _last_of([self._records[offset] for offset, _ in batch])
        log = replace(self.log, last=last or self.log.last)
        if not self._watermark.ready:
            self._oldest_ready = None
        outputs = self._outputs(batch)
        started = time.monotonic()
        async with asyncio.timeout(self._policy.transaction_seconds):
            producer = self._producer
            assert producer is not None  # noqa: S101 - the worker is open
            self._observer.step("begun")
            alone = {place for place, (offset, _) in enumerate(outputs) if offset in self._alone}
            records = [record for _, record in outputs]
            await producer.begin(records, self._spec.group, alone=alone)
            self._observer.step("added")
            place = TopicPartition(self.topic, self.partition)
            unsent = await producer.write({place: (end, str(log))})
            self._raise_unsent(outputs, unsent)
            self._observer.step("written")
            committing = time.monotonic()
            await producer.commit()
            self._observer.step("committed")
        ended = time.monotonic()
        self._transaction_seconds = ended - started
        self.log = log
        self._settle(batch, end, ended - started)
        return ended - committing > SLOW_COMMIT_SECONDS or producer.lacks_answers

    def _fitting(self, offset: int, outcome: Outcome) -> Outcome:
        """The outcome, or a rejection where the topic would not take an output: known before
        it is sent, since a broker refuses a whole transaction for one."""
        if isinstance(outcome, Rejection):
            return outcome
        for output in outcome:
            limit = self._size_limits.get(output.topic)
            if not fits(output, limit):
                size = batch_size(output)
                reason = f"its output of {size} bytes is larger than {output.topic} takes ({limit})"
                return Rejection("publish", "ares_stream.errors.StreamError", reason)
        if offset in self._too_large_outputs:
            reason = "its output is larger than its topic takes"
            return Rejection("publish", "ares_stream.errors.StreamError", reason)
        return outcome

    def _outputs(self, batch: Sequence[tuple[int, Outcome]]) -> list[tuple[int, OutboundRecord]]:
        """What the batch turns into, each with the offset of its input."""
        outputs: list[tuple[int, OutboundRecord]] = []
        topic = self._spec.deadletter_topic
        for offset, outcome in batch:
            if isinstance(outcome, Rejection):
                letter = dead_letter(
                    self._records[offset],
                    outcome,
                    topic,
                    service=self._spec.service,
                    failed_at_ms=int(time.time() * 1000),
                    limit=0 if offset in self._too_large_letters else self._size_limits.get(topic),
                )
                outputs.append((offset, letter))
            else:
                outputs.extend((offset, output) for output in outcome)
        return outputs

    def _raise_unsent(
        self, outputs: Sequence[tuple[int, OutboundRecord]], unsent: Mapping[int, Unsent]
    ) -> None:
        """Raise _Refused where the broker finds some too large, and what else kept one from being
        written."""
        if not unsent:
            return
        failed = [item.error for item in unsent.values()]
        if (forbidden := first_refusal(failed)) is not None:
            raise forbidden
        refused = [
            (*outputs[place], item.shared)
            for place, item in unsent.items()
            if isinstance(item.error, _TOO_LARGE)
        ]
        self._refuse(refused)
        raise _Refused if refused else failed[0]

    def _refuse(self, outputs: Sequence[tuple[int, OutboundRecord, bool]]) -> None:
        """Remember whose outputs the broker took for too large: where the limits of the topics
        are not known here, or have changed. What shared a batch is sent alone the next time."""
        for offset, output, shared in outputs:
            if shared:
                self._alone.add(offset)
            elif output.topic != self._spec.deadletter_topic:
                self._too_large_outputs.add(offset)
            elif kept_whole(output):
                self._too_large_letters.add(offset)
            else:
                raise LimitError(
                    f"{output.topic} does not even take the coordinates of "
                    f"{self.topic}-{self.partition}@{offset} ({batch_size(output)} bytes); "
                    "raise its max.message.bytes"
                )

    def _settle(self, batch: Sequence[tuple[int, Outcome]], end: int, seconds: float) -> None:
        notes: list[object] = []
        for offset, outcome in batch:
            size = self._records.pop(offset).size
            self._bytes -= size
            self._inflight.records -= 1
            self._inflight.size -= size
            self._alone.discard(offset)
            self._too_large_outputs.discard(offset)
            self._too_large_letters.discard(offset)
            refusal = outcome.reason if isinstance(outcome, Rejection) else None
            if isinstance(outcome, Rejection):
                self._observer.dead_lettered(self.topic, outcome.stage)
            else:
                notes += [item.note for item in outcome if item.note is not None]
                if not outcome:
                    self._observer.left_out(self.topic)
            self._breaker.count(self.topic, self.partition, offset, refusal)
        self._observer.settled(notes)
        self._observer.transaction("committed")
        self._observer.committed(self.topic, self.partition, len(batch), seconds)
        self.commits += 1
        self._committed = end
        if self.loss is not None:
            self._lost(self.loss)
            self.loss = None
        self.report_lag()
        if not self._records:
            self._idle.set()
        self._room()


@contextlib.asynccontextmanager
async def share(places: asyncio.Semaphore, seconds: float) -> AsyncIterator[None]:
    """One of the places. Who has waited so long goes without, since those who have one may hang on
    their broker."""
    taken = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await places.acquire()
            taken = True
    try:
        yield
    finally:
        if taken:
            places.release()


def _last_of(records: Iterable[InboundRecord]) -> LastRecord | None:
    """Of records in their order, the last that was read whole."""
    for record in reversed([*records]):
        if (last := LastRecord.of(record)) is not None:
            return last
    return None


def commit_after(interval: float, gather: float, transaction: float) -> float:
    """Seconds that an outcome waits for others, so that readers see it within the interval: its
    record may have waited to be read with others, and who reads committed records waits for a
    neighbour's transaction too. Half of the interval at least, so that a slow broker is not asked
    more and more often."""
    return interval - min(gather + 2 * transaction, interval / 2)


def _outcome_of(error: Exception) -> str:
    if isinstance(error, _Refused):
        return "refused"
    return "unknown" if isinstance(error, TimeoutError) else "failed"
