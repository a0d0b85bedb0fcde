"""A child process for fault tests: copies topics through the real processor, and can kill or
stop itself at a chosen step of a chosen transaction.

    python -m tests.support.copier BOOTSTRAP PREFIX INSTANCE [STEP:NUMBER:SIGNAL]
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence

from ares_stream.errors import BrokerError
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.contract import ProcessorObserver, ProcessorPolicy
from ares_stream.streaming.processor import Processor
from ares_stream.streaming.records import InboundRecord, OutboundRecord, Outcome, Rejection

POISON = b"poison"
GROUP = "copier"


class Copy:
    """One output per record, with where it came from; a value that begins with POISON is
    refused."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    async def handle(self, records: Sequence[InboundRecord]) -> Sequence[Outcome]:
        await asyncio.sleep(0)
        return [self._copy(record) for record in records]

    def _copy(self, record: InboundRecord) -> Outcome:
        if (record.value or b"").startswith(POISON):
            return Rejection.of("decode", ValueError("poison"))
        source = f"{record.topic}:{record.partition}:{record.offset}".encode()
        return (
            OutboundRecord(f"{self._prefix}out", record.key, record.value, (("source", source),)),
        )


class Witness(ProcessorObserver):
    """Says on stdout which partitions come."""

    def assigned(self, topic: str, partition: int) -> None:
        print(f"assigned {partition}", flush=True)


class Saboteur(Witness):
    """Sends this process a signal when a step ends for the NUMBER-th time."""

    def __init__(self, step: str, number: int, signal_number: signal.Signals) -> None:
        self._step = step
        self._left = number
        self._signal = signal_number

    def step(self, name: str) -> None:
        if name == self._step:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)


async def main(bootstrap: str, prefix: str, instance: str, sabotage: str = "") -> None:
    observer = Witness()
    if sabotage:
        step, number, name = sabotage.split(":")
        observer = Saboteur(step, int(number), signal.Signals[name])
    copying = Processor(
        KafkaConnection(bootstrap=bootstrap),
        service="copier",
        group=f"{prefix}{GROUP}",
        topics=[f"{prefix}in"],
        handler=Copy(prefix),
        deadletter_topic=f"{prefix}dead",
        id_prefix=prefix,
        # Many small transactions: many places to die in.
        policy=ProcessorPolicy(
            window_records=16,
            commit_records=20,
            commit_seconds=0.02,
            # The least that a broker allows: a test need not wait for a dead member.
            session_seconds=float(os.environ.get("COPIER_SESSION_SECONDS", "6")),
        ),
        observer=observer,
        group_instance_id=instance or None,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, copying.stop)
    await copying.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    try:
        asyncio.run(main(*sys.argv[1:]))
    except BrokerError as error:
        sys.exit(f"{error}")
