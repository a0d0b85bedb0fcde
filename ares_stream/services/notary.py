"""The notary: grows a Merkle tree of every partition of the output topics and signs its heads.

    verdicts, repair, labels, releases, ─► trees ─┬─► notary       how far each tree has grown
    repairs, deadletters                          ├─► salts        of the leaves of text
                                                  └─► checkpoints  signed heads with their leaves

A round is two transactions. The first writes what the trees have grown by, and its salts; the
second, signed heads of exactly that. So no head is ever signed of a tree that a crash could take
back: a life that ends between the two is followed by one that signs the same heads. Positions,
trees and salts are read from the topics at the start, so that each record is one leaf, through
kills and replicas. Of several replicas one leads, the owner of the notary topic's partition.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from prometheus_client import CollectorRegistry

from ares_stream.audit.heads import SignedHead, continues, signed_head
from ares_stream.audit.leaves import COMPACTED, WITH_TEXT, Hasher, leaf_of
from ares_stream.audit.notes import NoteSigner, TreeHead, sign_note, tree_origin
from ares_stream.audit.salts import Salts
from ares_stream.audit.stamps import StampAuthority
from ares_stream.audit.tree import MerkleRange
from ares_stream.errors import (
    AresError,
    DecodeError,
    IntegrityError,
    SettingsError,
    StreamError,
    TopicError,
)
from ares_stream.records import topics
from ares_stream.records.base import OffsetRange
from ares_stream.records.checkpoint import Checkpoint, NotaryState, PendingLeaves, Salt
from ares_stream.records.topics import topic_name
from ares_stream.services.lifecycle import Life
from ares_stream.services.metrics import zeros
from ares_stream.services.notary_metrics import NotaryMetrics
from ares_stream.services.settings import NotarySettings, Settings
from ares_stream.streaming.admin import count_partitions
from ares_stream.streaming.compacted import read_latest_as
from ares_stream.streaming.follower import Follower
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.patience import Patience
from ares_stream.streaming.queue import Queue
from ares_stream.streaming.reader import read, snapshot
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from ares_stream.streaming.resume import OffsetLoss

STANDBY_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
ROUND_LEAVES: Final = 8192
"""Leaves of a round: a checkpoint with all of them (81 bytes each, in base64) still fits into a
record, and a round's transaction into its time-out."""
POLL_RECORDS: Final = 2000
TAIL_OFFSETS: Final = 64
"""Of the checkpoints topic, looked through first for the last heads."""
ANOTHER_LOG: Final = (
    "the topic was deleted and made anew, or restored; keep its checkpoints, and give the notary "
    "another notary.name and an empty notary topic"
)

Place = tuple[str, int]


@dataclass(slots=True)
class Grown:
    """One partition's tree, and what it has grown by since its last checkpoint."""

    topic: str
    partition: int
    tree: MerkleRange
    end: int
    start: int
    before: list[bytes]
    """Peaks of the tree at its last checkpoint."""
    leaves: list[bytes] = field(default_factory=list)
    gaps: list[OffsetRange] = field(default_factory=list)
    stamped: float | None = None
    """Monotonic seconds of its last time stamp in this life."""
    log: str = ""
    """Which log it is the tree of; see streaming.log_identity."""

    @property
    def has_news(self) -> bool:
        """Whether a checkpoint would say more than the one before."""
        return bool(self.leaves or self.gaps)

    def state(self, *, signed: bool) -> NotaryState:
        """The state to write; `signed` when the checkpoint stands beside it."""
        pending = PendingLeaves(
            start=self.start,
            leaves=b"".join(self.leaves),
            peaks=_shown(self.before),
            gaps=tuple(self.gaps),
        )
        return NotaryState(
            topic=self.topic,
            partition=self.partition,
            end=self.end,
            size=self.tree.size,
            peaks=_shown(self.tree.peaks),
            pending=None if signed else pending,
            log=self.log,
        )

    def checkpoint(
        self, origin: str, signers: Sequence[NoteSigner], issued_at: datetime
    ) -> Checkpoint:
        """The signed head."""
        head = TreeHead(tree_origin(origin, self.topic, self.partition), self.tree.size,
                        self.tree.root())  # fmt: skip
        return Checkpoint(
            topic=self.topic,
            partition=self.partition,
            start=self.start,
            end=self.end,
            size=self.tree.size,
            note=sign_note(head.text(), signers),
            leaves=b"".join(self.leaves),
            peaks=_shown(self.before),
            gaps=tuple(self.gaps),
            issued_at=issued_at,
        )

    def signed(self) -> None:
        """The next checkpoint begins here."""
        self.start = self.end
        self.before = list(self.tree.peaks)
        self.leaves.clear()
        self.gaps.clear()


