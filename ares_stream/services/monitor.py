"""The monitor: follows verdicts, labels and dead letters; writes rates and alarms.

    verdicts ─┐                    ┌─► rates    figures, and the state with the offsets it covers
    labels ───┼─► ledger ─► alarms ┤
    deadletters ┘   (pure)         └─► alarms   with the records that raised them

The state and the positions it covers are one transaction on the compacted rates topic: a life
goes on exactly where the last commit of any life was. Of several replicas one leads, the member
of the group that owns the partition of the rates topic; the others are ready and wait. A leader
that was thought dead is fenced by the next one's producer and commits nothing more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from prometheus_client import CollectorRegistry

from ares_stream.detection.alarming import AlarmPolicy, acknowledge, attribute, evaluate
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.detection.tallies import CELLS, cell_name
from ares_stream.errors import (
    BrokerError,
    DecodeError,
    FileFormatError,
    SettingsError,
    StreamError,
)
from ares_stream.files import open_lines
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, decode_told
from ares_stream.records.base import OffsetRange, Record, digest
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import Label
from ares_stream.records.observation import read_observation
from ares_stream.records.rates import (
    AnchorAnswers,
    AnchorFigures,
    MonitorState,
    Rates,
    SampledVerdict,
    decode_held,
)
from ares_stream.records.topics import topic_name
from ares_stream.services.forecasts_followed import FollowedForecasts
from ares_stream.services.lifecycle import Life
from ares_stream.services.logs import is_told
from ares_stream.services.monitor_metrics import MonitorMetrics
from ares_stream.services.settings import MonitorSettings, Settings
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.compacted import read_latest_as
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord

STANDBY_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
PUBLISH_RECORDS: Final = 200_000
"""Records between two publications while catching up."""
AHEAD_MS: Final = 3_600_000
"""How far ahead of this clock a record's time may lie. One whose producer's clock stood in another
year would make all that come after it late, and late verdicts are in no alarm."""
BATCH: Final = 500
"""Records that are counted between two looks at the rest of the service."""


class MonitorService:
    """One life of the service."""

    def __init__(self, settings: Settings, life: Life) -> None:
        self._settings = settings
        self._life = life
        self._log = life.log
        self.metrics = MonitorMetrics(CollectorRegistry(), objectives(settings.monitor))
        self._shown: tuple[Alarm, ...] = ()
        self._patience = Patience(settings.patience_seconds, life.clock)
        self._missing: str | None = f"waiting for Kafka at {settings.kafka.bootstrap}"
        self._queue: Queue | None = None
        self._notes: tuple[str, ...] = ()

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self.metrics.registry

    def missing(self) -> str | None:
        """See lifecycle.Service."""
        return self._patience.reason or self._missing

    def notes(self) -> Sequence[str]:
        """See lifecycle.Service."""
        return self._notes

    def pages(self) -> Mapping[str, Callable[[], object]]:
        """See lifecycle.Pages: `/alarms`, where Prometheus' alerts lead."""
        return {"/alarms": lambda: {"alarms": [_places(alarm) for alarm in self._shown]}}

    def _topic(self, name: str) -> str:
        return topic_name(self._settings.topic_prefix, name)

    async def run(self) -> None:
        """Lead where this is the group's owner, else stand by. Raises TopicError for a missing
        topic and BrokerError when Kafka stays away."""
        while not self._life.is_stopping:
            try:
                await self._session()
            except StreamError as error:
                self._patience.failed(error)
                self._log.warning("started anew", error=str(error))
                await self._life.pause(RETRY_SECONDS)

    async def _session(self) -> None:
        names = (
            *(topics.VERDICTS, topics.LABELS, topics.DEADLETTERS),
            *(topics.RATES, topics.ALARMS, topics.RELEASES),
        )
        kafka = self._settings.kafka
        queue = Queue(kafka, self._topic(topics.RATES), self._settings.monitor.group)
        async with self._life.breaking_off():
            await count_partitions(kafka, [self._topic(name) for name in names])
            await queue.start()
        try:
            while not self._life.is_stopping:
                async with self._life.breaking_off():
                    leads = await queue.leads()
                if leads:
                    leader = _Leader(self._settings, self._life, self.metrics, queue, self)
                    await leader.run()
                    self._stand_by()
                elif queue.is_joined:
                    # Who begins anew again and again joins each time: that alone is no progress.
                    self._missing = None
                    self._patience.progressed()
                await self._life.pause(STANDBY_SECONDS)
        finally:
            self._stand_by()
            await queue.stop()

    def _stand_by(self) -> None:
        self._shown = ()
        self.metrics.stand_by()

    def opened(self, alarms: Iterable[Alarm]) -> None:
        """These alarms are open."""
        self._shown = tuple(sorted(alarms, key=lambda item: item.raised_at))

    def progressed(self, missing: str | None = None, notes: Sequence[str] = ()) -> None:
        """See Progress."""
        self._missing = missing
        self._notes = tuple(notes)
        self._patience.progressed()


