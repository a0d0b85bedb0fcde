"""What a replay costs beside the scorer that made the verdicts, and whether its digests depend on
workers or on kills. One broker, one scorer, one run.

Both take the same records and the same models, which hardly compute, so that what is compared is
the host's own work: CPU seconds of the process that does it.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import psutil
from onnx import numpy_helper

from ares_stream.audit.replay.models import MadeWith
from ares_stream.audit.replay.report import Circumstances, report
from ares_stream.audit.replay.run import run_replay
from ares_stream.audit.replay.spec import ReplaySpec, Selection
from ares_stream.errors import ScoringError
from ares_stream.lab.experiments.throughput.models import (
    MAX_LENGTH,
    SAFE,
    conversations,
    learnt_tokenizer,
)
from ares_stream.models.bundles import (
    PAIR,
    Bundle,
    Calibration,
    InputTemplate,
    Lineage,
    Manifest,
    Outputs,
    RewardReference,
    write_bundle,
)
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.ports import free_port
from ares_stream.processes.service import Service, service_process, until_ready
from ares_stream.records.base import OffsetRange
from ares_stream.records.interaction import Interaction
from ares_stream.records.topics import PRODUCTION, VERDICTS, specs, topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.scoring.panel import Scores
from ares_stream.services.replayer import ReplayOptions, choose, make_spec, runtime
from ares_stream.services.settings import load_settings
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import OutboundRecord

PREFIX: Final = "bench."
PARTITIONS: Final = 4
WARM_UP: Final = 500
STALL_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.25
KINDS: Final[tuple[Literal["harm", "reward"], ...]] = ("harm", "reward")
BLOCK: Final = 512
"""Of the replays that are killed: many blocks, so that every kill finds some done and some not."""
WORKERS: Final = (1, 2, 4)
Step = Callable[[str], None]


async def bench(
    folder: Path, *, records: int, kills: int, seed: int, step: Step = lambda text: None
) -> dict[str, Any]:
    """Run all of it; the document. Raises ScoringError when verdicts stop coming."""
    judge, reward = null_bundles(folder)
    with EmbeddedBroker() as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        await create_topics(connection, specs(PREFIX, partitions=PARTITIONS, replication=1))
        step("the scorer makes the verdicts")
        live = await _live(connection, folder, judge, reward, records)
        bound = _Bound(connection, folder, judge, reward)
        step("replays on one core")
        costs = await bound.costs()
        step("one, two and four workers")
        digests = {str(workers): await bound.digests(workers) for workers in WORKERS}
        step(f"{kills} kills")
        killed = await bound.killed(kills, seed)
    same = {tuple(item.values()) for item in (*digests.values(), killed["digests"])}
    per_record = {"live": live, **costs}
    return {
        "schema": "ares.replay-bench/1",
        "records": records,
        "microseconds_per_record": {name: round(cost, 1) for name, cost in per_record.items()},
        "times_the_live_rate": {
            name: round(live / cost, 2) for name, cost in costs.items()
        },
        "digests": digests,
        "kills": killed,
        "one_digest": len(same) == 1,
        "runtime": dict(runtime(bound.spec)),
    }  # fmt: skip


def null_bundles(folder: Path) -> tuple[Bundle, Bundle]:
    """A judge and a reward model that compute nothing: 1 of every conversation. They are tokenised
    for as others are, so that what is left is the host's own work."""
    from onnx import TensorProto, helper, save

    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["mask", "axes"], ["logits"], keepdims=1),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1])
    axes = numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(nodes, "null", inputs, [output], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save(model, folder / "null.onnx")
    learnt_tokenizer().save(str(folder / "null.json"))
    files = {"model.onnx": folder / "null.onnx", "tokenizer.json": folder / "null.json"}
    first, second = PAIR
    judge, reward = (
        write_bundle(
            folder / kind,
            Manifest(
                name=kind,
                kind=kind,
                template=InputTemplate(first=first, second=second, max_length=MAX_LENGTH),
                outputs=Outputs(
                    activation="sigmoid" if kind == "harm" else "identity", labels=(0,)
                ),
                calibration=SAFE if kind == "harm" else Calibration(),
                lineage=Lineage(base=f"nothing, as {kind}"),
                reference=RewardReference(version="0" * 64, count=2, scores=(-1.0, 1.0)),
            ),
            files,
        )
        for kind in KINDS
    )
    return judge, reward


async def _live(
    connection: KafkaConnection,
    folder: Path,
    judge: Bundle,
    reward: Bundle,
    records: int,
) -> float:
    """Microseconds of the scorer's CPU per record, from topic to visible verdict."""
    port = free_port()
    settings = _settings(connection, folder, judge, reward) | {"http": {"port": port}}
    topic = topic_name(PREFIX, PRODUCTION)
    outbound = [
        OutboundRecord(topic, item.id.encode(), item.encode())
        for item in conversations(WARM_UP + records)
    ]
    async with service_process("scorer", settings, folder) as scorer:
        await until_ready(scorer, port)
        process = psutil.Process(scorer.pid)
        seen = _Verdicts(connection, scorer)
        async with Publisher(connection) as publisher:
            await publisher.publish(outbound[:WARM_UP])
            await seen.until(WARM_UP)
            before = process.cpu_times()
            for start in range(WARM_UP, len(outbound), 1000):
                await publisher.publish(outbound[start : start + 1000])
            await seen.until(len(outbound))
        after = process.cpu_times()
        await scorer.stop()
    return (after.user + after.system - before.user - before.system) / records * 1e6


def _settings(
    connection: KafkaConnection, folder: Path, judge: Bundle, reward: Bundle
) -> dict[str, Any]:
    return {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "registry": {"root": str(folder / "registry")},
        "scorer": {
            "harm": [str(judge.path.absolute())],
            "reward": str(reward.path.absolute()),
            # What people see is none of either's work here.
            "review_sample": 0.0,
            "threads": 1,
        },
    }


class _Verdicts:
    """How many a read_committed reader has seen."""

    def __init__(self, connection: KafkaConnection, scorer: Service) -> None:
        self._connection, self._scorer = connection, scorer
        self._next: dict[int, int] = {}
        self._seen = 0

    async def until(self, wanted: int) -> None:
        """Wait until so many are visible."""
        deadline = time.monotonic() + STALL_SECONDS
        while self._seen < wanted:
            self._scorer.check()
            fresh = await self._look()
            if fresh:
                deadline = time.monotonic() + STALL_SECONDS
            elif time.monotonic() > deadline:
                raise ScoringError(f"{self._seen} of {wanted} verdicts, and no more came")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> int:
        ranges: list[OffsetRange] = []
        for item in await snapshot(self._connection, [topic_name(PREFIX, VERDICTS)]):
            start = self._next.get(item.partition, item.start)
            self._next[item.partition] = item.end
            ranges.append(item.model_copy(update={"start": start}))
        fresh = 0
        async for _ in read(self._connection, ranges):
            fresh += 1
        self._seen += fresh
        return fresh


@dataclass(frozen=True, slots=True)
class _Constant:
    """Says of every conversation what the models said of the first: models that cost nothing."""

    scores: Scores

    async def score(self, interactions: Sequence[Interaction]) -> list[Any]:
        return [self.scores] * len(interactions)


class _Bound:
    """Replays of one set of topics."""

    def __init__(
        self, connection: KafkaConnection, folder: Path, judge: Bundle, reward: Bundle
    ) -> None:
        import yaml

        file = folder / "replay.yaml"
        file.write_text(
            yaml.safe_dump(_settings(connection, folder, judge, reward)), encoding="utf-8"
        )
        self._connection = connection
        self._settings = load_settings(file)
        self._options = ReplayOptions()
        self._folder = folder
        self.spec = make_spec(self._settings, connection, self._options)
        self._small = replace(self.spec, block=BLOCK)

    async def costs(self) -> dict[str, float]:
        """Microseconds of CPU per record of whole replays in this process: with the models, and
        with a constant in their place. In turns, twice; the better of each."""
        selection = await choose(self._settings, self.spec, self._options)
        first = await self._first(selection)
        constant = _Constant(Scores(first.harm, first.reward, first.releases))
        found: dict[str, float] = {}

        def null(made: MadeWith) -> _Constant:
            return constant

        for turn in range(2):
            for name, stand_in in (("replay", None), ("replay_without_models", null)):
                before = time.process_time()
                done = await asyncio.to_thread(
                    run_replay, self.spec, selection, self._folder / f"{name}-{turn}",
                    null=stand_in,
                )  # fmt: skip
                spent = time.process_time() - before
                records = sum(item.records for item in done.results)
                identical = sum(item.counts.get("identical", 0) for item in done.results)
                if done.faults or identical != records:
                    raise ScoringError(f"{name}: {records - identical} records are not identical")
                found[name] = min(found.get(name, spent / records * 1e6), spent / records * 1e6)
        return found

    async def _first(self, selection: Selection) -> Verdict:
        verdicts = [item for item in selection.outputs if item.topic.endswith(VERDICTS)]
        async for record in read(self._connection, verdicts):
            return Verdict.decode(record.value or b"")
        raise ScoringError("no verdict is there")

    async def digests(self, workers: int) -> dict[str, str]:
        """Of what was read and of what the replay made."""
        selection = await choose(self._settings, self._small, self._options)
        done = await asyncio.to_thread(
            run_replay, self._small, selection, self._folder / f"workers-{workers}",
            workers=workers,
        )  # fmt: skip
        return _digests(report(self._small, done, _ran(workers)))

    async def killed(self, kills: int, seed: int) -> dict[str, Any]:
        """The same after so many SIGKILLs, each while jobs were under way."""
        selection = await choose(self._settings, self._small, self._options)
        folder = self._folder / "killed"
        draw = random.Random(seed)
        # A server that has imported it all: what is killed is a replay, not an import.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        found = 0
        kept: list[int] = []
        while found < kills:
            known = _jobs(folder)
            process = context.Process(target=_replay_there, args=(self._small, selection, folder))
            process.start()
            wanted = known + draw.randrange(0, 3)
            deadline = time.monotonic() + STALL_SECONDS
            await asyncio.to_thread(_until, process, folder, wanted, deadline)
            await asyncio.sleep(draw.random() * 0.02)
            if not process.is_alive():
                break
            process.kill()
            process.join()
            found += 1
            kept.append(_jobs(folder))
        done = await asyncio.to_thread(run_replay, self._small, selection, folder)
        return {
            "kills": found,
            "jobs_done_at_each": kept,
            "digests": _digests(report(self._small, done, _ran(1))),
        }


def _until(process: BaseProcess, folder: Path, wanted: int, deadline: float) -> None:
    while process.is_alive() and _jobs(folder) < wanted and time.monotonic() < deadline:
        time.sleep(0.001)


def _jobs(folder: Path) -> int:
    return sum(1 for name in ("sorted", "done") for _ in (folder / name).glob("*.json"))


def _replay_there(spec: ReplaySpec, selection: Selection, folder: Path) -> None:
    run_replay(spec, selection, folder)


def _digests(document: Mapping[str, Any]) -> dict[str, str]:
    return {name: document[name] for name in ("read_digest", "replayed_digest")}


def _ran(workers: int) -> Circumstances:
    from datetime import UTC, datetime

    now = datetime.now(UTC)
    return Circumstances(now, now, workers, (0, 1), {})