def _shown(peaks: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(peak.hex() for peak in peaks)


def read_signers(settings: NotarySettings) -> tuple[NoteSigner, ...]:
    """The private keys. Raises SettingsError."""
    if not settings.keys:
        raise SettingsError("notary.keys: names no private key; `ares audit key` makes one")
    return tuple(NoteSigner.read(settings.name, file) for file in settings.keys)


class NotaryService:
    """One life of the service."""

    def __init__(self, settings: Settings, life: Life) -> None:
        self._settings = settings
        self._life = life
        self._log = life.log
        self._signers = read_signers(settings.notary)
        stamps = settings.notary.stamps
        self._authority = (
            None if stamps is None
            else StampAuthority(stamps.url, stamps.roots, stamps.timeout_seconds)
        )  # fmt: skip
        self.metrics = NotaryMetrics(CollectorRegistry())
        self._patience = Patience(settings.patience_seconds, life.clock)
        self._missing: str | None = f"waiting for Kafka at {settings.kafka.bootstrap}"
        self._lost = 0
        self._forgotten = 0
        prefix = settings.topic_prefix
        self._followed = {topic_name(prefix, name): name for name in settings.notary.topics}
        zeros(self.metrics.lost, self._followed.values())
        self._state_topic = topic_name(prefix, topics.NOTARY)
        self._salt_topic = topic_name(prefix, topics.SALTS)
        self._checkpoint_topic = topic_name(prefix, topics.CHECKPOINTS)
        self._releases = topic_name(prefix, topics.RELEASES)
        self._grown: dict[Place, Grown] = {}
        self._hashers: dict[Place, Hasher] = {}
        self._with_text = {name for name, kind in self._followed.items() if kind in WITH_TEXT}
        self._salts = Salts()
        self._drawn: list[Salt] = []
        """To be written with the next round."""
        self._taken_up: set[Place] = set()
        """Partitions that are read on from where their state ends; of others each record may have
        been read before."""
        self._has_recalled = False

    @property
    def registry(self) -> CollectorRegistry:
        """Its metrics."""
        return self.metrics.registry

    def missing(self) -> str | None:
        """See lifecycle.Service."""
        return self._patience.reason or self._missing

    def notes(self) -> Sequence[str]:
        """See lifecycle.Service."""
        lost = [f"{self._lost} offsets were deleted unread"] if self._lost else []
        forgotten = f"{self._forgotten} states continued no signed head and were not taken up"
        return [*lost, forgotten] if self._forgotten else lost

    async def run(self) -> None:
        """Lead where this is the group's owner, else stand by. Raises TopicError for a topic
        that is missing or was made anew, BrokerError when Kafka stays away."""
        while not self._life.is_stopping:
            try:
                await self._session()
            except StreamError as error:
                self._patience.failed(error)
                self._log.warning("started anew", error=str(error))
                await self._life.pause(RETRY_SECONDS)

    async def _session(self) -> None:
        kafka = self._settings.kafka
        own = (self._state_topic, self._salt_topic, self._checkpoint_topic)
        queue = Queue(kafka, self._state_topic, self._settings.notary.group)
        async with self._life.breaking_off():
            await count_partitions(kafka, (*self._followed, *own))
            await queue.start()
        try:
            while not self._life.is_stopping:
                async with self._life.breaking_off():
                    leads = await queue.leads()
                if leads:
                    await self._lead(queue)
                    self.metrics.stand_by()
                elif queue.is_joined:
                    # Who begins anew again and again joins each time: that alone is no progress.
                    self._progressed()
                await self._life.pause(STANDBY_SECONDS)
        finally:
            self.metrics.stand_by()
            await queue.stop()

    def _progressed(self) -> None:
        self._missing = None
        self._patience.progressed()

    async def _lead(self, queue: Queue) -> None:
        kafka = self._settings.kafka
        name = f"{self._settings.topic_prefix}notary"
        async with AsyncExitStack() as opened:
            async with self._life.breaking_off():
                journal = await opened.enter_async_context(Journal(kafka, name))
                # Entering ended what an earlier leader left open: what is read now is all there is.
                await self._restore()
                await self._sign(journal)
                ends = {place: item.end for place, item in self._grown.items()}
                logs = {place: item.log for place, item in self._grown.items()}
                follower = await opened.enter_async_context(
                    Follower(kafka, list(self._followed), ends, logs=logs, most=POLL_RECORDS)
                )
            self.metrics.leading.set(1)
            self._log.info("leading", leaves=sum(item.tree.size for item in self._grown.values()))
            await self._follow(follower, journal, queue)

    async def _follow(self, follower: Follower, journal: Journal, queue: Queue) -> None:
        written = looked = time.monotonic()
        taken, due = 0, False
        while not self._life.is_stopping:
            records = await follower.poll()
            for loss in follower.take_losses():
                self._lose(loss)
            await self._recall(records)
            for record in records:
                self._take(record, follower.topic_ids.get(record.topic))
                due = due or record.topic == self._releases
            taken += len(records)
            now = time.monotonic()
            late = now - written >= self._settings.notary.checkpoint_seconds
            if due or late or taken >= ROUND_LEAVES - POLL_RECORDS:
                self._move(follower)
                await self._round(journal)
                if not follower.behind():
                    self._progressed()
                written, taken, due = time.monotonic(), 0, False
            if now - looked > STANDBY_SECONDS:
                looked = now
                self.metrics.lag.set(follower.behind())
                if not await queue.leads():
                    return
            await asyncio.sleep(0)
        self._move(follower)
        await self._round(journal)

    # Growing

    def _of(self, place: Place) -> Grown:
        grown = self._grown.get(place)
        if grown is None:
            grown = self._grown[place] = Grown(*place, MerkleRange(), 0, 0, [])
        return grown

    async def _recall(self, records: Sequence[InboundRecord]) -> None:
        """Read the salts of before, once, as soon as a record comes that may have one."""
        if self._has_recalled or not any(
            item.topic in self._with_text and (item.topic, item.partition) not in self._taken_up
            for item in records
        ):
            return
        kafka = self._settings.kafka
        async with self._life.breaking_off():
            async for record in read(kafka, await snapshot(kafka, [self._salt_topic])):
                with suppress(DecodeError):
                    salt = Salt.decode(record.value or b"")
                    if (salt.topic, salt.partition) not in self._taken_up:
                        self._salts.recall(salt)
        self._has_recalled = True

    def _take(self, record: InboundRecord, topic_id: str | None) -> None:
        place = (record.topic, record.partition)
        grown = self._of(place)
        if record.offset < grown.end:
            raise TopicError(
                f"{record.topic} {record.partition}: offset {record.offset} came again after "
                f"{grown.end - 1}: {ANOTHER_LOG}"
            )
        salt = None
        if record.topic in self._with_text:
            salt, drawn = self._salts.of(record, topic_id)
            if drawn is not None:
                self._drawn.append(drawn)
        leaf = leaf_of(record, salt=salt, keyed=self._followed[record.topic] in COMPACTED)
        hasher = self._hashers.get(place) or self._hashers.setdefault(place, Hasher(*place))
        grown.tree.append(hasher.hash(leaf))
        grown.leaves.append(leaf.pack())
        grown.end = record.offset + 1

    def _lose(self, loss: OffsetLoss) -> None:
        gap = loss.gap
        if loss.change is not None:
            raise TopicError(f"{loss}: {ANOTHER_LOG}")
        grown = self._of((gap.topic, gap.partition))
        if gap.end > grown.end:
            grown.gaps.append(gap)
            grown.end = gap.end
            self._lost += gap.end - gap.start if grown.tree.size else 0
        self.metrics.lost.labels(self._followed[gap.topic]).inc(gap.end - gap.start)
        self._log.error("offsets were deleted before they were read", **gap.model_dump())

    def _move(self, follower: Follower) -> None:
        """Past the markers of transactions as well, which are no records."""
        logs = follower.logs
        for place, position in follower.positions.items():
            grown = self._of(place)
            grown.end = max(grown.end, position)
            grown.log = logs.get(place, "")

    # Writing

    async def _round(self, journal: Journal) -> None:
        news = [item for item in self._grown.values() if item.has_news]
        if news:
            records = [
                _outbound(self._state_topic, state)
                for state in (item.state(signed=False) for item in news)
            ]
            records += [_outbound(self._salt_topic, salt) for salt in self._drawn]
            await journal.append(records)
            self._drawn.clear()
            await self._sign(journal)
            self._progressed()
        self.metrics.last.set(time.time())

    async def _sign(self, journal: Journal) -> None:
        """Sign what stands on the notary topic and in no checkpoint yet."""
        news = [item for item in self._grown.values() if item.has_news]
        if not news:
            return
        now = datetime.now(UTC)
        name = self._settings.notary.name
        records = []
        made_of = [(item, item.checkpoint(name, self._signers, now)) for item in news]
        for item, made in await self._stamp(made_of):
            records.append(_outbound(self._checkpoint_topic, made))
            state = item.state(signed=True)
            records.append(_outbound(self._state_topic, state))
        await journal.append(records)
        for item in news:
            item.signed()
        self.metrics.checkpoints.inc(len(news))
        for topic, name in self._followed.items():
            sizes = (item.tree.size for item in self._grown.values() if item.topic == topic)
            self.metrics.leaves.labels(name).set(sum(sizes))

    async def _stamp(
        self, made: Sequence[tuple[Grown, Checkpoint]]
    ) -> list[tuple[Grown, Checkpoint]]:
        """With time stamps where they are due. The authority holds a round up for no longer than
        its time-out; a head that gets no stamp is asked for again in the next round."""
        stamps, authority = self._settings.notary.stamps, self._authority
        if stamps is None or authority is None:
            return list(made)
        now = self._life.clock()
        due = [
            place
            for place, (item, _) in enumerate(made)
            if item.stamped is None or now - item.stamped >= stamps.every_seconds
        ]
        done = list(made)
        answers = await authority.stamp_all([made[place][1].note for place in due])
        refused = [answer for answer in answers if isinstance(answer, AresError)]
        for place, answer in zip(due, answers, strict=True):
            item, checkpoint = made[place]
            if not isinstance(answer, AresError):
                item.stamped = now
                stamped = checkpoint.model_copy(update={"timestamp_token": answer})
                done[place] = (item, stamped)
        self.metrics.stamps.inc(len(due) - len(refused))
        if refused:
            self.metrics.unstamped.inc(len(refused))
            self._log.warning("no time stamp", heads=len(refused), error=str(refused[0]))
        return done

    async def _restore(self) -> None:
        self._grown.clear()
        self._drawn.clear()
        self._salts, self._has_recalled = Salts(), False
        self._taken_up.clear()
        kafka = self._settings.kafka
        states = {
            (item.topic, item.partition): item
            for item in (await read_latest_as(kafka, self._state_topic, _decode_state)).values()
            if item.topic in self._followed
        }
        heads = await self._heads(states.keys())
        for place in sorted(states.keys() | heads.keys()):
            state, signed = states.get(place), heads.get(place, [])
            # An old key's head, or one that nobody signed, vouches for a state and for no more.
            candidates: Sequence[SignedHead | None] = signed or [None]
            follows = [item for item in candidates if state is not None and continues(state, item)]
            if state is None or not follows:
                self._go_back(place, signed)
                continue
            head = next((item for item in follows if item is not None and item.is_own), follows[0])
            if state.begins != (0 if head is None else head.end):
                self._grow_from(state, head)
            else:
                self._take_up(state)

    def _grow_from(self, state: NotaryState, head: SignedHead | None) -> None:
        """On from the offset that the signed head ends at: a state that goes on from another one
        would leave out what lies between, or take it twice. What is gone is found gone again."""
        end, tree = (0, MerkleRange()) if head is None else (head.end, head.tree.copy())
        self._log.warning(
            "the state goes on from another offset than its signed head: read again from there",
            topic=state.topic, partition=state.partition, head_ends=end, state_begins=state.begins,
        )  # fmt: skip
        place = (state.topic, state.partition)
        self._grown[place] = Grown(*place, tree, end, end, list(tree.peaks), log=state.log)

    def _go_back(self, place: Place, signed: Sequence[SignedHead]) -> None:
        """Go on from the last head that a key of ours signed: the state is not its continuation."""
        own = max((item for item in signed if item.is_own), key=lambda i: i.size, default=None)
        if own is None and signed:
            raise TopicError(
                f"{self._state_topic}: the state of {place[0]} {place[1]} continues no signed "
                "head, and none of notary.keys signed one; name the key that did beside the others"
            )
        self._forgotten += 1
        self.metrics.forgotten.inc()
        size = 0 if own is None else own.size
        self._log.error(
            "the state continues no signed head: growing on from the last one",
            topic=place[0], partition=place[1], leaves=size,
        )  # fmt: skip
        if own is not None:
            peaks = list(own.tree.peaks)
            self._grown[place] = Grown(*place, own.tree.copy(), own.end, own.end, peaks)

    async def _heads(self, wanted: Collection[Place]) -> dict[Place, list[SignedHead]]:
        """The largest heads of each partition: those of one size. Read from the topic's end
        backwards until each partition that has a state has one; whole where there is no state."""
        kafka = self._settings.kafka
        found: dict[Place, list[SignedHead]] = {}
        ranges = await snapshot(kafka, [self._checkpoint_topic])
        for covered in ranges:
            # Of a topic that was given more partitions, each may hold the largest.
            await self._heads_in(covered, wanted if len(ranges) == 1 else (), found)
        return found

    async def _heads_in(
        self,
        covered: OffsetRange,
        wanted: Collection[Place],
        found: dict[Place, list[SignedHead]],
    ) -> None:
        kafka = self._settings.kafka
        keys = [signer.key for signer in self._signers]
        end, step = covered.end, TAIL_OFFSETS
        while end > covered.start and (not wanted or not found.keys() >= set(wanted)):
            start = max(covered.start, end - step)
            part = covered.model_copy(update={"start": start, "end": end})
            end, step = start, 2 * step
            async for record in read(kafka, [part]):
                try:
                    checkpoint = Checkpoint.decode(record.value or b"")
                    head = signed_head(checkpoint, self._settings.notary.name, keys)
                except (DecodeError, IntegrityError):
                    continue  # `ares audit verify` names it.
                if head is not None and head.topic in self._followed:
                    _keep_largest(found.setdefault((head.topic, head.partition), []), head)

    def _take_up(self, state: NotaryState) -> None:
        tree = MerkleRange(state.size, map(bytes.fromhex, state.peaks))
        grown = Grown(state.topic, state.partition, tree, state.end, state.end, list(tree.peaks))
        grown.log = state.log
        if state.pending is not None:
            grown.start = state.pending.start
            grown.before = [bytes.fromhex(peak) for peak in state.pending.peaks]
            # Packed leaves stay one piece: they are only written again.
            grown.leaves = [state.pending.leaves] if state.pending.leaves else []
            grown.gaps = list(state.pending.gaps)
        self._grown[state.topic, state.partition] = grown
        self._taken_up.add((state.topic, state.partition))


def _outbound(topic: str, item: NotaryState | Salt | Checkpoint) -> OutboundRecord:
    return OutboundRecord(topic, item.key, item.encode(), partition=topics.FIRST_PARTITION)


def _keep_largest(heads: list[SignedHead], head: SignedHead) -> None:
    """Of heads that a key of ours signed the largest, and of the others."""
    alike = [item for item in heads if item.is_own == head.is_own]
    if any(item.size > head.size for item in alike):
        return
    for known in alike:
        # Of two copies of a head the first one stands.
        if known.size == head.size and known.tree.peaks == head.tree.peaks:
            return
        if known.size < head.size:
            heads.remove(known)
    heads.append(head)


def _decode_state(record: InboundRecord) -> NotaryState:
    state = NotaryState.decode(record.value or b"")
    if record.key != state.key:
        raise DecodeError("key: is not that of the state")
    return state