class Progress(Protocol):
    """Who is told that the leader works."""

    def progressed(self, missing: str | None = None, notes: Sequence[str] = ()) -> None:
        """A commit, or nothing to do. `missing` is why it is not ready yet, `notes` what an
        operator should know."""
        ...

    def opened(self, alarms: Iterable[Alarm]) -> None:
        """The alarms that are open now."""
        ...


class _Leader:
    """The time from taking over to losing the partition, an error or the end."""

    def __init__(
        self,
        settings: Settings,
        life: Life,
        metrics: MonitorMetrics,
        queue: Queue,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._monitor = settings.monitor
        self._life = life
        self._log = life.log
        self._metrics = metrics
        self._queue = queue
        self._progress = progress
        self._policy = ledger_policy(settings)
        self._alarms = alarm_policy(self._monitor)
        self._ledger = Ledger(self._policy)
        self._forecasts = FollowedForecasts()
        self._open: dict[str, Alarm] = {}
        self._when = settings.scorer.detection.scored_high_when
        prefix = settings.topic_prefix
        self._verdicts, self._labels, self._letters = (
            topic_name(prefix, name)
            for name in (topics.VERDICTS, topics.LABELS, topics.DEADLETTERS)
        )
        self._rates, self._alarm_topic, self._releases = (
            topic_name(prefix, name) for name in (topics.RATES, topics.ALARMS, topics.RELEASES)
        )

    async def run(self) -> None:
        """Follow until the partition is another's. Raises StreamError."""
        kafka = self._settings.kafka
        name = f"{self._settings.topic_prefix}monitor"
        async with AsyncExitStack() as opened:
            async with self._life.breaking_off():
                journal = await opened.enter_async_context(Journal(kafka, name))
                # Entering ended what an earlier leader left open: what is read now is all there is.
                await self._restore(journal)
                follower = await opened.enter_async_context(self._follower())
            self._metrics.leading.set(1)
            self._log.info("leading", verdicts=self._covered())
            sending = asyncio.create_task(self._send_anchors(), name="anchors")
            try:
                await self._follow(follower, journal, sending)
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    def _follower(self) -> Follower:
        followed = [
            *(self._verdicts, self._labels, self._letters),
            *(self._alarm_topic, self._releases),
        ]
        for name in followed:
            self._metrics.unreadable.labels(name).set(self._ledger.unreadable[name])
        ledger = self._ledger
        return Follower(self._settings.kafka, followed, ledger.positions, logs=ledger.logs)

    async def _follow(
        self, follower: Follower, journal: Journal, sending: asyncio.Task[None]
    ) -> None:
        backlog = follower.behind()
        self._metrics.lag.set(backlog)
        taken, published, looked = 0, time.monotonic(), time.monotonic()
        changed = True
        while not self._life.is_stopping:
            if sending.done():
                sending.result()  # A file that is gone or a topic that may not be written ends it.
            records = await follower.poll()
            for start in range(0, len(records), BATCH):
                for record in records[start : start + BATCH]:
                    self._take(record)
                await asyncio.sleep(0)
            taken += len(records)
            apart = (self._alarm_topic, self._releases)
            changed = changed or any(item.topic not in apart for item in records)
            self._ledger.positions.update(follower.positions)
            self._ledger.logs = follower.logs
            for loss in follower.take_losses():
                self._ledger.gaps.append(loss.gap)
                changed = True
                self._log.error("offsets lost", reason=str(loss), **loss.gap.model_dump())
            now = time.monotonic()
            behind = follower.behind()
            if behind == 0:
                backlog = 0
            if now - looked > STANDBY_SECONDS:
                looked = now
                self._metrics.lag.set(behind)
                if not await self._queue.leads():
                    return
            due = now - published >= self._monitor.publish_seconds
            if due or taken >= PUBLISH_RECORDS:
                await self._publish(journal, changed)
                waits = f"reading its topics: {behind:,} records to go" if backlog else None
                self._progress.progressed(waits, self._notes())
                taken, published, changed = 0, time.monotonic(), False
        if changed:
            await self._publish(journal, True)

    # Taking in

    def _take(self, record: InboundRecord) -> None:
        stamp = believed(record.timestamp_ms, int(time.time() * 1000))
        try:
            if record.topic == self._verdicts:
                seen = read_observation(record.value or b"", self._when)
                if seen.lane == "anchor" and seen.anchor is None:
                    raise DecodeError("the anchor lane, and no truth", field="anchor")
                self._ledger.add(seen, stamp, (record.partition, record.offset))
            elif record.topic == self._labels:
                self._take_label(record)
            elif record.topic == self._letters:
                self._ledger.add_dead_letters([stamp])
            elif record.topic == self._releases:
                self._forecasts.take(record.key or b"", record.value)
            else:
                self._take_alarm(record)
        except DecodeError as error:
            self._refuse(record, error)

    def _take_label(self, record: InboundRecord) -> None:
        if record.value is None:
            self._ledger.remove_label(record.key or b"")
        else:
            self._ledger.add_label(record.key or b"", Label.decode(record.value))

    def _take_alarm(self, record: InboundRecord) -> None:
        told = decode_told(record.value)
        if isinstance(told, Alarm):
            return  # Our own.
        self._open.pop(told.alarm_id, None)
        if acknowledge(self._ledger, told.alarm_id):
            self._log.info("alarm acknowledged", alarm=told.alarm_id)

    def _refuse(self, record: InboundRecord, error: DecodeError) -> None:
        count = self._ledger.unreadable[record.topic] = self._ledger.unreadable[record.topic] + 1
        if is_told(count):
            self._log.warning(
                "record passed over",
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                error=str(error),
                count=count,
            )

    # Start

    async def _begin_anew(
        self, journal: Journal, keys: Sequence[bytes], error: DecodeError
    ) -> None:
        """Count from the verdicts that are there: a state whose records contradict each other is
        worth nothing, since nobody knows which of them are wrong."""
        self._log.error(
            "counting anew from the verdicts",
            topic=self._rates, error=str(error),
        )  # fmt: skip
        await journal.append(
            [
                OutboundRecord(self._rates, key, None, partition=topics.FIRST_PARTITION)
                for key in keys
            ]
        )
        self._ledger = Ledger(self._policy)
        # Kept with the state: whoever asks for the figures later sees that it happened.
        self._ledger.unreadable[self._rates] += 1
        self._metrics.unreadable.labels(self._rates).set(1)

    async def _restore(self, journal: Journal) -> None:
        kafka = self._settings.kafka
        found: dict[type[Record], list[Record]] = {}
        held_now = await read_latest_as(
            kafka, self._rates, lambda record: decode_held(record.key, record.value)
        )
        for item in held_now.values():
            found.setdefault(type(item), []).append(item)
        states = [item for item in found.get(MonitorState, []) if isinstance(item, MonitorState)]
        if held_now:
            try:
                if not states:
                    raise DecodeError("it holds no state of a monitor")
                self._ledger.restore(
                    states[0],
                    [item for item in found.get(Rates, []) if isinstance(item, Rates)],
                    [i for i in found.get(AnchorFigures, []) if isinstance(i, AnchorFigures)],
                    [i for i in found.get(AnchorAnswers, []) if isinstance(i, AnchorAnswers)],
                    [i for i in found.get(SampledVerdict, []) if isinstance(i, SampledVerdict)],
                )
            except DecodeError as error:
                await self._begin_anew(journal, list(held_now), error)
        # Labels and releases are compacted: their topics are their state.
        compacted = [self._labels, self._releases]
        ranges = await snapshot(kafka, compacted)
        for name in compacted:
            self._ledger.unreadable.pop(name, None)
        of_labels = [item for item in ranges if item.topic == self._labels]
        present = await read_latest_as(
            kafka,
            self._labels,
            lambda record: (record.key or b"", Label.decode(record.value or b"")),
            ranges=of_labels,
            unreadable=self._refuse,
        )
        for key, label in present.values():
            self._ledger.add_label(key, label)
        async for record in read(kafka, [item for item in ranges if item not in of_labels]):
            self._take(record)
        for covered in ranges:
            self._ledger.positions[covered.topic, covered.partition] = covered.end
            self._ledger.logs.pop((covered.topic, covered.partition), None)
        async for record in read(kafka, await snapshot(kafka, [self._alarm_topic])):
            self._remember(record)

    def _remember(self, record: InboundRecord) -> None:
        """Which alarms are open."""
        try:
            told = decode_told(record.value)
        except DecodeError:
            return  # Named when it is followed.
        if isinstance(told, Alarm):
            self._open[told.id] = told
        else:
            self._open.pop(told.alarm_id, None)

    # Publishing

    async def _publish(self, journal: Journal, changed: bool) -> None:
        """State, figures and alarms in one transaction."""
        now = datetime.now(UTC)
        raised = await asyncio.to_thread(
            evaluate, self._ledger, self._alarms, now, self._verdicts, self._covers()
        )
        updated = [*raised, *self._attributed()]
        if changed or updated:
            budget = sum(self._policy.review_shares.values()) / len(CELLS)
            changes = await asyncio.to_thread(self._ledger.changes, now, budget)
            records = [
                OutboundRecord(
                    self._rates,
                    key,
                    None if value is None else value.encode(),
                    partition=topics.FIRST_PARTITION,
                )
                for key, value in changes
            ]
            records += [
                OutboundRecord(
                    self._alarm_topic,
                    item.id.encode(),
                    item.encode(),
                    partition=topics.FIRST_PARTITION,
                )
                for item in updated
            ]
            await journal.append(records)
        for alarm in updated:
            if alarm.id not in self._open:
                self._metrics.alarms.labels(alarm.kind).inc()
                self._log.error(
                    "alarm", alarm=alarm.id, kind=alarm.kind, attribution=alarm.attribution,
                    summary=alarm.summary,
                )  # fmt: skip
            self._open[alarm.id] = alarm
        self._metrics.show(self._ledger, self._open.values())
        self._metrics.show_forecasts(self._forecasts.errors(self._ledger))
        self._progress.opened(self._open.values())

    def _notes(self) -> list[str]:
        gaps = self._ledger.gaps
        return [f"{len(gaps)} gaps: offsets were deleted unread"] if gaps else []

    def _attributed(self) -> list[Alarm]:
        """Open alarms of which it can be said only now whether the judge explains them."""
        found = []
        for alarm in self._open.values():
            if alarm.attribution != "none" or alarm.rate is None or alarm.baseline is None:
                continue
            if alarm.kind == "judge_changed":
                continue
            judged = attribute(
                self._ledger,
                self._alarms,
                int(alarm.changed_at.timestamp()),
                alarm.rate,
                alarm.baseline,
            )
            if judged.attribution != "none":
                change = {
                    "attribution": judged.attribution,
                    "attribution_reason": judged.reason,
                }
                found.append(alarm.model_copy(update=change))
        return found

    def _covers(self) -> tuple[OffsetRange, ...]:
        return tuple(
            OffsetRange(topic=topic, partition=partition, start=0, end=end)
            for (topic, partition), end in sorted(self._ledger.positions.items())
            if topic == self._verdicts
        )

    def _covered(self) -> int:
        return sum(group.whole.total for group in self._ledger.groups.values())

    # Anchors

    async def _send_anchors(self) -> None:
        """Send the anchors again and again, one at a time at a steady rate, in a fixed order."""
        asked = self._monitor.anchors
        if asked is None:
            return
        anchors = await asyncio.to_thread(read_anchors, asked.file)
        # Any fixed order in which the truths take turns by chance.
        anchors.sort(key=lambda item: digest([item.id]))
        interval = 60.0 / asked.per_minute
        topic = topic_name(self._settings.topic_prefix, topics.ANCHOR)
        async with Publisher(self._settings.kafka) as publisher:
            while True:
                turn = int(time.time() / interval)
                anchor = anchors[turn % len(anchors)]
                name = f"{anchor.id}-{turn}"
                sent = anchor.model_copy(update={"id": name, "occurred_at": datetime.now(UTC)})
                try:
                    await publisher.publish([OutboundRecord(topic, name.encode(), sent.encode())])
                except BrokerError as error:
                    self._log.warning("an anchor was not sent", error=str(error))
                await asyncio.sleep((turn + 1) * interval - time.time())


def believed(stamp_ms: int, now_ms: int) -> int:
    """A record's time, at most AHEAD_MS after now."""
    return min(stamp_ms, now_ms + AHEAD_MS)


def read_anchors(path: Path) -> list[Interaction]:
    """The anchors of a file of `ares anchors make`. Raises SettingsError, FileFormatError."""
    found: list[Interaction] = []
    with open_lines(path) as lines:
        for number, raw in lines:
            try:
                item = Interaction.decode(raw)
            except DecodeError as error:
                raise FileFormatError(str(path), number, str(error)) from None
            if item.anchor is None:
                raise FileFormatError(str(path), number, "no `anchor`: its truth is not known")
            found.append(item)
    if not found:
        raise SettingsError(f"monitor.anchors.file: {path} holds no anchors")
    return found


def ledger_policy(settings: Settings) -> LedgerPolicy:
    """What the ledger keeps apart, from the settings."""
    monitor, scorer = settings.monitor, settings.scorer
    split: dict[str, float] = dict(scorer.review_split.items())
    return LedgerPolicy(
        slices=monitor.slices,
        cluster=monitor.cluster,
        max_values=monitor.max_values,
        max_versions=monitor.max_versions,
        max_samples=monitor.max_samples,
        review_shares={cell: split.get(cell_name(cell), scorer.review_sample) for cell in CELLS},
    )


def _places(alarm: Alarm) -> dict[str, object]:
    """Where the records are that raised it. No slice, no version and no summary: whoever may
    scrape metrics may read this, and those come from conversations."""
    whole = alarm.model_dump(mode="json")
    names = ("id", "kind", "attribution", "raised_at", "changed_at", "evidence", "covers")
    return {name: whole[name] for name in names}


def objectives(settings: MonitorSettings) -> dict[str, float]:
    """What is bearable, by figure; Prometheus' rules compare with these."""
    alarms = settings.alarms
    named = {
        "coupled_failure": alarms.coupled,
        "contested": alarms.contested,
        "dead_letters": alarms.dead_letters,
        "judge_changed": alarms.judge_changed,
        "reward_drift": alarms.reward_drift,
    }
    return {name: value for name, value in named.items() if value is not None}


def alarm_policy(settings: MonitorSettings) -> AlarmPolicy:
    """What the alarms watch, from the settings."""
    asked = settings.alarms
    return AlarmPolicy(
        coupled=asked.coupled,
        contested=asked.contested,
        dead_letters=asked.dead_letters,
        judge_changed=asked.judge_changed,
        reward_drift=asked.reward_drift,
        false_alarm_days=asked.false_alarm_days,
        silent_seconds=asked.silent_seconds,
        slices=len(settings.slices) * (settings.max_values + 1),
    )
