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
from ares_stream.streaming.faults import client_faults, missing_topics, without_leader
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
        self._leaderless: tuple[TopicPartition, ...] = ()
        """Partitions that no broker holds now."""
        self._moves: dict[TopicPartition, tuple[tuple[int, int], float]] = {}
        self._stable: dict[TopicPartition, int] = {}
        self._commits = 0
        self._opened = 0
        """Most workers that were open at once: hundreds take longer to open than one may stand
        still."""
        self._missing_since: float | None = None
        self._was_joined = False
        self._checked = float("-inf")

    def missing(self) -> str | None:
        """What keeps the session from reading and committing now; None while nothing does."""
        return self._silence or self._gone() or self._stuck()

    def _gone(self) -> str | None:
        """What this session lacks and no other one would have."""
        if self._absent:
            return str(missing_topics(self._spec.connection.bootstrap, self._absent))
        return without_leader(self._leaderless) if self._leaderless else None

    def _stuck(self) -> str | None:
        """What another session may mend."""
        if not self._has_joined():
            return f"the group {self._spec.group} is being joined or balanced"
        for partition, worker in list(self._workers.items()):
            if partition not in self._leaderless:
                reason = worker.missing() or self._stalled(partition, worker)
                if reason is not None:
                    return reason
        return None

    def _mendable(self) -> str | None:
        """Why another session should be tried, if one should: not while outputs cannot be written,
        which brings every partition to a stop."""
        if self._absent or any(item.topic not in self._spec.topics for item in self._leaderless):
            return None
        return self._silence or self._stuck()

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
        """Ask which topics are there, and for the ends up to which transactions are settled. A
        standby asks for one of what it subscribed to, to know that the broker is there."""
        any_partition = TopicPartition(self._spec.topics[0], 0)
        try:
            with client_faults():
                async with asyncio.timeout(ANSWER_SECONDS):
                    known = await self._consumer.known_topics(self._spec.all_topics)
                    partitions = [tp for tp, worker in self._workers.items() if worker.is_open]
                    ends = await self._consumer.end_offsets(
                        set(partitions or [any_partition]) - set(known.leaderless)
                    )
        except (KafkaError, OSError, TimeoutError) as error:
            where = self._spec.connection.bootstrap
            self._silence = f"Kafka at {where} does not answer: {type(error).__name__}"
        else:
            self._silence = None
            self._absent, self._leaderless = known.absent, known.leaderless
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
        missing, mendable = self.missing(), self._mendable()
        joined = self._has_joined()
        joins, self._was_joined = joined and not self._was_joined, joined
        if mendable is None:
            self._missing_since = None
        elif self._missing_since is None or opens or joins:
            self._missing_since = now
        if moved:
            self._patience.progressed()
        elif missing is not None:
            self._patience.waits(missing)
        elif busy := next((w for w in self._workers.values() if w.inflight_records), None):
            self._patience.waits(f"{busy.topic}-{busy.partition}: nothing is committed")
        else:
            self._patience.progressed()
        if self._missing_since is not None and not moved:
            waited = now - self._missing_since
            if waited > self._bearable_seconds(joined=joined):
                raise KafkaError(f"{mendable} (for {waited:.0f} s)")

    def _bearable_seconds(self, *, joined: bool) -> float:
        """How long a session may lack something. A group is joined once its other members have let
        go, or are given up: who leaves before that has them wait once more."""
        policy = self._spec.policy
        twice = 2 * policy.stall_seconds
        return twice if joined else max(twice, policy.stall_seconds + policy.rebalance_seconds)
