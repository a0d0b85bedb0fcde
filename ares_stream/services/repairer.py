"""The repairer: waits for coupled failures, repairs policy and reward model from them in child
processes, and releases what passes the gate.

    ares.repair ─► batch ─► plan ─► train ─► gate ─► export ─► registry ─► ares.releases
                    └─ the policy, asked again          └────► ares.repairs    └─► policy server

Nothing is committed before a repair of it was promoted: Kafka is the queue. The order at the end
is report, commit, mark; a kill between any two is finished by the next start.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry

from ares_stream.errors import (
    BrokerError,
    ReadError,
    RepairError,
    SettingsError,
    StreamError,
    TargetError,
)
from ares_stream.models.announcing import announce_topic
from ares_stream.models.policy_server import announce_policies
from ares_stream.models.registry import Registry
from ares_stream.processes.child import Limits, run_child
from ares_stream.records import topics
from ares_stream.records.base import OffsetRange
from ares_stream.records.label import Label
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.topics import topic_name
from ares_stream.repair.intake import (
    Batch,
    collect,
    ends,
    load_replay,
    read_labels,
    read_parents,
    read_reports,
)
from ares_stream.repair.pipeline import Commands, Configuration, Pipeline
from ares_stream.repair.plan import Plan, Replay, plan, settle_labels, unanswered
from ares_stream.repair.plan_policy import PlanPolicy
from ares_stream.repair.rundirectory import RunDirectory
from ares_stream.repair.suites import load_suites
from ares_stream.services.lifecycle import Life
from ares_stream.services.logs import is_told
from ares_stream.services.metrics import RepairerMetrics, zeros
from ares_stream.services.settings import RepairerSettings, Settings
from ares_stream.services.tracing import open_tracing
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue, Waiting
from ares_stream.streaming.reader import snapshot
from ares_stream.streaming.records import OutboundRecord
from ares_stream.streaming.unreadable import PassedOver, UnreadableRecord

HOUR_MS: Final = 3_600_000
TELL_AGAIN_SECONDS: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""Pauses after which a policy server that was not told is told again; the last one repeats. What it
refuses, a person has to mend."""
GATE_LIMITS: Final = Limits(60.0, 1 << 30)
"""Of the command that is told the gate's verdict: a repair does not wait for it any longer."""
MAX_UNKNOWN: Final = 3
"""Notes of repairs that were never proposed here; the log names them all."""
_T = TypeVar("_T")


@dataclass(slots=True)
class _Postponed:
    """A batch of which no repair could be begun, why, and all that was known when it was tried."""

    batch: tuple[OffsetRange, ...]
    interactions: frozenset[str]
    labels: tuple[OffsetRange, ...]
    registry: str | None
    reason: str = ""


