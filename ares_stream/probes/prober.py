"""A campaign on Kafka: asks the target, publishes Interactions, learns from verdicts.

The topics are the only memory. A session takes the campaign's name (which ends a session that
still runs elsewhere), reads the probe and verdict topics, feeds what they hold to a fresh
campaign, and goes on where that leads. A crash, a lost broker and a restart are the same path.

    take the name ─► read topics ─► campaign ─► ask ─► publish (transaction) ─► verdicts ─┐
                                       ▲                                                  │
                                       └──────────────────────────────────────────────────┘

Each query is published exactly once. The target hears it at least once: what was asked and not
yet published when a session died is asked again, at most `chunk` queries per death; where an
attacker worded it, perhaps in other words. Words are final once published: a confirmation and
a later session read them from the topic. A query that the scorer cannot score (its dead
letter) and one that the target refuses earn nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from ares_stream.endpoints.client import Unanswerable
from ares_stream.errors import (
    BrokerError,
    DecodeError,
    LoginError,
    ReadError,
    SettingsError,
    TargetError,
    root_cause,
)
from ares_stream.probes.attacker import Fault, Kind
from ares_stream.probes.campaign import Ask, Campaign
from ares_stream.probes.memory import FINISH, UNANSWERED, Calibration, CampaignMemory, Progress
from ares_stream.probes.plan import CampaignPlan
from ares_stream.probes.record import Exchange
from ares_stream.probes.targets import Answer, Query, Target
from ares_stream.probes.wording import MADE_BY
from ares_stream.records import topics
from ares_stream.records.base import OffsetRange, stable_seed
from ares_stream.records.cloudevents import cloudevent_headers
from ares_stream.records.interaction import Interaction, Probe
from ares_stream.records.topics import topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal, group_lag
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.reader import follow, read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from ares_stream.streaming.unreadable import PassedOver, UnreadableRecord

GIVE_UP: Final = 5
"""Failures of one query, while the target answers others, after which it counts as refused."""
ALL_REFUSED: Final = 50
"""Queries that were all refused, after which no other is asked."""


@dataclass(frozen=True, slots=True)
class ProberPolicy:
    """When a campaign waits.

    `patience_seconds`: how long the target may answer nothing, or the scorer judge nothing,
    before `run` raises; None waits for ever and shows the pause.
    """

    chunk: int = 8
    """Queries asked at once and published in one transaction."""
    scorer_groups: Mapping[str, str] = field(
        default_factory=lambda: dict.fromkeys(("production", "probe"), "ares-scorer")
    )
    """Consumer group that scores each lane."""
    max_lag_records: int = 5_000
    """Interactions of any lane that wait for the scorer: beyond this, production goes first."""
    lag_seconds: float = 5.0
    """How often a paused campaign looks whether the lag is gone."""
    backoff_seconds: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 30.0)
    """Pauses while the target, or Kafka, fails; the last one repeats."""
    patience_seconds: float | None = None
    attacker_seconds: float = 120.0
    """How long a generation waits for the attacker; then it goes on with the composer's words."""


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

    def attacker_answered(self, answer: Answer) -> None:
        """The attacker answered; whether its words are said is told by `reworded`."""

    def passed_over(self, record: UnreadableRecord) -> None:
        """A record that names the campaign cannot be read; told once."""

    def reworded(self, kind: Kind, fault: Fault | None) -> None:
        """The attacker worded a probe; a fault means that the composer's words are said."""


