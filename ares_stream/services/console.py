"""The console: follows review items, labels, alarms, rates and repairs; serves pages to people.

    review, repair, labels, alarms, rates, repairs ─► desk (bounded memory) ─► pages
    pages ─► labels, alarms, the registry and the releases topic

Its state is the topics: a restart reads them again. Leases are in this process, so one replica
serves. The text of an item is read from its topic when a person asks for it, and never kept.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from ares_stream.console.app import console_app
from ares_stream.console.desk import CauseSearch, Desk, Why
from ares_stream.console.identity import Identity
from ares_stream.console.queue import Item
from ares_stream.errors import (
    AresError,
    DecodeError,
    ReadError,
    RegistryError,
    ScoringError,
    SettingsError,
    StreamError,
)
from ares_stream.files import read_secret
from ares_stream.models.announcing import announce_topic
from ares_stream.models.policy_server import announce_policies
from ares_stream.models.registry import Registry
from ares_stream.models.releases import Author, Log
from ares_stream.records import topics
from ares_stream.records.alarm import AlarmAcknowledgement
from ares_stream.records.base import OffsetRange
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import OTHERS_SHOWN_HEADER, Label, ReviewItem
from ares_stream.records.release import Release
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.topics import topic_name
from ares_stream.repair.gate import GateVerdict
from ares_stream.repair.rundirectory import RunDirectory
from ares_stream.services.console_metrics import ConsoleMetrics
from ares_stream.services.health import serve_health
from ares_stream.services.lifecycle import Life
from ares_stream.services.logs import is_told
from ares_stream.services.settings import Settings
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.publisher import Publisher
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord

if TYPE_CHECKING:
    from ares_stream.scoring.model import ScoringModel
    from ares_stream.scoring.nearest import BenignIndex, Nearest
    from ares_stream.scoring.occlusion import Explanation

RETRY_SECONDS: Final = 1.0
MAX_PLAN_LETTERS: Final = 64
MAX_BENIGN: Final = 5_000
"""Rows of `console.reference` that are compared; memory grows with their text."""
READ_SECONDS: Final = 10.0
"""A person waits no longer for a text."""
READERS: Final = 4
"""Texts that are read at once, each by a consumer of its own: who opens fifty tabs opens no fifty
connections to each broker."""


class ConsoleService:
    """See lifecycle.Service."""

    def __init__(self, settings: Settings, life: Life) -> None:
        self._settings = settings
        self._life = life
        self._console = settings.console
        self._metrics = ConsoleMetrics(CollectorRegistry())
        self._patience = Patience(settings.patience_seconds, life.clock)
        self._missing: str | None = f"waiting for Kafka at {settings.kafka.bootstrap}"
        self._unreadable = 0
        self._outside = Writer(settings)
        self._identity = Identity(self._console.identity, session_key(settings))
        self.desk = self._new_desk()
        self.port = 0
        """Where the pages are, once they are served."""

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self._metrics.registry

    def missing(self) -> str | None:
        """See lifecycle.Service."""
        return self._patience.reason or self._missing

    def notes(self) -> Sequence[str]:
        """See lifecycle.Service."""
        dropped = self.desk.queue.dropped
        notes = [f"{dropped} items were dropped unseen: console.queue.max_items"] if dropped else []
        if self._unreadable:
            notes.append(f"{self._unreadable} records could not be read")
        return notes

    async def run(self) -> None:
        """Serve pages and follow. Raises TopicError for a missing topic, BrokerError when Kafka
        stays away."""
        app = console_app(self.desk, self._identity, self._told, self._console.path)
        async with (
            serve_health(app, self._console.host, self._console.port, field="console") as self.port,
            self._outside,
        ):
            self._life.log.info("pages", host=self._console.host, port=self.port)
            while not self._life.is_stopping:
                try:
                    async with self._life.breaking_off():
                        await self._follow()
                except StreamError as error:
                    self._patience.failed(error)
                    self._life.log.warning("started anew", error=str(error))
                    await self._life.pause(RETRY_SECONDS)

    def _new_desk(self) -> Desk:
        return Desk(
            self._console.queue,
            self._settings.scorer.detection,
            self._settings.topic_prefix,
            self._outside,
            self._life.clock,
        )

    async def _follow(self) -> None:
        kafka = self._settings.kafka
        ends = {
            (item.topic, item.partition): item.end
            for item in await snapshot(kafka, self.desk.topics)
        }
        # All that is taken twice gives the same state, so a new session begins at the beginning.
        async with Follower(kafka, self.desk.topics, {}) as follower:
            while not self._life.is_stopping:
                for record in await follower.poll():
                    self._take(record)
                follower.take_losses()  # What retention deleted is no longer asked of anyone.
                positions = follower.positions
                left = sum(max(0, end - positions.get(place, 0)) for place, end in ends.items())
                if left == 0:
                    self._missing = None
                elif self._missing is not None:
                    self._missing = f"reading its topics: {left} records to go"
                self._patience.progressed()
                self._metrics.lag.set(follower.behind())
                self._metrics.waiting.set(self.desk.queue.waiting)

    def _take(self, record: InboundRecord) -> None:
        try:
            self.desk.take(record)
        except DecodeError as error:
            self._unreadable += 1
            if is_told(self._unreadable):
                self._life.log.warning(
                    "record passed over", topic=record.topic, partition=record.partition,
                    offset=record.offset, error=str(error), count=self._unreadable,
                )  # fmt: skip

    def _told(self, what: str, fields: Mapping[str, str]) -> None:
        self._metrics.decisions.labels(what).inc()
        self._life.log.info(what, **fields)


def session_key(settings: Settings) -> bytes:
    """What signs sessions and forms: from a file, else of this process alone."""
    file = settings.console.session_key_file
    if file is None:
        return secrets.token_bytes(32)
    return read_secret("console.session_key_file", file).get_secret_value().encode()


class Writer:
    """console.desk.Outside with Kafka, the registry and the repairs' directories."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._publisher = Publisher(settings.kafka)
        self._registry = Registry(settings.registry.store())
        self._publishing = asyncio.Lock()
        self._explaining = asyncio.Lock()
        self._reading = asyncio.Semaphore(READERS)
        self._reward: ScoringModel | None = None
        self._benign: BenignIndex | None = None
        self._search: asyncio.Task[None] | None = None
        self._searched: CauseSearch | None = None

    async def __aenter__(self) -> Writer:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)
        await self._publisher.aclose()

    async def interaction(self, item: Item) -> Interaction:
        """Raises ReadError where retention has deleted it, BrokerError where Kafka fails."""
        place = item.place
        where = OffsetRange(
            topic=place.topic, partition=place.partition, start=place.offset, end=place.offset + 1
        )
        found = read(self._settings.kafka, [where], stall_seconds=READ_SECONDS)
        async with self._reading, aclosing(found) as records:
            async for record in records:
                is_failure = place.topic == topic_name(self._settings.topic_prefix, topics.REPAIR)
                decode = CoupledFailure.decode if is_failure else ReviewItem.decode
                return decode(record.value or b"").interaction
        raise ReadError(f"{place.topic} {place.partition}@{place.offset}: is no longer there")

    async def why(self, interaction: Interaction) -> Why:
        """Runs the reward model of `scorer.reward`. Raises SettingsError where none is named,
        BundleError, ScoringError."""
        async with self._explaining:
            return await asyncio.to_thread(self._why, interaction)

    def _why(self, interaction: Interaction) -> Why:
        explanation = self._explanation(interaction)
        benign = self._nearest(interaction)
        if benign is None:
            return Why(explanation)
        model = self._model()
        opinion = model.opinions([(benign.interaction, benign.interaction.response)])[0]
        return Why(explanation, benign,
                   None if isinstance(opinion, ScoringError) else opinion.value)  # fmt: skip

    def _explanation(self, interaction: Interaction) -> Explanation:
        from ares_stream.scoring.occlusion import explain, line_of

        model = self._model()
        line = line_of(model, self._settings.scorer.detection.reward_quantile)
        return explain(model, interaction, line)

    def _model(self) -> ScoringModel:
        # Who explains nothing pays for no model.
        from ares_stream.models.bundles import load_bundle
        from ares_stream.scoring.model import ScoringModel

        scorer = self._settings.scorer
        if scorer.reward is None:
            raise SettingsError("scorer.reward: is not set; the console explains with that model")
        if self._reward is None:
            bundle = load_bundle(scorer.reward, "reward")
            self._reward = ScoringModel(bundle, scorer.provider, tf32=scorer.tf32)
        return self._reward

    def _nearest(self, interaction: Interaction) -> Nearest | None:
        file = self._settings.console.reference
        if file is None:
            return None
        if self._benign is None:
            from ares_stream.scoring.nearest import BenignIndex
            from ares_stream.training.examples import read_conversations

            rows, _ = read_conversations([file])
            self._benign = BenignIndex(rows[:MAX_BENIGN])
        return self._benign.nearest(interaction)

    @property
    def cause_search(self) -> CauseSearch | None:
        """See Outside."""
        return self._searched

    def seek_causes(self, failures: Sequence[Item]) -> None:
        """See Outside. A search that is under way goes on."""
        if self._searched is None or not self._searched.is_running:
            self._searched = CauseSearch(len(failures))
            self._search = asyncio.create_task(
                self._seek(self._searched, tuple(failures)), name="causes"
            )

    async def _seek(self, search: CauseSearch, failures: Sequence[Item]) -> None:
        from ares_stream.scoring.causes import causes, words_of

        named: dict[str, Sequence[str]] = {}
        try:
            for item in failures:
                try:
                    interaction = await self.interaction(item)
                    async with self._explaining:
                        found = await asyncio.to_thread(self._explanation, interaction)
                    named[item.id] = words_of(found)
                except (ReadError, ScoringError):
                    search.unexplained += 1
                search.done += 1
            search.causes = tuple(causes(named))
        except AresError as error:
            search.problem = str(error)
        finally:
            if search.is_running:
                search.problem = "it was broken off"

    async def label(self, label: Label) -> None:
        """See Outside."""
        await self._publish(topics.LABELS, label.key, label.encode())

    async def undo(self, label: Label, by: str, at: datetime) -> None:
        """Delete the label; who and when go with the deletion as headers."""
        headers = [("ares-undone-by", by.encode()), ("ares-undone-at", at.isoformat().encode())]
        if label.others_shown_at is not None:
            headers.append((OTHERS_SHOWN_HEADER, label.others_shown_at.isoformat().encode()))
        await self._publish(topics.LABELS, label.key, None, tuple(headers))

    async def acknowledge(self, record: AlarmAcknowledgement) -> None:
        """See Outside."""
        key, value = record.alarm_id.encode(), record.encode()
        await self._publish(topics.ALARMS, key, value, partition=topics.FIRST_PARTITION)

    async def _publish(
        self,
        topic: str,
        key: bytes,
        value: bytes | None,
        headers: tuple[tuple[str, bytes], ...] = (),
        partition: int | None = None,
    ) -> None:
        name = topic_name(self._settings.topic_prefix, topic)
        record = OutboundRecord(name, key, value, headers, partition=partition)
        async with self._publishing:
            await self._publisher.publish([record])

    async def log(self) -> Log:
        """See Outside."""
        return await self._registry.log()

    async def decide(self, verb: str, selector: str, author: Author) -> Sequence[Release]:
        """One step of the registry, then the announcement. Where that fails the step stands, and
        the error says so."""
        step: Sequence[Release]
        if verb == "approve":
            step = await self._registry.approve(selector, author)
        elif verb == "reject":
            step = await self._registry.reject(selector, author)
        else:
            step = await self._roll_back(selector, author)
        topic = topic_name(self._settings.topic_prefix, topics.RELEASES)
        log = await self._registry.log()
        try:
            await announce_topic(self._settings.kafka, topic, log)
            if self._settings.registry.policy_server is not None:
                await announce_policies(self._settings.registry.policy_server, log)
        except StreamError as error:
            raise RegistryError(
                f"decided, but not announced: {error}; `ares release announce` tells it later"
            ) from error
        return step

    async def _roll_back(self, selector: str, author: Author) -> Sequence[Release]:
        log = await self._registry.log()
        for item in log.select(selector):
            active = log.active(item.model)
            if active is not None and active.digest == item.digest:
                return await self._registry.rollback(item.model, author)
        raise RegistryError(f"{selector[:12]}: is not active, so there is nothing to roll back")

    async def gate(self, plan: str, named: str | None = None) -> GateVerdict | None:
        """See Outside."""
        run = self._run(plan)
        if run is not None and run.verdict.exists:
            return await asyncio.to_thread(run.verdict.read)
        # Of a repairer whose folder is elsewhere the registry has it.
        log = await self._registry.log()
        names = {item.gate_report for item in log.releases if item.plan_id == plan} | {named}
        for name in filter(None, names):
            if (raw := await self._registry.gate_report(name)) is not None:
                return GateVerdict.decode(raw)
        return None

    async def pairs(self, plan: str) -> Sequence[tuple[str, str, str]]:
        """See Outside."""
        run = self._run(plan)
        if run is None or not (run.answers.exists and run.suites.exists):
            return ()
        suites = await asyncio.to_thread(run.suites.read)
        answers = await asyncio.to_thread(run.answers.read)
        prompts = [case.messages[-1].content for suite in suites for case in suite.cases]
        pairs = list(zip(prompts, answers.before, answers.after, strict=True))
        # What the repair has changed comes first.
        return sorted(pairs, key=lambda pair: pair[1] == pair[2])

    def _run(self, plan: str) -> RunDirectory | None:
        # A plan's id is a digest; anything else names no directory of ours.
        is_ours = plan.isascii() and plan.isalnum() and len(plan) <= MAX_PLAN_LETTERS
        return RunDirectory(self._settings.repairer.work / plan) if is_ours else None