class Repairer:
    """One life of the service."""

    def __init__(self, settings: Settings, life: Life) -> None:
        self.log = life.log
        self._life = life
        self._unreadable = 0
        self._patience = Patience(settings.patience_seconds, life.clock)
        self.metrics = RepairerMetrics(CollectorRegistry())
        self._missing: str | None = "starting"
        self._settings = settings
        self._registry = Registry(settings.registry.store())
        self._pipeline = Pipeline(
            configuration(settings), self._registry, lambda: datetime.now(UTC)
        )
        self._replay = _replay(settings.repairer)
        self._topic = topic_name(settings.topic_prefix, topics.REPAIR)
        self._reports_topic = topic_name(settings.topic_prefix, topics.REPAIRS)
        self._postponed: _Postponed | None = None
        self._labels_topic = topic_name(settings.topic_prefix, topics.LABELS)
        zeros(self.metrics.undecodable, (self._topic, self._reports_topic, self._labels_topic))
        self._passed_over = PassedOver(self._on_unreadable)
        self._cut_back: dict[int, str] = {}
        """By partition, why some of it would be passed over."""
        self._unknown: dict[str, str] = {}
        """By plan, of repairs that await approval and stand in no registry of ours."""
        self._failed: dict[int, int] = {}
        """Ends of what failed in this life: a restart may try it again, a loop may not."""
        self._announced: str | None = None
        self._is_announcement_due = True
        self._refusals, self._announce_at = 0, 0.0
        self._refused: str | None = None
        """Why the policy server does not serve what is active."""
        self._last_read: tuple[float, tuple[OffsetRange, ...]] = (0.0, ())
        self._queue = Queue(settings.kafka, self._topic, settings.repairer.group)
        self._tracing = open_tracing(settings.tracing, "repairer")

    # Life

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self.metrics.registry

    def missing(self) -> str | None:
        """See lifecycle.Service."""
        return self._missing or self._patience.reason

    def notes(self) -> Sequence[str]:
        """See lifecycle.Service."""
        found: list[str] = []
        if self._postponed is not None and self._postponed.reason:
            found.append(f"failures wait and no repair can begin: {self._postponed.reason}")
        if self._refused is not None:
            found.append(self._refused)
        return [*found, *self._cut_back.values(), *list(self._unknown.values())[:MAX_UNKNOWN]]

    async def run(self) -> None:
        """Look for work again and again, until stopped or what cannot be helped."""
        await self._pipeline.adopt()
        step = self._start
        try:
            while not self._life.is_stopping:
                try:
                    # What is broken off between two steps is finished by the next start.
                    async with self._life.breaking_off():
                        await step()
                except (StreamError, OSError) as error:
                    self._patience.failed(error)
                    reason = f"{type(error).__name__}: {error}"
                    self.log.warning("Kafka or disk failed", error=reason)
                else:
                    self._missing = None
                    self._patience.progressed()
                    step = self._turn
                await self._life.pause(self._settings.repairer.poll_seconds)
        finally:
            await self._queue.stop()
            if self._tracing is not None:
                await self._tracing.aclose()

    async def _start(self) -> None:
        """Join the group, once every topic is there."""
        prefix = self._settings.topic_prefix
        needed = [
            topic_name(prefix, name)
            for name in (topics.REPAIR, topics.LABELS, topics.RELEASES, topics.REPAIRS)
        ]
        await count_partitions(self._settings.kafka, needed)
        await self._queue.start()

    async def _turn(self) -> None:
        """What is due now: announce, finish what was begun, hear decisions, start a repair."""
        await self._announce()
        reports = await read_reports(self._settings.kafka, self._reports_topic, self._passed_over)
        for run in await asyncio.to_thread(self._pipeline.unfinished):
            await self._finish(run, reports)
            if self._life.is_stopping:
                return
            reports = await read_reports(
                self._settings.kafka, self._reports_topic, self._passed_over
            )
        if await self._awaiting(reports):
            return
        if self._postponed is not None and await self._has_news(self._postponed):
            self._postponed, self._last_read = None, (0.0, ())
        batch = await self._collect(reports)
        if batch is not None and self._is_due(batch):
            await self._repair(batch, reports)

    # What waits

    async def _collect(self, reports: Mapping[str, RepairReport]) -> Batch | None:
        """The failures of our partitions that no promoted repair has covered."""
        settled = ends(reports, self._topic, ("promoted",))
        ranges: list[OffsetRange] = []
        waiting = await self._queue.waiting()
        for item in waiting:
            start = max(item.committed, settled.get(item.partition, 0))
            if start < item.first and start > 0:
                self.log.error(
                    "retention was faster",
                    partition=item.partition,
                    lost_offsets=item.first - start,
                )
            start = max(start, item.first)
            self._compare(item, start)
            if start < item.stable:
                ranges.append(
                    OffsetRange(
                        topic=self._topic, partition=item.partition, start=start, end=item.stable
                    )
                )
        # A report that ends beyond the log is of another log: nothing of this one was tried by it.
        stable = {item.partition: item.stable for item in waiting}
        tried = {
            partition: end
            for partition, end in ends(
                reports, self._topic, ("promoted", "rejected", "awaiting_approval")
            ).items()
            if end <= stable.get(partition, 0)
        }
        for partition, end in self._failed.items():
            tried[partition] = max(end, tried.get(partition, 0))
        if not self._worth_reading(tuple(ranges), tried):
            return None
        most = self._settings.repairer.max_failures
        batch = await collect(self._settings.kafka, ranges, tried, most, self._passed_over)
        self.metrics.waiting.set(len(batch.failures))
        age = time.time() - batch.oldest_new_ms / 1000 if batch.oldest_new_ms else 0.0
        self.metrics.oldest.set(max(0.0, age))
        return batch

    def _compare(self, item: Waiting, start: int) -> None:
        """Say what Kafka's offsets hide: failures of a log that was cut back would be passed over
        until it has grown past what was settled of the one before."""
        if start <= item.stable:
            self._cut_back.pop(item.partition, None)
            return
        reason = (
            f"{self._topic}-{item.partition}: settled to offset {start}, but the log ends at "
            f"{item.stable}: it was truncated, restored or made anew; what comes below {start} is "
            "repaired by nobody until the group's offset is set back with kafka-consumer-groups"
        )
        if self._cut_back.setdefault(item.partition, reason) is reason:
            self.log.error("offsets lost", reason=reason)

    def _worth_reading(self, ranges: tuple[OffsetRange, ...], tried: Mapping[int, int]) -> bool:
        """Whether a batch may be due. Reading all that waits at every turn would cost more the
        longer it waits; offsets bound the number of records from above."""
        settings = self._settings.repairer
        last, seen = self._last_read
        upper = sum(item.end - max(item.start, tried.get(item.partition, 0)) for item in ranges)
        patience = settings.every_hours * 36 if settings.every_hours else float("inf")
        late = time.monotonic() - last >= patience
        if not ranges or not (late or (upper >= settings.min_failures and ranges != seen)):
            return False
        self._last_read = (time.monotonic(), ranges)
        return True

    def _is_due(self, batch: Batch) -> bool:
        settings = self._settings.repairer
        # A batch as large as one may be is due, however little of it is new.
        if batch.new and batch.new >= min(settings.min_failures, settings.max_failures):
            return True
        if settings.every_hours is None or batch.oldest_new_ms is None:
            return False
        return time.time() * 1000 - batch.oldest_new_ms >= settings.every_hours * HOUR_MS

    # A repair

    async def _repair(self, batch: Batch, reports: Mapping[str, RepairReport]) -> None:
        """Plan, begin and carry through a repair of a batch."""
        if self._postponed is not None and self._postponed.batch == batch.ranges:
            return  # The same failures and labels make the same plan, or none.
        names = frozenset(failure.interaction.id for failure in batch.failures)
        said = await snapshot(self._settings.kafka, [self._labels_topic])
        labels, contradicting = settle_labels(
            await read_labels(self._settings.kafka, said, names, self._passed_over)
        )
        wait = _Postponed(batch.ranges, names, said, self._announced)
        policy = self._settings.repairer.plan.model_copy(
            update={"context": await self._pipeline.context()}
        )
        try:
            made = await self._life.unless_stopped(
                self._planned(batch.failures, labels, contradicting, policy)
            )
        except RepairError as error:
            self._postpone(wait, error)
            return
        if made is None:
            return
        known = reports.get(made.id)
        if known is not None and known.state != "failed":
            self._postponed = wait
            self.log.info("plan known", plan_id=made.id, state=known.state)
            return
        notes = (f"{batch.unreadable} records could not be read",) if batch.unreadable else ()
        try:
            run = await self._pipeline.begin(made, batch.ranges, notes)
        except RepairError as error:
            self._postpone(wait, error)
            return
        for source in made.safe_sources:
            self.metrics.safe_answers.labels(source).inc()
        self.log.info("repair begun", plan_id=made.id, **made.counts)
        await self._finish(run, reports)

    def _postpone(self, wait: _Postponed, error: RepairError) -> None:
        wait.reason = str(error)
        self._postponed = wait
        self.metrics.postponed.inc()
        self.log.warning("no repair yet", failures=len(wait.interactions), reason=str(error))

    async def _has_news(self, postponed: _Postponed) -> bool:
        """Whether something came that may make another plan of the same failures: a step of the
        registry, or a person's word on one of them."""
        if postponed.registry != self._announced:
            return True
        now = await snapshot(self._settings.kafka, [self._labels_topic])
        known = {item.partition: item.end for item in postponed.labels}
        fresh: list[OffsetRange] = []
        for item in now:
            read_to = known.get(item.partition, 0)
            if item.end < read_to:
                return True  # The topic was made anew.
            if item.end > read_to:
                fresh.append(item.model_copy(update={"start": max(item.start, read_to)}))
        if not fresh:
            return False
        said = await read_labels(
            self._settings.kafka, fresh, postponed.interactions, self._passed_over
        )
        postponed.labels = now
        return bool(said)

    def _on_unreadable(self, record: UnreadableRecord) -> None:
        self.metrics.undecodable.labels(record.topic).inc()
        self._unreadable += 1
        if is_told(self._unreadable):
            self.log.error("record cannot be read", record=str(record), count=self._unreadable)

    async def _planned(
        self,
        failures: Sequence[CoupledFailure],
        labels: Mapping[str, Label],
        contradicting: frozenset[str],
        policy: PlanPolicy,
    ) -> Plan:
        """The plan, once the policy was asked again where no safe answer is at hand."""
        asked = await asyncio.to_thread(
            unanswered,
            failures,
            labels,
            policy,
            contradicting=contradicting,
            most=self._settings.repairer.resample_prompts if self._pipeline.asks else 0,
        )
        try:
            found = await self._pipeline.ask_again(policy.context, asked, self.metrics.on_progress)
        finally:
            self.metrics.on_idle()
        if asked:
            self.log.info("policy asked again", failures=len(asked), safe_answers=len(found))
        return await asyncio.to_thread(
            plan,
            failures,
            labels,
            self._replay,
            policy,
            contradicting=contradicting,
            resampled=found,
        )

    async def _finish(self, run: RunDirectory, reports: Mapping[str, RepairReport]) -> None:
        """Carry a begun repair to its report; publish, commit, mark it settled."""
        report = await self._life.unless_stopped(
            self._pipeline.carry(run, self.metrics.on_progress)
        )
        if report is None:
            return
        if reports.get(report.plan_id) != report:
            self._log_report(report)
            await self._tell_gate(run)
            if report.state == "promoted":
                await self._announce()
            await self._publish(report)
            await self._trace(report)
        if report.state == "promoted":
            await self._commit(report)
        if report.state == "failed":
            self._failed |= {item.partition: item.end for item in report.batch}
        await asyncio.to_thread(run.settle)

    async def _tell_gate(self, run: RunDirectory) -> None:
        """Have the gate's verdict written where people look at the repair's steps."""
        command = self._settings.repairer.gate_command
        if not command or not run.verdict.exists:
            return
        verdict = run.verdict.read()
        word = "passed" if verdict.passed else "rejected"
        try:
            await run_child(
                (*command, word, verdict.reasons[0]), run.path, GATE_LIMITS, run.log("gate"),
                lambda *_: None,
            )  # fmt: skip
        except RepairError as error:
            self.log.warning("gate's verdict not told", plan_id=run.path.name, error=str(error))

    def _log_report(self, report: RepairReport) -> None:
        self.metrics.on_report(report)
        self.log.info(
            "repair ended",
            plan_id=report.plan_id,
            state=report.state,
            reason=report.reasons[0] if report.reasons else "",
        )

    async def _publish(self, report: RepairReport) -> None:
        record = OutboundRecord(
            self._reports_topic,
            report.plan_id.encode(),
            report.encode(),
            partition=topics.FIRST_PARTITION,
        )
        async with Publisher(self._settings.kafka) as publisher:
            await publisher.publish([record])

    async def _trace(self, report: RepairReport) -> None:
        """Spans of a repair, in the traces of the interactions that led to it as well. Nothing
        waits for what cannot be read any more: a trace is no record of ours."""
        if self._tracing is None:
            return
        try:
            failures = await read_parents(self._settings.kafka, report.batch)
        except ReadError as error:
            self.log.warning("not traced back", plan_id=report.plan_id, error=str(error))
            failures = []
        self._tracing.repaired(report, failures)
        if report.state == "promoted":
            log = await self._registry.log()
            made = [item for item in log.releases if item.plan_id == report.plan_id]
            self._tracing.released(report.plan_id, made)

    async def _commit(self, report: RepairReport) -> None:
        """Settle a batch. What is no longer ours is known to its owner by the report."""
        try:
            await self._queue.commit(report.batch)
        except BrokerError as error:
            self.log.warning("not committed; the report settles it", error=type(error).__name__)

    async def _awaiting(self, reports: Mapping[str, RepairReport]) -> bool:
        """Whether a person still has to decide; what was decided is reported and committed."""
        waiting = False
        for report in reports.values():
            if report.state != "awaiting_approval":
                continue
            decision = await self._pipeline.decided(report.plan_id)
            if decision is None:
                # Nobody can decide on what was never proposed: waiting would have no end.
                if await self._pipeline.is_proposed(report.plan_id):
                    waiting = True
                else:
                    self._tell_unknown(report)
                continue
            await self._announce()
            decided = report.model_copy(
                update={"state": decision, "finished_at": datetime.now(UTC)}
            )
            self._log_report(decided)
            await self._publish(decided)
            await self._trace(decided)
            if decision == "promoted":
                await self._commit(decided)
        self.metrics.awaiting.set(waiting)
        return waiting

    # Telling

    def _tell_unknown(self, report: RepairReport) -> None:
        """A report that came from elsewhere, or was written before the registry was another."""
        if report.plan_id not in self._unknown:
            reason = (
                f"{self._reports_topic}: repair {report.plan_id[:64]!a} awaits approval; "
                f"registry.root ({self._settings.registry.root}) holds no release of it, so that "
                "nobody can decide: it is not waited for"
            )
            self._unknown[report.plan_id] = reason
            self.log.error("repair unknown", reason=reason)

    async def _announce(self) -> None:
        """Bring topic and policy server to what the registry says, after each of its steps."""
        log = await self._registry.log()
        if log.last == self._announced and not self._announces_again():
            return
        topic = topic_name(self._settings.topic_prefix, topics.RELEASES)
        await announce_topic(self._settings.kafka, topic, log)
        self._announced = log.last
        server = self._settings.registry.policy_server
        if server is None:
            self._is_announcement_due = False
            return
        try:
            for line in await announce_policies(server, log):
                self.log.info("policy server told", release=line)
            self._is_announcement_due, self._refusals, self._refused = False, 0, None
        except TargetError as error:
            self._is_announcement_due, self._refused = True, str(error)
            self._refusals += 1
            pause = TELL_AGAIN_SECONDS[: self._refusals][-1]
            self._announce_at = time.monotonic() + pause
            self.log.error("policy server not told", error=str(error), again_in_seconds=pause)
        self.metrics.untold.set(self._is_announcement_due)

    def _announces_again(self) -> bool:
        return self._is_announcement_due and time.monotonic() >= self._announce_at


