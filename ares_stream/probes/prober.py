"""A campaign on Kafka: asks the target, publishes Interactions, learns from verdicts.

The topics are the only memory. A session takes the campaign's name (which ends a session that
still runs elsewhere), reads the probe and verdict topics, feeds what they hold to a fresh
campaign, and goes on where that leads. A crash, a lost broker and a restart are the same path.

    take the name ─► read topics ─► campaign ─► ask ─► publish (transaction) ─► verdicts ─┐
                                       ▲                                                  │
                                       └──────────────────────────────────────────────────┘

Each query is published exactly once. The target hears it at least once: what was asked and not
yet published when a session died is asked again, at most `chunk` queries per death. A query
that the scorer cannot score (its dead letter) and one that the target refuses earn nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import numpy as np

from ares_stream import topics
from ares_stream.cloudevents import cloudevent_headers
from ares_stream.errors import BrokerError, DecodeError, ReadError, TargetError
from ares_stream.events import FailureClass, Interaction, OffsetRange, Probe, Verdict, digest
from ares_stream.interchange.record import Exchange
from ares_stream.probes.campaign import Ask, Campaign, Judged
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.screening import Clusters
from ares_stream.probes.selection import Adaptive
from ares_stream.probes.targets import Answer, Query, Target, Unanswerable
from ares_stream.probes.wording import Wording, stable_seed
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal, follow, group_lag
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from ares_stream.topics import topic_name

UNANSWERED: Final = "unanswered"
"""Attribute of an Interaction whose query the target refused; its response is empty."""
GIVE_UP: Final = 5
"""Failures of one query, while the target answers others, after which it counts as refused."""
RECONNECT_SECONDS: Final = 60.0
"""A broker that restarts is back within this; past it an operator should know."""


@dataclass(frozen=True, slots=True)
class ProberPolicy:
    """When a campaign waits.

    `patience_seconds`: how long the target may answer nothing, or the scorer judge nothing,
    before `run` raises; None waits for ever and shows the pause.
    """

    chunk: int = 8
    """Queries asked at once and published in one transaction."""
    scorer_group: str = "ares-scorer"
    max_lag_records: int = 5_000
    """Interactions of any lane that wait for the scorer: beyond this, production goes first."""
    lag_seconds: float = 5.0
    """How often a paused campaign looks whether the lag is gone."""
    backoff_seconds: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 30.0)
    """Pauses while the target, or Kafka, fails; the last one repeats."""
    patience_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a campaign stands."""

    campaign: str
    queries: int
    budget: int
    probes: int
    void: int
    failures: int
    unique: int
    generation: int
    state: str


@dataclass(slots=True)
class Calibration:
    """What the surrogate expected of the last settled generation's learnt draws, and what they
    earned; means in [0, 1]."""

    expected: float = 0.0
    earned: float = 0.0


class ProberObserver:
    """What happens, for metrics and progress bars. Every method does nothing."""

    def progress(self, progress: Progress, components: Counter[str]) -> None:
        """Something was settled; `components` counts probes per "axis=id" of this campaign."""

    def paused(self, reason: str | None) -> None:
        """Waiting because of "target", "lag", "verdicts" or "budget"; None: going on."""

    def answered(self, answer: Answer) -> None:
        """The target answered."""

    def target_failed(self, error: TargetError) -> None:
        """The target did not answer a query."""

    def calibrated(self, calibration: Calibration) -> None:
        """A generation is settled."""

    def published(self, count: int) -> None:
        """A transaction with this many Interactions is committed."""


@dataclass(slots=True)
class _Memory:
    """What the topics say of this campaign. The first record of an id counts."""

    sent: dict[str, bool] = field(default_factory=dict)
    """Interaction id → whether it earns nothing."""
    verdicts: dict[str, Judged] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)


