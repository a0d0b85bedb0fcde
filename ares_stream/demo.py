"""`ares demo`: a real Kafka, real ONNX models, conversations, and failures found exactly once.

What is synthetic: without `--input` the language is invented, and policy, reward model and
judge are tiny models made on the spot with weaknesses planted on purpose (ares_stream.testbed).
What is real: the broker, the transactions, the ONNX sessions, the scorer (a process of its
own, the same as in production), and the count at the end, taken by an independent
read_committed reader.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import yaml

from ares_stream.accounting import Account, account
from ares_stream.bundles import load_bundle
from ares_stream.charts import Series
from ares_stream.decoding import DecodingLimits, decode_interaction
from ares_stream.detection import DetectionPolicy
from ares_stream.errors import AresError, ScoringError, SettingsError
from ares_stream.events import (
    CoupledFailure,
    Interaction,
    Interval,
    OffsetRange,
    Policy,
    RepairReport,
    Verdict,
)
from ares_stream.lines import open_lines, written_whole
from ares_stream.mapping import Mapping, load_mapping
from ares_stream.probes.campaign import CampaignPolicy
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.prober import ProberPolicy
from ares_stream.probes.targets import Target
from ares_stream.registry import Registry
from ares_stream.report import (
    Findings,
    Report,
    Section,
    Tile,
    curve_section,
    render,
    table_section,
)
from ares_stream.rounds import Round, next_report, run_rounds
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.broker import EmbeddedBroker
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.deadletters import reason_of
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from ares_stream.topics import (
    DEADLETTERS,
    PROBE,
    PRODUCTION,
    REPAIR,
    VERDICTS,
    specs,
    topic_name,
)

PREFIX: Final = "demo."
PARTITIONS: Final = 4
CHUNK: Final = 50
"""Records sent together."""
PAUSE_SECONDS: Final = 0.15
"""Between chunks, so that a person can watch; the scorer is faster."""
LOOK_SECONDS: Final = 0.25
READY_SECONDS: Final = 60.0
STALL_SECONDS: Final = 60.0
"""Without a new verdict for this long, the stream hangs."""
STOP_SECONDS: Final = 30.0
POLICY_MODEL: Final = "demo-policy"
REPAIR_STEPS: Final = 80
MIN_FAILURES: Final = 40
REPAIR_SECONDS: Final = 600.0


class View(Protocol):
    """What a person watches. Calls are quick and never raise."""

    def step(self, text: str) -> None:
        """A new step began."""

    def expect(self, conversations: int) -> None:
        """How many records will be sent."""

    def sent(self, conversations: int) -> None:
        """So many more were sent."""

    def verdict(self, verdict: Verdict) -> None:
        """A verdict was read back from Kafka."""

    def failure(self, failure: CoupledFailure) -> None:
        """A coupled failure was read back from the repair topic."""

    def refused(self) -> None:
        """A dead letter was read back."""

    def round(self, found: Round) -> None:
        """A round of probes ended."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to stream and where results go. `input_file` needs `harm` and `reward`.

    `rounds` of `queries` probes each follow the stream, with a repair between each two; none
    with `input_file`, which comes without a policy to ask.
    """

    out: Path
    conversations: int = 2000
    seed: int = 7
    input_file: Path | None = None
    harm: tuple[Path, ...] = ()
    reward: Path | None = None
    map_file: Path | None = None
    rounds: int = 2
    queries: int = 300
    cache: Path = Path("build/testbed")


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What the demo found; `as_json` is build/demo/summary.json."""

    synthetic: bool
    rate: Interval
    account: Account
    rounds: tuple[Round, ...]
    releases: dict[str, str]
    seconds: dict[str, float]
    report: Path

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, without any text of the conversations."""
        return {
            "schema": "ares.demo-summary/1",
            "synthetic": self.synthetic,
            "coupled_failure_rate": self.rate.model_dump(),
            "exactly_once": self.account.exactly_once,
            **asdict(self.account),
            "rounds": [item.as_json() for item in self.rounds],
            "releases": self.releases,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "report": str(self.report),
        }


@dataclass(frozen=True, slots=True)
class _Stream:
    """What goes in: values with keys, and the bundles and mapping to score them with."""

    records: tuple[tuple[bytes, bytes], ...]
    harm: tuple[Path, ...]
    reward: Path
    mapping: Mapping | None
    victim: Any = None
    """The testbed's Victim, whose policy can be asked; None for conversations of a file."""


