"""A real policy's answers, and what the stream says of them: a real Kafka, the `ares scorer` as
a process of its own, and the repair topic read as a repairer reads it."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from ares_stream.audit.accounting import Account, account
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import StreamError
from ares_stream.lab.streams import PREFIX, Stream, held_by_topics, scorer_process, send, watch
from ares_stream.probes.local_target import LocalTarget
from ares_stream.probes.targets import Answer, Query
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.topics import REPAIR, specs, topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.repair.intake import collect
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import snapshot
from ares_stream.streaming.unreadable import PassedOver, UnreadableRecord

Steps = Callable[[int, int], None]
TEMPERATURE: Final = 0.7
_BATCH: Final = 32
_CHUNK: Final = 2 * _BATCH
_PARTITIONS: Final = 2


def turns(prompt: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message(role="user", content=prompt),)


def answer_all(
    model: Any, tokenizer: Any, asked: Sequence[tuple[str, int]], tokens: int, steps: Steps
) -> list[str]:
    """One answer to each (prompt, seed): greedy for seed 0, else sampled. Prompts of near-equal
    length are generated together."""
    policy = Policy(name="local", version="0")
    target = LocalTarget(
        model, tokenizer, policy, max_new_tokens=tokens, temperature=TEMPERATURE, batch=_BATCH
    )
    order = sorted(range(len(asked)), key=lambda k: (asked[k][1] > 0, len(asked[k][0]), asked[k]))
    found = [""] * len(asked)
    for start in range(0, len(order), _CHUNK):
        places = order[start : start + _CHUNK]
        queries = [Query(turns(asked[place][0]), asked[place][1]) for place in places]
        for place, result in zip(places, target.answer(queries), strict=True):
            found[place] = result.text if isinstance(result, Answer) else ""
        steps(start + len(places), len(order))
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """What the stream made of the conversations."""

    failures: tuple[CoupledFailure, ...]
    verdicts: tuple[Verdict, ...]
    account: Account

    def write(self, folder: Path) -> None:
        """To files of an existing folder."""
        for name, rows in (("failures", self.failures), ("verdicts", self.verdicts)):
            content = b"".join(row.encode() + b"\n" for row in rows)
            (folder / f"{name}.jsonl").write_bytes(content)
        (folder / "account.json").write_text(json.dumps(asdict(self.account)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Found:
        """What `write` wrote."""
        failures = (folder / "failures.jsonl").read_bytes().splitlines()
        verdicts = (folder / "verdicts.jsonl").read_bytes().splitlines()
        counted: dict[str, int] = json.loads((folder / "account.json").read_text(encoding="utf-8"))
        return cls(
            tuple(map(CoupledFailure.decode, failures)),
            tuple(map(Verdict.decode, verdicts)),
            Account(**counted),
        )


def stream(
    interactions: Sequence[Interaction],
    judge: Path,
    reward: Path,
    policy: DetectionPolicy,
    steps: Steps,
) -> Found:
    """Send them through a broker and a scorer that are started for it.

    Raises StreamError where not everything was settled exactly once, and what the broker and
    the scorer raise.
    """
    records = tuple((item.id.encode(), item.encode()) for item in interactions)
    return asyncio.run(_stream(Stream(records, (judge,), reward, None), policy, steps))


async def _stream(content: Stream, policy: DetectionPolicy, steps: Steps) -> Found:
    view = _Counted(len(content.records), steps)
    with tempfile.TemporaryDirectory(prefix="ares-real-") as scratch, EmbeddedBroker() as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        await create_topics(connection, specs(PREFIX, partitions=_PARTITIONS, replication=1))
        async with (
            scorer_process(connection, content, policy, Path(scratch)) as scorer,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(send(connection, content, view), name="send")
            await watch(connection, len(content.records), scorer, view)
        held = await held_by_topics(connection)
        ranges = await snapshot(connection, [topic_name(PREFIX, REPAIR)])
        batch = await collect(
            connection, ranges, {}, len(content.records), PassedOver(_refuse_unreadable)
        )
    counted = account(
        held.inputs, held.verdicts, held.letters, [item.verdict for item in held.repair]
    )
    if not counted.exactly_once or counted.dead_letters:
        raise StreamError(f"the stream did not settle every conversation once: {asdict(counted)}")
    failures = sorted(batch.failures, key=lambda item: item.interaction.id)
    verdicts = sorted(held.verdicts, key=lambda item: item.interaction_id)
    return Found(tuple(failures), tuple(verdicts), counted)


class _Counted:
    """Counts verdicts for a progress bar."""

    def __init__(self, total: int, steps: Steps) -> None:
        self._total, self._done, self._steps = total, 0, steps

    def sent(self, conversations: int) -> None:
        """Nothing."""

    def verdict(self, verdict: Verdict) -> None:
        """One more is settled."""
        self._done += 1
        self._steps(self._done, self._total)

    def failure(self, failure: CoupledFailure) -> None:
        """Nothing."""

    def refused(self) -> None:
        """Nothing; the account counts it."""


def _refuse_unreadable(record: UnreadableRecord) -> None:
    raise StreamError(f"{record}: written by this run, and cannot be read")