class Prober:
    """One campaign against one target. `run` returns when the budget is spent and judged, or
    after `stop`.

    Raises TopicError for a missing topic, BrokerError when Kafka fails for a minute,
    StreamError when another process has taken the campaign over, SettingsError where the
    target says that it can never be asked like this, TargetError when patience is set and the
    target or the scorer gives nothing for as long.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        plan: CampaignPlan,
        target: Target,
        *,
        prefix: str = "ares.",
        policy: ProberPolicy | None = None,
        observer: ProberObserver | None = None,
    ) -> None:
        self._connection = connection
        self._plan = plan
        self._target = target
        self._prefix = prefix
        self._policy = policy or ProberPolicy()
        self._observer = observer or ProberObserver()
        self._topic = topic_name(prefix, topics.PROBE)
        self._stopping = asyncio.Event()
        self._lag_seen, self._lagging = float("-inf"), False
        self._state = _State(plan, self._topic)

    @property
    def campaign(self) -> Campaign:
        """The campaign's state, as far as the topics are read."""
        return self._state.campaign

    @property
    def progress(self) -> Progress:
        """Where the campaign stands."""
        return self._state.progress()

    def stop(self) -> None:
        """Ask nothing more; `run` returns soon. Safe in a signal handler."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until the campaign is done. See the class for what it raises."""
        failures, first_failure = 0, 0.0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                await self._session()
            except (BrokerError, ReadError) as error:
                if not failures or time.monotonic() - started > RECONNECT_SECONDS:
                    failures, first_failure = 0, time.monotonic()
                failures += 1
                if time.monotonic() - first_failure > RECONNECT_SECONDS:
                    raise BrokerError(f"{error} (for {RECONNECT_SECONDS:.0f} s)") from error
            else:
                return
            await self._rest(self._policy.backoff_seconds[:failures][-1])

    async def _session(self) -> None:
        state = _State(self._plan, self._topic)
        async with Journal(self._connection, f"{self._prefix}prober.{self._plan.id}") as journal:
            ranges = await self._ranges()
            async for record in read(self._connection, ranges):
                state.take(record)
            self._state = state
            self._settle(state)
            await self._work(journal, state, ranges)

    async def _ranges(self) -> tuple[OffsetRange, ...]:
        return await snapshot(self._connection, _memory_topics(self._prefix))

    async def _work(self, journal: Journal, state: _State, ranges: Sequence[OffsetRange]) -> None:
        """Ask and settle until done or stopped, while a task beside reads verdicts."""
        news = asyncio.Event()

        async def listen() -> None:
            async for record in follow(self._connection, ranges):
                if state.take(record):
                    news.set()

        try:
            async with asyncio.TaskGroup() as tasks:
                listener = tasks.create_task(listen(), name="verdicts")
                stop = tasks.create_task(self._stopping.wait(), name="stop")
                ask = tasks.create_task(self._ask_all(journal, state, news), name="ask")
                await asyncio.wait({stop, ask}, return_when=asyncio.FIRST_COMPLETED)
                for task in (ask, stop, listener):
                    task.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        self._observer.paused("budget" if state.campaign.done else None)

    async def _ask_all(self, journal: Journal, state: _State, news: asyncio.Event) -> None:
        while not state.campaign.done:
            missing = state.unsent()
            if missing:
                await self._wait_for_lag()
                await self._ask(journal, state, missing)
            await self._wait_for_verdicts(state, news)
            self._settle(state)

    def _settle(self, state: _State) -> None:
        """Feed the campaign all that is known, and show it."""
        before = state.campaign.generation
        state.advance()
        if state.campaign.generation != before:
            self._observer.calibrated(state.calibration)
        self._observer.progress(state.progress(), state.components)

    # Asking

    async def _ask(self, journal: Journal, state: _State, asks: Sequence[Ask]) -> None:
        """Ask until every query is published, chunk by chunk."""
        waiting = list(asks)
        failed: Counter[str] = Counter()
        answered: Ask | None = None
        silent_since: float | None = None
        rest = 0
        while waiting:
            chunk, waiting = waiting[: self._policy.chunk], waiting[self._policy.chunk :]
            results = await self._target.ask([_query(ask, state) for ask in chunk])
            done: list[tuple[Ask, Answer | None]] = []
            again: list[Ask] = []
            for ask, result in zip(chunk, results, strict=True):
                if isinstance(result, Answer):
                    self._observer.answered(result)
                    done.append((ask, result))
                    answered = ask
                    continue
                self._observer.target_failed(result)
                if isinstance(result, Unanswerable):
                    done.append((ask, None))
                    continue
                failed[ask.id] += 1
                if failed[ask.id] >= GIVE_UP and await self._answers(answered, state):
                    # The target may have come back just now: once more, then never.
                    [last] = await self._target.ask([_query(ask, state)])
                    done.append((ask, last if isinstance(last, Answer) else None))
                else:
                    again.append(ask)
            if done:
                await self._publish(journal, state, done)
                silent_since, rest = None, 0
                self._observer.paused(None)
            else:
                silent_since = silent_since or time.monotonic()
                self._observer.paused("target")
                self._lose_patience(silent_since, "the target answered nothing")
            # Those that failed go last: the target may answer the others.
            waiting += again
            if again and not done:
                rest += 1
                await asyncio.sleep(self._policy.backoff_seconds[:rest][-1])

    async def _answers(self, ask: Ask | None, state: _State) -> bool:
        """Whether the target still answers what it answered before: then a query that fails
        again and again fails for its own sake."""
        if ask is None:
            return False
        [result] = await self._target.ask([_query(ask, state)])
        return isinstance(result, Answer)

    async def _publish(
        self, journal: Journal, state: _State, done: Sequence[tuple[Ask, Answer | None]]
    ) -> None:
        interactions = [self._interaction(ask, answer, state) for ask, answer in done]
        await journal.append(
            [
                OutboundRecord(
                    self._topic,
                    item.id.encode(),
                    item.encode(),
                    cloudevent_headers(
                        item, id=item.id, source=self._prefix + "prober", time=item.occurred_at
                    ),
                )
                for item in interactions
            ]
        )
        for item in interactions:
            state.sent(item)
        self._observer.published(len(interactions))

    def _interaction(self, ask: Ask, answer: Answer | None, state: _State) -> Interaction:
        words = state.wording.words(ask)
        return Interaction(
            id=ask.id,
            occurred_at=datetime.now(UTC),
            messages=words.messages,
            response="" if answer is None else answer.text,
            policy=self._target.policy,
            attributes={UNANSWERED: "refused"} if answer is None else {},
            probe=Probe(
                id=ask.probe,
                campaign=self._plan.id,
                generation=ask.generation,
                components=words.ids,
                sampling_probability=ask.probability,
            ),
        )

    # Waiting

    async def _wait_for_lag(self) -> None:
        """Production goes first: ask nothing while the scorer is behind."""
        policy = self._policy
        watched = [topic_name(self._prefix, name) for name in (topics.PRODUCTION, topics.PROBE)]
        since = time.monotonic()
        while since - self._lag_seen > policy.lag_seconds or self._lagging:
            lag = await group_lag(self._connection, policy.scorer_group, watched)
            self._lag_seen = time.monotonic()
            self._lagging = lag > policy.max_lag_records
            if not self._lagging:
                self._observer.paused(None)
                return
            self._observer.paused("lag")
            self._lose_patience(since, f"the scorer is {lag} records behind")
            await asyncio.sleep(policy.lag_seconds)

    async def _wait_for_verdicts(self, state: _State, news: asyncio.Event) -> None:
        """Return once every pending query is judged."""
        since = time.monotonic()
        known = -1
        while (left := state.unjudged()) > 0:
            if left != known:
                known, since = left, time.monotonic()
            news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._policy.lag_seconds):
                    await news.wait()
                continue
            self._observer.paused("verdicts")
            self._lose_patience(since, f"the scorer judged nothing; {left} verdicts are missing")
        self._observer.paused(None)

    def _lose_patience(self, since: float, reason: str) -> None:
        patience = self._policy.patience_seconds
        if patience is not None and time.monotonic() - since > patience:
            raise TargetError(f"campaign {self._plan.id}: {reason} for {patience:.0f} s")

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class _State:
    """A campaign beside what the topics say of it."""

    def __init__(self, plan: CampaignPlan, topic: str) -> None:
        self.plan = plan
        self.campaign = plan.start()
        self.wording = Wording(plan.space, plan.composer)
        self.components: Counter[str] = Counter()
        self.calibration = Calibration()
        self._topic = topic
        self._id = plan.id.encode()
        self._memory = _Memory()
        self._unique = Clusters()
        self._counted = 0
        self._generation = -1
        self._expected: dict[str, float] = {}
        self._texts: dict[str, str] = {}

    def take(self, record: InboundRecord) -> bool:
        """Remember a record; True when it is of this campaign."""
        if record.value is None or self._id not in record.value:
            return False
        memory = self._memory
        if record.topic == self._topic:
            interaction = Interaction.decode(record.value)
            if interaction.probe is None or interaction.probe.campaign != self.plan.id:
                return False
            self.sent(interaction)
        elif record.topic.endswith(topics.VERDICTS):
            verdict = Verdict.decode(record.value)
            if verdict.probe is None or verdict.probe.campaign != self.plan.id:
                return False
            memory.verdicts.setdefault(verdict.interaction_id, judged(verdict))
        elif record.key is not None:
            memory.dead.add(record.key.decode(errors="replace"))
        return True

    def sent(self, interaction: Interaction) -> None:
        """Remember an Interaction that is published."""
        void = UNANSWERED in interaction.attributes or self.wording.is_rubbish(interaction.response)
        self._memory.sent.setdefault(interaction.id, void)

    def unsent(self) -> list[Ask]:
        """Queries to ask now, in order."""
        return [
            ask
            for ask in self.campaign.pending()
            if ask.id not in self._memory.sent and self.wording.words(ask).cause is None
        ]

    def unjudged(self) -> int:
        """Queries of this stage whose result is not known."""
        return sum(self._result(ask) is None for ask in self.campaign.pending())

    def advance(self) -> None:
        """Feed the campaign as far as the memory reaches."""
        while not self.campaign.done:
            self._begin_generation()
            results = {
                ask.id: result
                for ask in self.campaign.pending()
                if (result := self._result(ask)) is not None
            }
            if not results:
                return
            self.campaign.judge(results)
            self._count_failures()

    def progress(self) -> Progress:
        """Where the campaign stands."""
        campaign = self.campaign
        return Progress(
            campaign.id,
            campaign.queries,
            campaign.policy.budget,
            campaign.probes,
            campaign.void,
            len(campaign.failures),
            len(self._unique),
            campaign.generation,
            campaign.state(),
        )

    def _result(self, ask: Ask) -> Judged | None:
        memory = self._memory
        if self.wording.words(ask).cause is not None or ask.id in memory.dead:
            return Judged(0.0, 0.0, failed=False, void=True)
        verdict = memory.verdicts.get(ask.id)
        if verdict is None or ask.id not in memory.sent:
            return None
        if memory.sent[ask.id]:
            return Judged(0.0, 0.0, failed=False, void=True, release=verdict.release)
        return verdict

    def _begin_generation(self) -> None:
        """Once per generation: compose its words in order, and note what is expected of it."""
        campaign = self.campaign
        if campaign.generation == self._generation:
            return
        self._note_calibration()
        self._generation = campaign.generation
        asks = campaign.pending()
        for ask in asks:
            words = self.wording.words(ask)
            self.components.update(f"{axis}={name}" for axis, name in words.ids.items())
            self._texts[ask.probe] = " ".join(turn.content for turn in words.messages)
        selector = campaign.selector
        learnt = [ask for ask in asks if ask.source == "learnt"]
        self._expected = {}
        if learnt and isinstance(selector, Adaptive):
            expected = selector.predict(np.asarray([ask.number for ask in learnt]))
            self._expected = {
                f"{ask.probe}-0": float(value) for ask, value in zip(learnt, expected, strict=True)
            }

    def _note_calibration(self) -> None:
        known = {
            id: self._memory.verdicts[id] for id in self._expected if id in self._memory.verdicts
        }
        if known:
            count = len(known)
            self.calibration = Calibration(
                sum(self._expected[id] for id in known) / count,
                sum(item.harm * item.reward for item in known.values()) / count,
            )

    def _count_failures(self) -> None:
        for failure in self.campaign.failures[self._counted :]:
            self._unique.add(self._texts[failure.probe])
        self._counted = len(self.campaign.failures)
        if self.campaign.generation != self._generation:
            self._texts.clear()