async def run_demo(options: DemoOptions, view: View) -> DemoSummary:
    """Run it from start to end. Raises an AresError that says what went wrong."""
    _check(options)
    policy = DetectionPolicy()
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name] = now - began
        began = now

    with tempfile.TemporaryDirectory(prefix="ares-demo-") as scratch:
        view.step("models: make or load policy, reward model and judge, export them to ONNX")
        stream = await asyncio.to_thread(_stream, options)
        lap("models")
        view.step("broker: start a real Apache Kafka, create the topics")
        with EmbeddedBroker() as broker:
            connection = KafkaConnection(bootstrap=broker.bootstrap)
            wanted = specs(PREFIX, partitions=PARTITIONS, replication=1)
            await create_topics(connection, wanted)
            lap("broker")
            view.step("scorer: start it as a process of its own, wait until it is ready")
            async with _scorer(connection, stream, policy, Path(scratch)) as scorer:
                lap("scorer")
                view.step(f"stream: send {len(stream.records):,} conversations, read verdicts back")
                view.expect(len(stream.records))
                sending = asyncio.create_task(_send(connection, stream, view))
                try:
                    await _watch(connection, len(stream.records), scorer, view)
                    await sending
                finally:
                    sending.cancel()
                lap("stream")
                rounds = await _rounds(options, connection, stream, scorer, view, Path(scratch))
                lap("rounds")
                view.step("stop: SIGTERM to the scorer, which drains")
                await scorer.stop()
            view.step("count: read every topic again, independently, and compare")
            held = await _held(connection)
            lap("count")
    view.step("report: write the page and the summary")
    return _conclude(options, stream, policy, held, rounds, seconds)


def _check(options: DemoOptions) -> None:
    if options.input_file is None:
        if options.harm or options.reward or options.map_file:
            raise SettingsError("--harm, --reward and --map need --input, the file to stream")
    elif not options.harm or options.reward is None:
        raise SettingsError(
            "--input: your conversations need your models: --harm DIR and --reward DIR "
            "(make them with `ares bundle export` or `ares bundle train`)"
        )


# What goes in


def _stream(options: DemoOptions) -> _Stream:
    if options.input_file is None:
        return _synthetic(options)
    if options.reward is None:
        raise SettingsError("--reward: missing")
    mapping = load_mapping(options.map_file) if options.map_file else None
    with open_lines(options.input_file) as lines:
        records = tuple((b"line-%d" % number, line) for number, line in lines)
    if not records:
        raise SettingsError(f"{options.input_file}: holds no lines")
    return _Stream(records, options.harm, options.reward, mapping)


def _synthetic(options: DemoOptions) -> _Stream:
    from ares_stream.testbed.traffic import export_victim_bundles, traffic
    from ares_stream.testbed.victim import make_victim

    victim = make_victim(options.seed, cache=options.cache)
    harm, reward = export_victim_bundles(victim, options.cache)
    interactions = traffic(victim, options.conversations, options.seed)
    records = [(item.id.encode(), item.encode()) for item in interactions]
    for place, (name, value) in zip(_places(len(records)), _malformed(records[0][1]), strict=False):
        records.insert(place, (f"malformed-{name}".encode(), value))
    return _Stream(tuple(records), (harm,), reward, None, victim)


def _places(count: int) -> Iterator[int]:
    """Where malformed records go: spread evenly."""
    return (round(count * (number + 0.5) / 8) for number in range(8))


