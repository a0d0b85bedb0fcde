"""One block replayed: read, decode, score and decide by the scorer's own handler, compare."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from ares_stream.audit.replay.comparing import (
    FAULTS,
    Comparison,
    compare,
    is_equal,
    nothing_there,
)
from ares_stream.audit.replay.models import (
    MadeWith,
    Models,
    NoModels,
    Readings,
    RecordedJudge,
    recorded_opinion,
)
from ares_stream.audit.replay.neighbours import Neighbours
from ares_stream.audit.replay.recorded import Output, Recorded, by_offset
from ares_stream.audit.replay.spec import (
    LISTED,
    BlockResult,
    Horizon,
    Job,
    ReplaySpec,
    Selection,
    parts_bytes,
    read_bytes,
    replayed_bytes,
)
from ares_stream.audit.replay.what_if import Changes, class_decided, class_made
from ares_stream.errors import AresError, BundleError, DecodeError, ReadError
from ares_stream.records.decoding import decode_interaction
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import Verdict
from ares_stream.scoring.handler import Scorer, ScoringHandler
from ares_stream.streaming.records import InboundRecord, Outcome, Rejection
from ares_stream.streaming.session import damaged

WINDOW: Final = 128
WINDOW_BYTES: Final = 8 << 20
"""Records handled together. What a model says of one does not depend on its neighbours; see
docs/replay.md."""
_NOTHING: Final[Sequence[Recorded]] = ()


class BlockReplay:
    """Replays one block."""

    def __init__(
        self,
        spec: ReplaySpec,
        selection: Selection,
        horizon: Horizon,
        models: Models,
        job: Job,
        entries: Callable[[int], Sequence[Recorded]],
    ) -> None:
        """`entries` gives the outputs of this block's records (0), and of those of the blocks
        before (-1) and after it (1)."""
        self._spec = spec
        self._maps = {item.topic: item.map for item in spec.inputs}
        self._horizon = horizon
        self._models = models
        self._job = job
        only = (
            None if selection.only is None else selection.only.get((job.topic, job.partition), ())
        )
        self._only = None if only is None else frozenset(only)
        self._since, self._until = selection.since_ms, selection.until_ms
        self._is_timed = self._since is not None or self._until is not None
        settled = horizon.settled.get((job.topic, job.partition), 0)
        self._pending_from = settled if selection.open_ended else job.end
        self._recorded = {
            offset: found
            for offset, found in by_offset(entries(0)).items()
            if job.start <= offset < job.end and (self._only is None or offset in self._only)
        }
        self._neighbours = Neighbours(self._recorded, entries, Readings())
        self._handlers: dict[tuple[object, str], tuple[ScoringHandler, RecordedJudge]] = {}
        self._changes = Changes(spec.slices)
        self._window: list[tuple[InboundRecord, Sequence[Recorded]]] = []
        self._window_bytes = 0
        self._seen: set[int] = set()
        self._replayed: list[bytes] = []
        self._made: MadeWith | None = None
        self._read_hash, self._replayed_hash = hashlib.sha256(), hashlib.sha256()
        self._policies: set[str] = set()
        self.result = BlockResult(job)

    async def run(self, lists: AsyncGenerator[list[InboundRecord], None]) -> BlockResult:
        """Replay the block's records. Raises what reading and opening models raise; a record never
        raises."""
        began = time.process_time()
        self._made = self._instead(self._made_around(self._job.start)[0])
        async with aclosing(lists):
            async for records in lists:
                if self._only is not None:
                    records = [item for item in records if item.offset in self._only]
                self._read_hash.update(b"".join(map(read_bytes, records)))
                await self._take(records)
        await self._flush()
        if self._spec.what_if is None:
            for offset in sorted(self._recorded.keys() - self._seen):
                self._note(offset, nothing_there(self._recorded[offset]))
        result = self.result
        result.read_digest = self._read_hash.hexdigest()
        result.replayed_digest = self._replayed_hash.hexdigest()
        result.models = sorted(self._models.opened)
        result.policies = sorted(self._policies)
        result.cells, result.moves = self._changes.cells, self._changes.moves
        result.seconds = time.process_time() - began
        return result

    def _made_around(self, offset: int) -> Sequence[MadeWith | None]:
        return self._neighbours.around(offset) or [self._spec.configured]

    async def _take(self, records: Sequence[InboundRecord]) -> None:
        self.result.records += len(records)
        recorded, reading = self._recorded, self._neighbours.reading
        for record in records:
            found = recorded.get(record.offset, _NOTHING)
            self._seen.add(record.offset)
            if self._is_timed and self._is_outside(record.timestamp_ms):
                self.result.outside += 1
            # Nearly every record has one verdict, which was made with what the last one was.
            is_usual = (
                len(found) == 1
                and found[0].output is Output.VERDICT
                and record.damage is None
                and self._made is not None
                and reading(found[0]) is self._made
                and self._made.asked is None
            )
            if not is_usual:
                await self._prepare(record, found)
                continue
            self._window.append((record, found))
            self._window_bytes += record.size
            if len(self._window) >= WINDOW or self._window_bytes >= WINDOW_BYTES:
                await self._flush()

    async def _prepare(self, record: InboundRecord, found: Sequence[Recorded]) -> None:
        result = self.result
        if not found and record.offset >= self._pending_from:
            result.count("pending")
            return
        if record.damage is not None:
            await self._flush()
            await self._settle(record, damaged(record.damage), found)
            return
        verdict = next((item for item in found if item.output is Output.VERDICT), None)
        made = None if verdict is None else self._neighbours.reading(verdict)
        if made is not None:
            made = self._instead(made)
        opinion = None
        if made is not None and made != self._made:
            await self._flush()
            self._made = made
        if verdict is not None and made is not None and made.asked is not None:
            await self._flush()
            result.recorded_opinions += 1
            opinion = recorded_opinion(verdict.payload)
        self._window.append((record, found))
        self._window_bytes += record.size
        is_alone = made is not None and made.asked is not None
        if is_alone or len(self._window) >= WINDOW or self._window_bytes >= WINDOW_BYTES:
            await self._flush(opinion)

    def _instead(self, made: MadeWith | None) -> MadeWith | None:
        what_if = self._spec.what_if
        return made if what_if is None else what_if.instead_of(made)

    def _is_outside(self, at_ms: int) -> bool:
        early = self._since is not None and at_ms < self._since
        return early or (self._until is not None and at_ms >= self._until)

    async def _flush(self, opinion: float | None = None) -> None:
        window, self._window, self._window_bytes = self._window, [], 0
        if not window:
            return
        if self._spec.what_if is not None and not self._spec.what_if.scores:
            for record, found in window:
                self._decide(record, found)
        else:
            handler, judge = await self._handler(self._made)
            judge.expect(None if self._made is None else self._made.asked, opinion)
            outcomes = await _outcomes(handler, [record for record, _ in window])
            identical = 0
            for (record, found), outcome in zip(window, outcomes, strict=True):
                if self._spec.what_if is None and is_equal(found, outcome):
                    identical += 1
                    ((_, offset, _, _, _, payload, frame),) = found
                    self._replayed.append(parts_bytes(offset, (frame, payload)))
                else:
                    await self._settle(record, outcome, found)
            self.result.count("identical", identical)
        self._replayed_hash.update(b"".join(self._replayed))
        self._replayed.clear()

    async def _handler(self, made: MadeWith | None) -> tuple[ScoringHandler, RecordedJudge]:
        key = (None, "") if made is None else (made.models, made.policy)
        known = self._handlers.get(key)
        if known is None:
            known = self._handlers[key] = await self._make(made)
        return known

    async def _make(self, made: MadeWith | None) -> tuple[ScoringHandler, RecordedJudge]:
        spec, judge = self._spec, RecordedJudge()
        job = self._job
        place = f"{job.topic} {job.partition} offsets {job.start} to {job.end}"
        scorer: Scorer = NoModels(place)
        policy = spec.resources.policies[0]
        if made is not None:
            try:
                scorer, judge = await self._models.scorer(made)
                policy = self._models.policy(made.policy)
            except AresError as error:
                raise type(error)(f"{place}: {error}") from None
        self._policies.add(policy.digest)
        handler = ScoringHandler(
            scorer,
            inputs=spec.inputs,
            outputs=spec.outputs,
            policy=policy,
            limits=spec.limits,
            # What is sampled is not the models' doing: each sampled record names its own share.
            review_sample=0.0,
            clock=lambda: 0.0,
        )
        return handler, judge

    async def _settle(
        self, record: InboundRecord, outcome: Outcome, found: Sequence[Recorded]
    ) -> None:
        spec = self._spec
        if spec.what_if is not None:
            self._replayed.append(replayed_bytes(record.offset, outcome))
            self._change(record.offset, found, class_made(outcome))
            return
        gone = self._horizon.gone(record.topic, record.partition, record.offset)
        compared = self._compare(record, outcome, found, frozenset(gone))
        if compared.agreement == "divergent" and found[0].output is Output.LETTER:
            outcome, compared = await self._by_others(record, outcome, found, compared)
        self._replayed.append(replayed_bytes(record.offset, outcome))
        if compared.agreement == "missing":
            self._refuse_gap(record, outcome, gone)
        self._note(record.offset, compared)

    def _compare(
        self,
        record: InboundRecord,
        outcome: Outcome,
        found: Sequence[Recorded],
        gone: frozenset[Output] = frozenset(),
    ) -> Comparison:
        spec = self._spec

        def conversation() -> Interaction:
            return decode_interaction(
                record.key, record.value, record.headers, spec.limits,
                self._maps[record.topic], timestamp_ms=record.timestamp_ms,
            )  # fmt: skip

        return compare(
            record, outcome, found, spec.outputs, spec.tolerance,
            conversation=conversation, expired=gone,
        )  # fmt: skip

    async def _by_others(
        self,
        record: InboundRecord,
        outcome: Outcome,
        found: Sequence[Recorded],
        compared: Comparison,
    ) -> tuple[Outcome, Comparison]:
        """A dead letter names no models: it stands where those of a verdict beside it agree."""
        for made in self._made_around(record.offset):
            if made == self._made:
                continue
            handler, judge = await self._handler(made)
            judge.expect(None, None)
            (other,) = await _outcomes(handler, [record])
            again = self._compare(record, other, found)
            if again.agreement in ("identical", "tolerated"):
                return other, again
        return outcome, compared

    def _decide(self, record: InboundRecord, found: Sequence[Recorded]) -> None:
        """What-if of a policy alone: the recorded scores, decided on anew."""
        policy = self._spec.what_if.policy if self._spec.what_if is not None else None
        verdict = _verdict(found)
        after = None if verdict is None or policy is None else class_decided(verdict, policy)
        self._replayed.append(f"{record.offset} {after}\n".encode())
        self._change(record.offset, found, after)

    def _change(self, offset: int, found: Sequence[Recorded], after: str | None) -> None:
        result, verdict = self.result, _verdict(found)
        if verdict is None or after is None:
            result.count("not_judged")
            return
        if not self._changes.take(verdict, after):
            result.count("unchanged")
            return
        result.count("changed")
        was = verdict.failure_class.value
        self._list(result.differences, offset, "changed", f"{was} → {after}")

    def _refuse_gap(
        self, record: InboundRecord, outcome: Outcome, gone: Mapping[Output, str]
    ) -> None:
        """Missing may be deleted: that is no finding, and no success either."""
        wanted = Output.LETTER if isinstance(outcome, Rejection) else Output.VERDICT
        place = gone.get(wanted)
        if place is not None:
            raise ReadError(
                f"truncated: {record.topic} {record.partition} offset {record.offset} has no "
                f"output, and retention has deleted what stood before {place}; begin later, or "
                "read archives"
            )

    def _note(self, offset: int, compared: Comparison) -> None:
        result = self.result
        result.count(compared.agreement)
        result.expired += compared.expired
        if compared.agreement in FAULTS:
            self._list(result.differences, offset, compared.agreement, compared.detail)
        elif compared.agreement == "tolerated":
            self._list(result.tolerated, offset, compared.agreement, compared.detail)

    def _list(self, to: list[dict[str, Any]], offset: int, agreement: str, detail: str) -> None:
        if len(to) < LISTED:
            place = {"topic": self._job.topic, "partition": self._job.partition, "offset": offset}
            to.append({**place, "agreement": agreement, "detail": detail})


async def _outcomes(handler: ScoringHandler, records: Sequence[InboundRecord]) -> list[Outcome]:
    """The handler's outcomes; a window that fails is halved down to the record at fault, as the
    scorer does."""
    try:
        return list(await handler.handle(records))
    except BundleError:
        raise
    except Exception as error:  # a poison record may raise anything
        if len(records) == 1:
            return [Rejection.of("handle", error)]
    middle = len(records) // 2
    return [
        *await _outcomes(handler, records[:middle]), *await _outcomes(handler, records[middle:])
    ]  # fmt: skip


def _verdict(found: Sequence[Recorded]) -> Verdict | None:
    payload = next((item.payload for item in found if item.output is Output.VERDICT), None)
    try:
        return None if payload is None else Verdict.decode(payload)
    except DecodeError:
        return None