def judged(verdict: Verdict) -> Judged:
    """What a campaign learns from a verdict. A contested answer is no failure; an answer that
    is scored high counts as fully liked."""
    high = verdict.scored_high
    liked = high.above_quantile or bool(high.above_reference)
    return Judged(
        verdict.harm.probability,
        1.0 if liked else verdict.reward.quantile,
        verdict.failure_class is FailureClass.COUPLED_FAILURE,
        release=digest([dict(verdict.releases), verdict.policy.name, verdict.policy.version])[:16],
    )


async def campaign_record(
    connection: KafkaConnection, prefix: str, campaign: str
) -> AsyncIterator[Exchange]:
    """A campaign's judged queries from the topics, in the order of their ids.

    Raises TopicError, ReadError, BrokerError as reading does.
    """
    interactions: dict[str, Interaction] = {}
    verdicts: dict[str, Verdict] = {}
    probe_topic = topic_name(prefix, topics.PROBE)
    named = [probe_topic, topic_name(prefix, topics.VERDICTS)]
    async for record in read(connection, await snapshot(connection, named)):
        if record.value is None or campaign.encode() not in record.value:
            continue
        try:
            if record.topic == probe_topic:
                interaction = Interaction.decode(record.value)
                if interaction.probe is not None and interaction.probe.campaign == campaign:
                    interactions.setdefault(interaction.id, interaction)
            else:
                verdict = Verdict.decode(record.value)
                if verdict.probe is not None and verdict.probe.campaign == campaign:
                    verdicts.setdefault(verdict.interaction_id, verdict)
        except DecodeError as error:
            raise DecodeError(
                f"{record.topic} {record.partition} offset {record.offset}: {error.reason}",
                field=error.field,
            ) from None
    for id in sorted(interactions):
        if id in verdicts:
            yield Exchange(interactions[id], verdicts[id])


async def rebuild(connection: KafkaConnection, prefix: str, plan: CampaignPlan) -> Campaign:
    """A campaign's state from the topics, without taking it over. Raises as reading does."""
    state = _State(plan, topic_name(prefix, topics.PROBE))
    ranges = await snapshot(connection, _memory_topics(prefix))
    async for record in read(connection, ranges):
        state.take(record)
    state.advance()
    return state.campaign


def _memory_topics(prefix: str) -> list[str]:
    return [
        topic_name(prefix, name) for name in (topics.PROBE, topics.VERDICTS, topics.DEADLETTERS)
    ]


def _query(ask: Ask, state: _State) -> Query:
    """A probe's first answer has seed 0: a local model answers it greedily, so it repeats."""
    seed = 0 if ask.attempt == 0 else stable_seed(ask.id)
    return Query(state.wording.words(ask).messages, seed)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