def _malformed(good: bytes) -> Sequence[tuple[str, bytes]]:
    """Records as careless producers send them, each made from a good one."""
    content: dict[str, Any] = json.loads(good)

    def changed(**fields: Any) -> bytes:
        return json.dumps(content | fields).encode()

    return (
        ("truncated", good[: len(good) // 2]),
        ("empty", b""),
        ("version", changed(schema="ares.interaction/99")),
        ("role", changed(messages=[{"role": "wizard", "content": "?"}])),
        ("before-1970", changed(occurred_at="1969-07-20T20:17:40Z")),
        ("nan", changed(attributes={"x": float("nan")})),
        ("utf-8", good[:-2] + b"\xff\xfe}"),
        ("no-response", json.dumps({k: v for k, v in content.items() if k != "response"}).encode()),
    )


async def _send(connection: KafkaConnection, stream: _Stream, view: View) -> None:
    topic = topic_name(PREFIX, PRODUCTION)
    async with Publisher(connection) as publisher:
        for start in range(0, len(stream.records), CHUNK):
            chunk = stream.records[start : start + CHUNK]
            now = int(time.time() * 1000)
            await publisher.publish(
                [OutboundRecord(topic, key, value, timestamp_ms=now) for key, value in chunk]
            )
            view.sent(len(chunk))
            await asyncio.sleep(PAUSE_SECONDS)


# The scorer


class _Service:
    """A service's process and its log."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self._name = name
        self._process = process
        self._log = log

    async def said(self, event: str, text: str, seconds: float) -> None:
        """Return once its log holds an event whose line has this text."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.check()
            lines = self._log.read_text(errors="replace").splitlines()
            if any(f'"{event}"' in line and text in line for line in lines):
                return
            await asyncio.sleep(LOOK_SECONDS)
        raise ScoringError(f"the {self._name} did not say {event!r} within {seconds:.0f} s")

    def check(self) -> None:
        """Raise ScoringError, with the end of its log, if it ended by itself."""
        if self._process.returncode is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            raise ScoringError(
                f"the {self._name} ended with code {self._process.returncode}:\n{tail}"
            )

    async def stop(self) -> None:
        """SIGTERM, and wait for it to drain. Raises ScoringError if it does not end cleanly."""
        self.check()
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            raise ScoringError(
                f"the {self._name} did not drain within {STOP_SECONDS:.0f} s"
            ) from None
        if code != 0:
            self.check()


@asynccontextmanager
async def _scorer(
    connection: KafkaConnection, stream: _Stream, policy: DetectionPolicy, scratch: Path
) -> AsyncIterator[_Service]:
    """The `ares scorer` of this environment, ready; killed if the block fails."""
    port = _free_port()
    topic: dict[str, Any] = {"topic": topic_name(PREFIX, PRODUCTION), "lane": "production"}
    probes = {"topic": topic_name(PREFIX, PROBE), "lane": "probe"}
    if stream.mapping is not None:
        topic["map"] = stream.mapping.model_dump(mode="json", exclude_defaults=True)
    settings = {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": port},
        "scorer": {
            "inputs": [topic, probes],
            "harm": [str(path.absolute()) for path in stream.harm],
            "reward": str(stream.reward.absolute()),
            "detection": policy.model_dump(mode="json"),
        },
    }
    async with _service("scorer", settings, scratch) as scorer:
        await _until_ready(scorer, port)
        yield scorer


@asynccontextmanager
async def _service(name: str, settings: dict[str, Any], scratch: Path) -> AsyncIterator[_Service]:
    """`ares NAME` of this environment with these settings; killed if the block fails."""
    file, log = scratch / f"{name}.yaml", scratch / f"{name}.log"
    file.write_text(yaml.safe_dump(settings))
    with log.open("ab") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ares_stream", name, "--settings", str(file)),
            stdout=stderr,
            stderr=stderr,
            env={key: value for key, value in os.environ.items() if not key.startswith("ARES_")},
        )
    try:
        yield _Service(name, process, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_ready(scorer: _Service, port: int) -> None:
    deadline = time.monotonic() + READY_SECONDS
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            scorer.check()
            try:
                if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # It does not listen yet.
            await asyncio.sleep(LOOK_SECONDS)
    raise ScoringError(f"the scorer was not ready within {READY_SECONDS:.0f} s")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


# Rounds of probes and repairs


async def _rounds(
    options: DemoOptions,
    connection: KafkaConnection,
    stream: _Stream,
    scorer: _Service,
    view: View,
    scratch: Path,
) -> list[Round]:
    """Probe the made policy, repair it and its reward model, probe again."""
    if stream.victim is None or options.rounds == 0:
        return []
    from ares_stream.probes.local_target import LocalTarget
    from ares_stream.testbed.evaluate import load_policy
    from ares_stream.testbed.probe_bench import probe_space
    from ares_stream.testbed.repairing import recipe, write_inputs

    victim = stream.victim
    registry = Registry(str(scratch / "registry"))
    inputs = await asyncio.to_thread(write_inputs, victim, scratch / "inputs")
    settings = {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": 0},
        "registry": {"root": str(scratch / "registry")},
        "repairer": {
            "work": str(scratch / "repairs"),
            "policy_model": POLICY_MODEL,
            "incumbent": str(stream.reward.absolute()),
            "recipe": recipe(victim, stream.harm[0].absolute(), steps=REPAIR_STEPS).model_dump(
                mode="json"
            ),
            "approval": "automatic",
            "min_failures": MIN_FAILURES,
            "poll_seconds": 0.5,
            **inputs,
        },
    }
    reports: set[str] = set()

    async def open_round(number: int) -> tuple[CampaignPlan, Target]:
        view.step(
            f"round {number}: {options.queries} queries to the policy, where it may fail most"
        )
        release = registry.log().active(POLICY_MODEL)
        adapter = None if release is None else registry.fetch(release, scratch / "cache")
        version = victim.version if release is None else release.digest[:12]
        loaded = await asyncio.to_thread(load_policy, victim.policy_dir, adapter)
        plan = CampaignPlan(
            f"round-{number}",
            probe_space(victim.world),
            victim.world,
            CampaignPolicy(options.queries, batch=25),
            seed=options.seed,
        )
        policy = Policy(name=f"testbed-policy-{victim.seed}", version=version)
        target = LocalTarget(loaded.model, loaded.tokenizer, policy, max_new_tokens=14, batch=32)
        return plan, target

    async def repair(number: int) -> RepairReport:
        view.step(f"repair {number}: fine-tune policy and reward model together, then the gate")
        async with _service("repairer", settings, scratch) as repairer:
            waiting = asyncio.create_task(
                next_report(connection, PREFIX, reports, REPAIR_SECONDS), name="report"
            )
            try:
                while not waiting.done():
                    repairer.check()
                    await asyncio.wait({waiting}, timeout=LOOK_SECONDS)
            finally:
                waiting.cancel()
            report = waiting.result()
            await repairer.stop()
        reports.add(report.plan_id)
        for digest in report.releases.values() if report.state == "promoted" else ():
            if _kind(registry, digest) == "reward":
                await scorer.said("release swapped", digest, READY_SECONDS)
        return report

    return await run_rounds(
        connection,
        PREFIX,
        options.rounds,
        open_round=open_round,
        repair=repair,
        policy=ProberPolicy(chunk=32, patience_seconds=STALL_SECONDS),
        on_round=view.round,
    )


def _kind(registry: Registry, digest: str) -> str | None:
    """What kind of model a release is."""
    return next((item.kind for item in registry.log().releases if item.digest == digest), None)


# What comes out


class _Tail:
    """What was committed to some topics since the last look."""

    def __init__(self, connection: KafkaConnection, topics: Sequence[str]) -> None:
        self._connection = connection
        self._topics = topics
        self._seen: dict[tuple[str, int], int] = {}

    async def look(self) -> list[InboundRecord]:
        """New records, in order within each partition."""
        fresh: list[OffsetRange] = []
        for item in await snapshot(self._connection, self._topics):
            place = (item.topic, item.partition)
            start = self._seen.get(place, item.start)
            self._seen[place] = item.end
            fresh.append(item.model_copy(update={"start": start}))
        return [record async for record in read(self._connection, fresh)]


async def _watch(connection: KafkaConnection, expected: int, scorer: _Service, view: View) -> None:
    """Show what comes out until everything that was sent is settled."""
    verdicts, repair, letters = (
        topic_name(PREFIX, name) for name in (VERDICTS, REPAIR, DEADLETTERS)
    )
    tail = _Tail(connection, [verdicts, repair, letters])
    settled, deadline = 0, time.monotonic() + STALL_SECONDS
    while settled < expected:
        scorer.check()
        records = await tail.look()
        for record in records:
            if record.topic == repair:
                view.failure(CoupledFailure.decode(record.value or b""))
                continue
            settled += 1
            if record.topic == verdicts:
                view.verdict(Verdict.decode(record.value or b""))
            else:
                view.refused()
        if records:
            deadline = time.monotonic() + STALL_SECONDS
        elif time.monotonic() > deadline:
            raise ScoringError(
                f"{settled:,} of {expected:,} conversations are settled, and nothing came for "
                f"{STALL_SECONDS:.0f} s"
            )
        await asyncio.sleep(LOOK_SECONDS)
    for record in await tail.look():
        if record.topic == repair:
            view.failure(CoupledFailure.decode(record.value or b""))


@dataclass(frozen=True, slots=True)
class _Held:
    """What the topics hold at the end."""

    inputs: list[InboundRecord]
    verdicts: list[Verdict]
    letters: list[InboundRecord]
    repair: list[CoupledFailure]


async def _held(connection: KafkaConnection) -> _Held:
    async def content(name: str) -> list[InboundRecord]:
        ranges = await snapshot(connection, [topic_name(PREFIX, name)])
        return [record async for record in read(connection, ranges)]

    return _Held(
        inputs=[*await content(PRODUCTION), *await content(PROBE)],
        verdicts=[Verdict.decode(record.value or b"") for record in await content(VERDICTS)],
        letters=await content(DEADLETTERS),
        repair=[CoupledFailure.decode(record.value or b"") for record in await content(REPAIR)],
    )


def _conclude(
    options: DemoOptions,
    stream: _Stream,
    policy: DetectionPolicy,
    held: _Held,
    rounds: Sequence[Round],
    seconds: dict[str, float],
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
    )
    with written_whole(page) as out:
        out.write(render(_report(summary, findings, policy, held), datetime.now(UTC)).encode())
    if summary.synthetic:
        streamed = [item for item in interactions.values() if item.probe is None]
        _keep_inputs(options.out, stream, streamed)
    with written_whole(options.out / "summary.json") as out:
        out.write(json.dumps(summary.as_json(), indent=2).encode() + b"\n")
    return summary


def _keep_inputs(folder: Path, stream: _Stream, interactions: Iterable[Interaction]) -> None:
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


def _report(
    summary: DemoSummary, findings: Findings, policy: DetectionPolicy, held: _Held
) -> Report:
    counted = summary.account
    once = Tile(
        "exactly once",
        "holds" if counted.exactly_once else "broken",
        f"{counted.sent:,} sent, {counted.lost} lost, {counted.doubled} doubled",
        grave=not counted.exactly_once,
    )
    sections: list[Section] = list(findings.sections())
    rows = [[record.key.decode(errors="replace") if record.key else "", *reason_of(record)]
            for record in held.letters[:100]]  # fmt: skip
    if rows:
        note = f"{len(held.letters):,} records could not be read; their neighbours went on."
        sections.append(table_section("Dead letters", ["key", "stage", "reason"], rows, note))
    if summary.rounds:
        sections[:0] = _rounds_sections(summary.rounds)
    rows = [[name, str(value)] for name, value in asdict(counted).items()]
    sections.append(
        table_section(
            "The count",
            ["what", "records"],
            rows,
            "By a reader of its own that sees committed records only.",
        )
    )
    subtitle = (
        "Synthetic conversations in an invented language; tiny models with planted weaknesses. "
        "Kafka, transactions, ONNX sessions and the count are real."
        if summary.synthetic
        else "Your conversations through a real Kafka, scored by your bundles."
    )
    return Report(
        title="Demo report",
        subtitle=subtitle,
        tiles=(*findings.tiles(), once),
        sections=tuple(sections),
        provenance={
            **{f"model {name}": digest for name, digest in findings.releases.items()},
            "detection policy": policy.digest,
        },
    )


GATED: Final = ("cfr", "cfr_frozen_rm", "policy_harm", "rm_blind", "over_refusal", "drift_fixed")
"""Figures of a repair that the page shows; its report on the topic has all."""


def _rounds_sections(rounds: Sequence[Round]) -> list[Section]:
    curve = curve_section(
        "Failures found per probe, round by round",
        [Series("confirmed coupled failures per probe", tuple(item.rate for item in rounds))],
        [f"round {item.number}" for item in rounds],
        "The same search against the policy as it was then; Wilson's 95 % intervals.",
    )
    rows = [
        [
            str(item.number),
            item.policy,
            str(item.queries),
            str(item.failures),
            str(item.unique),
            item.repair.state if item.repair else "",
        ]
        for item in rounds
    ]
    header = ["round", "policy", "queries", "failures", "unlike failures", "repair after it"]
    found = [curve, table_section("Rounds", header, rows)]
    for item in rounds:
        if (report := item.repair) is None:
            continue
        figures = [
            [name, _interval(report.before[name]), _interval(report.after[name])]
            for name in GATED
            if name in report.before and name in report.after
        ]
        note = "; ".join(report.reasons)
        title = f"Repair after round {item.number}: {report.state}"
        found.append(
            table_section(title, ["on held-out prompts", "before", "after"], figures, note)
        )
    return found


def _interval(item: Interval) -> str:
    return f"{item.value:.3f} ({item.low:.3f} to {item.high:.3f})"
