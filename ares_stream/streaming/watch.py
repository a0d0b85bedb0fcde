"""Whether a session moves: lag, markers at the end of a partition, stalls, patience.

Asks the broker by requests of its own, so that a consumer which fetches no more is found out
(aiokafka#1154: stuck after a broker's restart, with nothing that says so).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from ares_stream.streaming.contract import SessionSpec
from ares_stream.streaming.faults import client_faults, missing_topics
from ares_stream.streaming.fetching import BatchConsumer
from ares_stream.streaming.partition import PartitionWorker
from ares_stream.streaming.patience import Patience

TICK_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 5.0
"""Between two questions for the end of the partitions; one request per broker."""
ANSWER_SECONDS: Final = 8.0


class Watch:
    """Looks after the workers of one session. `buffered` says whether records of a partition were
    fetched and not yet added to its worker, `is_paused` whether a topic is not read on purpose,
    `has_joined` whether the group's balance has come to this member."""

    def __init__(
        self,
        spec: SessionSpec,
        consumer: BatchConsumer,
        workers: Mapping[TopicPartition, PartitionWorker],
        *,
        buffered: Callable[[TopicPartition], bool],
        is_paused: Callable[[str], bool],
        has_joined: Callable[[], bool],
        patience: Patience,
    ) -> None:
        self._spec = spec
        self._consumer = consumer
        self._workers = workers
        self._buffered = buffered
        self._is_paused = is_paused
        self._has_joined = has_joined
        self._patience = patience
        self._silence: str | None = None
        self._absent: tuple[str, ...] = ()
        """Topics that are no longer there."""
        self._moves: dict[TopicPartition, tuple[tuple[int, int], float]] = {}
        self._stable: dict[TopicPartition, int] = {}
        self._commits = 0
        self._opened = 0
        """Most workers that were open at once: hundreds take longer to open than one may stand
        still."""
        self._missing_since: float | None = None
        self._checked = float("-inf")

    def missing(self) -> str | None:
        """What keeps the session from reading and committing now; None while nothing does."""
        if self._silence is not None:
            return self._silence
        if self._absent:
            return str(missing_topics(self._spec.connection.bootstrap, self._absent))
        if not self._has_joined():
            return f"the group {self._spec.group} is being joined or balanced"
        for partition, worker in list(self._workers.items()):
            reason = worker.missing() or self._stalled(partition, worker)
            if reason is not None:
                return reason
        return None

    async def run(self) -> None:
        """Look every second. Raises BrokerError when the patience ends, KafkaError when a new
        session may help."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = asyncio.get_running_loop().time()
            if now - self._checked >= LOOK_SECONDS:
                await self._look()
                self._checked = asyncio.get_running_loop().time()
            await self._note_positions()
            self._judge()

    async def _look(self) -> None:
        """Ask for the ends up to which transactions are settled. A standby asks for one of what
        it subscribed to, to know that the broker is there."""
        partitions = [tp for tp, worker in self._workers.items() if worker.is_open]
        try:
            with client_faults():
                async with asyncio.timeout(ANSWER_SECONDS):
                    ends = await self._consumer.end_offsets(
                        partitions or [TopicPartition(self._spec.topics[0], 0)]
                    )
                    known = await self._consumer.known_topics(self._spec.all_topics)
        except (KafkaError, OSError, TimeoutError) as error:
            where = self._spec.connection.bootstrap
            self._silence = f"Kafka at {where} does not answer: {type(error).__name__}"
        else:
            self._silence = None
            self._absent = known.absent
            self._stable.update(ends)
            for partition in partitions:
                worker = self._workers.get(partition)
                found = known.ids.get(partition.topic, "")
                if worker is not None and worker.log.change(found, None) is not None:
                    worker.reopen()  # Its offsets are those of a topic that is gone.

    async def _note_positions(self) -> None:
        now = asyncio.get_running_loop().time()
        for partition, worker in list(self._workers.items()):
            if not worker.is_open:
                self._moves.pop(partition, None)
                continue
            with contextlib.suppress(IllegalStateError, TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    position = int(await self._consumer.position(partition))
                end = max(self._consumer.highwater(partition) or 0, self._stable.get(partition, 0))
                worker.highwater = max(worker.highwater, end) if end else worker.highwater
                if not worker.inflight_records and not self._buffered(partition):
                    worker.advance(position)
                worker.report_lag()
                state = (position, worker.committed)
                # Who has nothing to do stands still without being stuck.
                idle = not worker.inflight_records and position >= worker.highwater
                if idle or self._moves.get(partition, (None, 0.0))[0] != state:
                    self._moves[partition] = (state, now)

    def _stalled(self, partition: TopicPartition, worker: PartitionWorker) -> str | None:
        if partition not in self._moves:
            return None
        (position, committed), since = self._moves[partition]
        still = asyncio.get_running_loop().time() - since
        if still < self._spec.policy.stall_seconds:
            return None
        name = f"{partition.topic}-{partition.partition}"
        if worker.inflight_records:
            return (
                f"{name}: nothing was committed for {still:.0f} s; {worker.inflight_records} "
                f"records are in flight after offset {committed}"
            )
        end = self._stable.get(partition, 0)
        if position < end and not self._is_paused(partition.topic):
            return f"{name}: nothing was read for {still:.0f} s at offset {position} of {end}"
        return None

    def _judge(self) -> None:
        """Count progress and its absence."""
        now = asyncio.get_running_loop().time()
        commits = sum(worker.commits for worker in self._workers.values())
        moved, self._commits = commits > self._commits, commits
        opened = sum(worker.is_open for worker in self._workers.values())
        opens, self._opened = opened > self._opened, max(opened, self._opened)
        missing = self.missing()
        if missing is None:
            self._missing_since = None
        elif self._missing_since is None or opens:
            self._missing_since = now
        if moved:
            self._patience.progressed()
        elif missing is not None:
            self._patience.waits(missing)
        elif busy := next((w for w in self._workers.values() if w.inflight_records), None):
            self._patience.waits(f"{busy.topic}-{busy.partition}: nothing is committed")
        else:
            self._patience.progressed()
        # Another session brings no topic back.
        if self._missing_since is not None and not moved and not self._absent:
            waited = now - self._missing_since
            if waited > 2 * self._spec.policy.stall_seconds:
                raise KafkaError(f"{missing} (for {waited:.0f} s)")