class Prober:
    """One campaign against one target. `run` returns when the budget is spent and judged, or
    after `stop`.

    Raises TopicError for a missing topic, BrokerError when Kafka fails for longer than the
    patience, StreamError when another process has taken the campaign over, SettingsError where the
    target or the attacker says that it can never be asked like this, or where a plan's attacker
    is missing, TargetError when patience is set and the target or the scorer gives nothing for
    as long. An attacker that gives nothing is not waited for.
    """

    def __init__(
        self,
        connection: KafkaConnection,
        plan: CampaignPlan,
        target: Target,
        *,
        attacker: Target | None = None,
        prefix: str = "ares.",
        policy: ProberPolicy | None = None,
        observer: ProberObserver | None = None,
        patience: Patience | None = None,
    ) -> None:
        if plan.attack is not None and attacker is None:
            raise SettingsError(
                f"attacker: campaign {plan.id} has one and this command cannot ask it; use "
                "`ares probe run` or `ares prober`, or leave the section out"
            )
        self._connection = connection
        self._plan = plan
        self._target = target
        self._attacker = attacker
        self._prefix = prefix
        self._policy = policy or ProberPolicy()
        self._observer = observer or ProberObserver()
        self._patience = patience or Patience()
        self._topic = topic_name(prefix, topics.PROBE)
        self._stopping = asyncio.Event()
        self._lag_seen, self._lagging = float("-inf"), False
        self._state = CampaignMemory(plan, self._topic)
        self._passed_over = PassedOver(self._observer.passed_over)

    @property
    def campaign(self) -> Campaign:
        """The campaign's state, as far as the topics are read."""
        return self._state.campaign

    @property
    def progress(self) -> Progress:
        """Where the campaign stands."""
        return self._state.progress()

    def missing(self) -> str | None:
        """What Kafka fails to give now; None while it works."""
        return self._patience.reason

    def stop(self) -> None:
        """Ask nothing more; `run` returns soon. Safe in a signal handler."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until the campaign is done. See the class for what it raises."""
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._session_unless_stopped()
            except (BrokerError, LoginError, ReadError) as error:
                failures = 1 if self._patience.reason is None else failures + 1
                self._patience.failed(error)
            else:
                return
            await self._rest(self._policy.backoff_seconds[:failures][-1])

    async def _session_unless_stopped(self) -> None:
        """What is asked and not published yet is asked again by the next start."""
        session = asyncio.create_task(self._session(), name="session")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await asyncio.wait({session, stop}, return_when=asyncio.FIRST_COMPLETED)
            if session.done():
                session.result()
        finally:
            for task in (session, stop):
                task.cancel()
            await asyncio.gather(session, stop, return_exceptions=True)

    async def _session(self) -> None:
        state = CampaignMemory(self._plan, self._topic)
        async with Journal(self._connection, f"{self._prefix}prober.{self._plan.id}") as journal:
            ranges = await self._ranges()
            async for record in read(self._connection, ranges):
                self._take(state, record)
            self._state = state
            self._settle(state)
            await self._work(journal, state, ranges)

    def _take(self, state: CampaignMemory, record: InboundRecord) -> bool:
        try:
            return state.take(record)
        except DecodeError as error:
            self._passed_over(record, error)
            return False

    async def _ranges(self) -> tuple[OffsetRange, ...]:
        return await snapshot(self._connection, _memory_topics(self._prefix))

    async def _work(
        self, journal: Journal, state: CampaignMemory, ranges: Sequence[OffsetRange]
    ) -> None:
        """Ask and settle until done, while a task beside reads verdicts."""
        news = asyncio.Event()

        async def listen() -> None:
            # Closed with this task: a loop alone would leave the consumer to the garbage collector.
            async with aclosing(follow(self._connection, ranges)) as records:
                async for record in records:
                    if self._take(state, record):
                        news.set()

        try:
            async with asyncio.TaskGroup() as tasks:
                listener = tasks.create_task(listen(), name="verdicts")
                await self._ask_all(journal, state, news)
                listener.cancel()
        except BaseExceptionGroup as group:
            raise root_cause(group) from group
        finally:
            self._observer.paused("budget" if state.campaign.done else None)

    async def _ask_all(self, journal: Journal, state: CampaignMemory, news: asyncio.Event) -> None:
        while not state.campaign.done:
            missing = state.unsent()
            if missing:
                await self._wait_for_lag()
                await self._reword(state, missing)
                await self._ask(journal, state, missing)
            await self._wait_for_verdicts(state, news)
            self._patience.progressed()
            self._settle(state)
        self._refuse_silence(state, None)

    def _settle(self, state: CampaignMemory) -> None:
        """Feed the campaign all that is known, and show it."""
        before = state.campaign.generation
        state.advance()
        if state.campaign.generation != before:
            self._observer.calibrated(state.calibration)
        self._observer.progress(state.progress(), state.components)

    # Asking

    async def _reword(self, state: CampaignMemory, asks: Sequence[Ask]) -> None:
        """Have the attacker word what it is to word and nobody has heard yet."""
        if self._attacker is None:
            return
        wanted = [(ask, item) for ask in asks if (item := state.wording.errand(ask)) is not None]
        queries = [
            Query(item.messages(), stable_seed(ask.probe, item.label)) for ask, item in wanted
        ]
        answers = await _ask_within(self._attacker, queries, self._policy.attacker_seconds)
        for (ask, item), answer in zip(wanted, answers, strict=True):
            if answer is not None:
                self._observer.attacker_answered(answer)
            fault = state.wording.reword(ask, item, answer)
            self._observer.reworded(item.kind, fault)

    async def _ask(self, journal: Journal, state: CampaignMemory, asks: Sequence[Ask]) -> None:
        """Ask until every query is published, chunk by chunk."""
        waiting = list(asks)
        failed: Counter[str] = Counter()
        answered: Ask | None = None
        silent_since: float | None = None
        rest = 0
        failure: TargetError | None = None
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
                failure = result
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
                self._refuse_silence(state, failure)
                silent_since, rest = None, 0
                self._observer.paused(None)
            else:
                self._patience.progressed()  # It is not Kafka that keeps the campaign waiting.
                silent_since = silent_since or time.monotonic()
                self._observer.paused("target")
                reason = f"the target answered nothing ({failure})"
                self._lose_patience(silent_since, reason)
            # Those that failed go last: the target may answer the others.
            waiting += again
            if again and not done:
                rest += 1
                await asyncio.sleep(self._policy.backoff_seconds[:rest][-1])

    def _refuse_silence(self, state: CampaignMemory, failure: TargetError | None) -> None:
        """A target that refuses all of its first queries refuses the campaign: to spend the
        budget on it would look like a campaign that found nothing."""
        sent, answered = state.sent_and_answered()
        if not answered and (sent >= ALL_REFUSED or (sent and state.campaign.done)):
            why = f" ({failure})" if failure else ""
            raise TargetError(
                f"campaign {self._plan.id}: none of {sent} queries was answered{why}; "
                "mend the target and start again"
            )

    async def _answers(self, ask: Ask | None, state: CampaignMemory) -> bool:
        """Whether the target still answers what it answered before: then a query that fails
        again and again fails for its own sake."""
        if ask is None:
            return False
        [result] = await self._target.ask([_query(ask, state)])
        return isinstance(result, Answer)

    async def _publish(
        self, journal: Journal, state: CampaignMemory, done: Sequence[tuple[Ask, Answer | None]]
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
        self._patience.progressed()
        self._observer.published(len(interactions))

    def _interaction(self, ask: Ask, answer: Answer | None, state: CampaignMemory) -> Interaction:
        words = state.wording.words(ask)
        attributes = {} if answer is not None else {UNANSWERED: "refused"}
        if answer is not None and not answer.text.strip():
            attributes[FINISH] = answer.finish[:128]
        if self._plan.attack is not None:
            attributes[MADE_BY] = words.made_by
        return Interaction(
            id=ask.id,
            occurred_at=datetime.now(UTC),
            messages=words.messages,
            response="" if answer is None else answer.text,
            policy=self._target.policy,
            attributes=attributes,
            probe=Probe(
                id=ask.probe,
                campaign=self._plan.id,
                generation=ask.generation,
                components=words.ids,
                sampling_probability=ask.probability,
                parents=words.parents,
            ),
        )

    # Waiting

    async def _wait_for_lag(self) -> None:
        """Production goes first: ask nothing while the scorer is behind."""
        policy = self._policy
        watched = {"production": topics.PRODUCTION, "probe": topics.PROBE}
        since = time.monotonic()
        while since - self._lag_seen > policy.lag_seconds or self._lagging:
            lag = 0
            for lane, topic in watched.items():
                name = topic_name(self._prefix, topic)
                lag += await group_lag(self._connection, policy.scorer_groups[lane], [name])
            self._lag_seen = time.monotonic()
            self._lagging = lag > policy.max_lag_records
            if not self._lagging:
                self._observer.paused(None)
                return
            self._observer.paused("lag")
            self._lose_patience(since, f"the scorer is {lag} records behind")
            await asyncio.sleep(policy.lag_seconds)

    async def _wait_for_verdicts(self, state: CampaignMemory, news: asyncio.Event) -> None:
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


async def campaign_record(
    connection: KafkaConnection, prefix: str, campaign: str, passed_over: PassedOver
) -> AsyncIterator[Exchange]:
    """A campaign's judged queries from the topics, in the order of their ids. A record that names
    the campaign and cannot be read is passed over.

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
            passed_over(record, error)
    for id in sorted(interactions):
        if id in verdicts:
            yield Exchange(interactions[id], verdicts[id])


async def rebuild(
    connection: KafkaConnection, prefix: str, plan: CampaignPlan, passed_over: PassedOver
) -> Campaign:
    """A campaign's state from the topics, without taking it over. What names it and cannot be read
    is passed over. Raises as reading does."""
    state = CampaignMemory(plan, topic_name(prefix, topics.PROBE))
    ranges = await snapshot(connection, _memory_topics(prefix))
    async for record in read(connection, ranges):
        try:
            state.take(record)
        except DecodeError as error:
            passed_over(record, error)
    state.advance()
    return state.campaign


def _memory_topics(prefix: str) -> list[str]:
    return [
        topic_name(prefix, name) for name in (topics.PROBE, topics.VERDICTS, topics.DEADLETTERS)
    ]


def _query(ask: Ask, state: CampaignMemory) -> Query:
    """A probe's first answer has seed 0: a local model answers it greedily, so it repeats."""
    seed = 0 if ask.attempt == 0 else stable_seed(ask.id)
    return Query(state.wording.words(ask).messages, seed)


async def _ask_within(
    target: Target, queries: Sequence[Query], seconds: float
) -> list[Answer | None]:
    """Answers by query; None for what is not answered in time. Raises SettingsError."""
    answers: list[Answer | None] = [None] * len(queries)

    async def one(place: int, query: Query) -> None:
        [result] = await target.ask([query])
        if isinstance(result, Answer):
            answers[place] = result

    try:
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            for place, query in enumerate(queries):
                tasks.create_task(one(place, query))
    except TimeoutError:
        pass
    except BaseExceptionGroup as group:
        raise root_cause(group) from group
    return answers
