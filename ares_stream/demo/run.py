"""The demo from start to end."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ares_stream.audit.accounting import account
from ares_stream.demo.console import console_beside
from ares_stream.demo.contract import DemoOptions, DemoSummary, View
from ares_stream.demo.inputs import check_options, read_stream
from ares_stream.demo.loop import probe_and_repair
from ares_stream.demo.monitor import Monitored, monitor_settings, monitored
from ares_stream.demo.page import demo_page
from ares_stream.demo.proof import Proven, prove_and_replay
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import AresError
from ares_stream.files import unwritable, written_whole
from ares_stream.lab.streams import (
    PREFIX,
    Held,
    Stream,
    held_by_topics,
    scorer_process,
    send,
    watch,
)
from ares_stream.models.bundles import load_bundle
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.processes.ports import free_port
from ares_stream.processes.service import service_process, until_ready
from ares_stream.records.base import Interval
from ares_stream.records.decoding import DecodingLimits, decode_interaction
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping
from ares_stream.records.topics import specs
from ares_stream.reporting.page import Findings, render
from ares_stream.services.rounds import Round
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.records import InboundRecord

PARTITIONS: Final = 4


async def _ends(summary: DemoSummary) -> None:
    """Nothing keeps the demo up."""


async def run_demo(
    options: DemoOptions,
    view: View,
    linger: Callable[[DemoSummary], Awaitable[None]] = _ends,
) -> DemoSummary:
    """Run it from start to end; broker and console are up until `linger` returns. Raises an
    AresError that says what went wrong."""
    check_options(options)
    policy = DetectionPolicy()
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name] = now - began
        began = now

    work = (options.out / "work").absolute()
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
    except OSError as problem:
        raise unwritable(f"--out {options.out}", problem) from None
    view.step("models: make or load policy, reward model and judge, export them to ONNX")
    stream = await asyncio.to_thread(read_stream, options)
    lap("models")
    view.step("broker: start a real Apache Kafka, create the topics")
    with EmbeddedBroker() as broker:
        connection = KafkaConnection(bootstrap=broker.bootstrap)
        wanted = specs(PREFIX, partitions=PARTITIONS, replication=1)
        await create_topics(connection, wanted)
        lap("broker")
        async with console_beside(options.console_port, connection, stream, policy, view, work):
            rounds, seen = await _loop(options, connection, stream, policy, view, work, lap)
            view.step("count: read every topic again, independently, and compare")
            held = await held_by_topics(connection)
            lap("count")
            view.step("proof: a notary signs the verdicts, and the run is replayed")
            proven = await prove_and_replay(connection, held.verdicts, options.out, work)
            lap("proof")
            view.step("report: write the page and the summary")
            summary = _conclude(options, stream, policy, held, rounds, seconds, seen, proven)
            await linger(summary)
    return summary


async def _loop(
    options: DemoOptions,
    connection: KafkaConnection,
    stream: Stream,
    policy: DetectionPolicy,
    view: View,
    work: Path,
    lap: Callable[[str], None],
) -> tuple[list[Round], Monitored]:
    """Stream, probe and repair beside a scorer and a monitor."""
    view.step("scorer and monitor: start each as a process of its own, wait until they are ready")
    port = free_port()
    watching = monitor_settings(connection, stream.anchors, port, work)
    async with (
        scorer_process(connection, stream, policy, work) as scorer,
        service_process("monitor", watching, work) as monitor,
    ):
        await until_ready(monitor, port)
        lap("scorer")
        view.step(f"stream: send {len(stream.records):,} conversations, read verdicts back")
        view.expect(len(stream.records))
        sending = asyncio.create_task(send(connection, stream, view))
        try:
            await watch(connection, len(stream.records), scorer, view)
            await sending
        finally:
            sending.cancel()
        lap("stream")
        rounds = await probe_and_repair(options, connection, stream, scorer, view, work)
        lap("rounds")
        view.step("stop: SIGTERM to the scorer, which drains; the monitor catches up")
        await scorer.stop()
        seen = await monitored(connection, monitor)
        await monitor.stop()
    return rounds, seen


def _conclude(
    options: DemoOptions,
    stream: Stream,
    policy: DetectionPolicy,
    held: Held,
    rounds: Sequence[Round],
    seconds: dict[str, float],
    seen: Monitored,
    proven: Proven | None,
) -> DemoSummary:
    counted = account(
        held.inputs, held.verdicts, held.letters, [item.verdict for item in held.repair]
    )
    findings = Findings(policy)
    interactions = _interactions(held.inputs, stream.mapping)
    for verdict in held.verdicts:
        source = verdict.source
        findings.add(verdict, interactions[source.topic, source.partition, source.offset])
    whole = findings.total()
    page = options.out / "report.html"
    summary = DemoSummary(
        synthetic=options.input_file is None,
        rate=whole.cfr if whole else Interval(value=0.0, low=0.0, high=1.0, count=0),
        account=counted,
        rounds=tuple(rounds),
        releases=findings.releases,
        seconds=seconds,
        report=page,
        monitored=seen.as_json(),
        proven=proven,
    )
    with written_whole(page) as out:
        out.write(
            render(demo_page(summary, findings, policy, held, seen), datetime.now(UTC)).encode()
        )
    if summary.synthetic:
        streamed = [item for item in interactions.values() if item.probe is None]
        _keep_inputs(options.out, stream, streamed)
    with written_whole(options.out / "summary.json") as out:
        out.write(json.dumps(summary.as_json(), indent=2).encode() + b"\n")
    return summary


def _keep_inputs(folder: Path, stream: Stream, interactions: Iterable[Interaction]) -> None:
    """The made conversations and models, for `ares scan` and whatever else a person tries."""
    with written_whole(folder / "conversations.jsonl") as out:
        for item in interactions:
            out.write(item.encode() + b"\n")
    models = folder / "models"
    shutil.rmtree(models, ignore_errors=True)
    for path in (*stream.harm, stream.reward):
        bundle = load_bundle(path)
        shutil.copytree(path, models / bundle.manifest.kind)


def _interactions(
    inputs: Sequence[InboundRecord], mapping: Mapping | None
) -> dict[tuple[str, int, int], Interaction]:
    limits = DecodingLimits()
    found: dict[tuple[str, int, int], Interaction] = {}
    for record in inputs:
        try:
            found[record.topic, record.partition, record.offset] = decode_interaction(
                record.key, record.value, record.headers, limits, mapping,
                timestamp_ms=record.timestamp_ms,
            )  # fmt: skip
        except AresError:
            continue  # It is among the dead letters, which the account compares.
    return found