def configuration(settings: Settings) -> Configuration:
    """What the settings ask of every repair. Raises SettingsError naming what is missing."""
    repairer, ours = settings.repairer, Commands()
    recipe = _given(repairer.recipe, "recipe")
    # Ours cannot say without a judge which answers are safe.
    asks = recipe.judge is not None or repairer.resample_command
    return Configuration(
        work=repairer.work.resolve(),
        policy_model=repairer.policy_model,
        recipe=recipe,
        gate=repairer.gate,
        suites=() if repairer.suites is None else load_suites(repairer.suites),
        incumbent=_given(repairer.incumbent, "incumbent"),
        reference=_given(repairer.reference, "reference"),
        limits=Limits(repairer.step_hours * 3600, repairer.step_mebibytes << 20),
        automatic=repairer.approval == "automatic",
        samples=repairer.resample if asks else 0,
        private_key=repairer.private_key,
        commands=Commands(
            repairer.resample_command or ours.resample,
            repairer.train_command or ours.train,
            repairer.answer_command or ours.answer,
            repairer.export_command or ours.export,
        ),
    )


def _replay(repairer: RepairerSettings) -> Replay:
    return load_replay(_given(repairer.replay, "replay"))


def _given(value: _T | None, name: str) -> _T:
    if value is None:
        raise SettingsError(f"repairer.{name}: missing; docs/repair.md shows a whole settings file")
    return value
