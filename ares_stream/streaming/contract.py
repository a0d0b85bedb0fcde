"""What the processor asks of its user, and what it lets the user watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ares_stream.streaming.breaker import BreakerPolicy
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.records import InboundRecord, Outcome, ReadLimits
from ares_stream.streaming.resume import OffsetLoss, OffsetReset

MOST_GATHER_SECONDS: Final = 0.02


class Handler(Protocol):
    """Turns records into outcomes. May be called several times at once."""

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        """One outcome per record, in order. A raise means that the batch failed: the processor
        halves it until the record that cannot be handled stands alone."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessorPolicy:
    """Bounds and rhythm. The defaults were measured on one broker on loopback, where a
    transaction waits about 40 ms whatever it holds."""

    window_records: int = 128
    concurrency: int = 2
    inflight_records: int = 2048
    """Of which a partition gets a quarter at least: enough for `commit_records` to be reached
    before `commit_seconds` has passed. Memory is bounded by the bytes."""
    inflight_bytes: int = 64 << 20
    commit_records: int = 250
    commit_seconds: float = 0.25
    transaction_seconds: float = 30.0
    drain_seconds: float = 25.0
    session_seconds: float = 9.0
    """A process that is silent this long loses its partitions; nine heartbeats may be late. It
    bounds how long the partitions of a killed process stand still."""
    heartbeat_seconds: float = 1.0
    rebalance_seconds: float = 60.0
    """Time to finish open transactions before partitions move."""
    poll_interval_seconds: float = 300.0
    """A handler that takes longer for what is in flight counts as stuck."""
    metadata_seconds: float = 30.0
    """A new partition is read within this."""
    stall_seconds: float = 60.0
    """Work that moves nothing for this long is told by readiness; twice as long, and the session
    is made anew."""
    offset_reset: OffsetReset = "earliest"
    """Where a partition is read on whose committed offset its log does not hold."""
    fetch_bytes: int = 8 << 20
    partition_fetch_bytes: int = 4 << 20
    """A larger record comes too, alone (KIP-74)."""
    read: ReadLimits = field(default_factory=ReadLimits)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)

    @property
    def gather_seconds(self) -> float:
        """What comes within this is fetched and handled together. A fetch and a window for every
        record would cost several times as much, and a commit waits longer than this anyway."""
        return min(MOST_GATHER_SECONDS, self.commit_seconds / 10)


class ProcessorObserver:
    """What happens, for metrics. Every method does nothing; override what is of interest."""

    def consumed(self, topic: str, records: int) -> None:
        """Records were read."""

    def inflight(self, records: int, size: int) -> None:
        """Records and bytes read and not yet committed."""

    def committed(self, topic: str, partition: int, records: int, seconds: float) -> None:
        """A transaction committed."""

    def settled(self, notes: Sequence[object]) -> None:
        """The notes of records whose transaction committed: each once, whatever was tried."""

    def transaction(self, outcome: str) -> None:
        """A transaction ended: committed, fenced, refused, failed or unknown."""

    def dead_lettered(self, topic: str, stage: str) -> None:
        """A dead letter was committed."""

    def left_out(self, topic: str) -> None:
        """A record that is no concern of the handler was committed: it turned into nothing."""

    def lag(self, topic: str, partition: int, records: int) -> None:
        """Records of a partition that are not committed yet."""

    def assigned(self, topic: str, partition: int) -> None:
        """A partition is processed here from now on."""

    def revoked(self, topic: str, partition: int) -> None:
        """A partition is no longer processed here."""

    def lost(self, loss: OffsetLoss) -> None:
        """The log of a partition does not hold its committed offset."""

    def breaker(self, topic: str, reason: str) -> None:
        """Too much of a topic was refused; no more of it is read."""

    def restarted(self, error: str) -> None:
        """The connection is made anew after this error."""

    def step(self, name: str) -> None:
        """A step of a transaction ends: begun, added (the partitions), written, committed."""


@dataclass(frozen=True, slots=True)
class SessionSpec:
    """What every session of a Processor is made from.

    `topics` are read as a member of `group` (a static one where `group_instance_id` is set);
    the handler writes to `output_topics`, and what it refuses goes to `deadletter_topic`.
    """

    connection: KafkaConnection
    service: str
    group: str
    topics: tuple[str, ...]
    handler: Handler
    deadletter_topic: str
    id_prefix: str
    policy: ProcessorPolicy
    observer: ProcessorObserver
    group_instance_id: str | None = None
    output_topics: tuple[str, ...] = ()

    @property
    def all_topics(self) -> tuple[str, ...]:
        """What must be there."""
        return (*self.topics, *self.output_topics, self.deadletter_topic)

    def transactional_id(self, topic: str, partition: int) -> str:
        """The same for every owner of a partition, so that the next one fences the last."""
        return f"{self.id_prefix}{self.service}.{topic}.{partition}"
