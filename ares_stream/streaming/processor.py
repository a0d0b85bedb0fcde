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
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

from ares_stream.errors import BrokerError, LoginError, StreamError
from ares_stream.streaming.admin import count_partitions, message_limits
from ares_stream.streaming.breaker import Breaker
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import (
    Handler,
    ProcessorObserver,
    ProcessorPolicy,
    SessionSpec,
)
from ares_stream.streaming.faults import client_faults, explained
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.resume import ForeignCommit, OffsetLoss
from ares_stream.streaming.session import PASSING, Session

_log = logging.getLogger(__name__)
MAX_NOTES: Final = 20
BACKOFF_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


class Processor:
    """Reads topics as a member of `group`, hands windows to `handler`, publishes outcomes and
    commits offsets in one transaction per partition and batch. `output_topics` are those that
    the handler writes: a missing one is told at the start.

    `run` returns after `stop` once everything in flight is committed or the drain's deadline
    has passed, and raises TopicError (a topic is missing), BrokerError (no
    progress for longer than the patience), BreakerOpen (too many dead letters) or what the
    handler's owner raised.
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
        patience: Patience | None = None,
    ) -> None:
        self._spec = SessionSpec(
            connection=connection,
            service=service,
            group=group,
            topics=tuple(topics),
            handler=handler,
            deadletter_topic=deadletter_topic,
            id_prefix=id_prefix,
            policy=policy or ProcessorPolicy(),
            observer=observer or ProcessorObserver(),
            group_instance_id=group_instance_id,
            output_topics=tuple(output_topics),
        )
        self._patience = patience or Patience()
        self._notes: deque[OffsetLoss | ForeignCommit] = deque(maxlen=MAX_NOTES)
        self._breaker = Breaker(self._spec.policy.breaker)
        self._size_limits: Mapping[str, int] = {}
        self._stopping = asyncio.Event()
        self._session: Session | None = None
        self._member_id = ""
        """As the group knows this process."""

    @property
    def partitions(self) -> tuple[tuple[str, int], ...]:
        """Partitions that are open here now."""
        return () if self._session is None else self._session.open_partitions()

    def missing(self) -> str | None:
        """What keeps it from reading and committing now; None while nothing does."""
        for topic, reason in self._breaker.paused.items():
            return f"{topic} is not read: {reason}"
        if self._session is not None:
            return self._session.missing()
        return self._patience.reason or "no session with Kafka yet"

    def notes(self) -> tuple[str, ...]:
        """What an operator should know although it works: the latest losses of offsets, and
        offsets that somebody else committed."""
        return tuple(map(str, self._notes))

    def stop(self) -> None:
        """Read no more; `run` commits what is in flight and returns. Safe in a signal handler."""
        self._stopping.set()

    async def run(self) -> None:
        """Process until `stop`. See the class for what it raises."""
        failures = 0
        checked = False
        while not self._stopping.is_set():
            try:
                if not checked:
                    await self._check_topics()
                    checked = True
                with client_faults():
                    await self._run_session()
            except (*PASSING, LoginError) as error:
                failures = 1 if self._patience.reason is None else failures + 1
                explanation = self._explained(error)
                self._patience.failed(explanation)
                _log.warning("the session with Kafka is made anew: %s", explanation)
                self._spec.observer.restarted(type(error).__name__)
            else:
                return
            pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()

    def _explained(self, error: BaseException) -> StreamError:
        if isinstance(error, StreamError):
            return error
        if isinstance(error.__cause__, BrokerError):
            return error.__cause__
        return explained(error, self._spec.connection.bootstrap, name=self._spec.group)

    async def _run_session(self) -> None:
        session = Session(
            self._spec,
            stopping=self._stopping,
            patience=self._patience,
            notes=self._notes,
            breaker=self._breaker,
            size_limits=self._size_limits,
            member_id=self._member_id,
        )
        self._session = session
        try:
            await session.run()
        finally:
            self._session = None
            self._member_id = session.member_id

    async def _check_topics(self) -> None:
        try:
            await count_partitions(self._spec.connection, self._spec.all_topics)
            self._size_limits = await message_limits(
                self._spec.connection, [*self._spec.output_topics, self._spec.deadletter_topic]
            )
        except BrokerError as error:
            raise ConnectionError(str(error)) from error
