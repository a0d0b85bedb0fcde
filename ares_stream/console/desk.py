"""What the console knows, and what it asks of the outside. No Kafka, no HTTP."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from ares_stream.console.policy import QueuePolicy
from ares_stream.console.queue import DECISIONS, Item, Place, ReviewQueue
from ares_stream.detection.correction import Cell
from ares_stream.detection.decide import DetectionPolicy, is_scored_high
from ares_stream.errors import DecodeError
from ares_stream.files.rows import parse_json
from ares_stream.models.releases import Author, Log
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement, decode_told
from ares_stream.records.interaction import Interaction
from ares_stream.records.label import OTHERS_SHOWN_HEADER, Label, ReviewItem
from ares_stream.records.rates import Rates, decode_held
from ares_stream.records.release import Release
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import Verdict
from ares_stream.repair.gate import GateVerdict
from ares_stream.streaming.records import InboundRecord

if TYPE_CHECKING:
    from ares_stream.scoring.causes import Cause
    from ares_stream.scoring.nearest import Nearest
    from ares_stream.scoring.occlusion import Explanation

K = TypeVar("K")
V = TypeVar("V")
MAX_ALARMS: Final = 1_000
MAX_REPORTS: Final = 500
MAX_RATES: Final = 2_000
MAX_FAILURES: Final = 2_000


@dataclass(frozen=True, slots=True)
class Why:
    """Why the reward model likes an answer; `benign` is the conversation of `console.reference`
    that is most like it, and `benign_score` what the model gives that one."""

    explanation: Explanation
    benign: Nearest | None = None
    benign_score: float | None = None


@dataclass(slots=True)
class CauseSearch:
    """A search for failures with one cause: under way, done or ended by a problem."""

    total: int
    done: int = 0
    unexplained: int = 0
    """Failures whose text is gone from its topic, or that have no score."""
    causes: tuple[Cause, ...] | None = None
    problem: str | None = None

    @property
    def is_running(self) -> bool:
        """Whether it goes on."""
        return self.causes is None and self.problem is None


class Outside(Protocol):
    """What the console does besides looking. Every call may raise an AresError."""

    async def interaction(self, item: Item) -> Interaction:
        """The item's text, from its topic."""
        ...

    async def why(self, interaction: Interaction) -> Why:
        """Which words carry the reward."""
        ...

    def seek_causes(self, failures: Sequence[Item]) -> None:
        """Explain them in the background and group them by cause; one search at a time."""
        ...

    @property
    def cause_search(self) -> CauseSearch | None:
        """The latest search."""
        ...

    async def label(self, label: Label) -> None:
        """Write a decision."""
        ...

    async def undo(self, label: Label, by: str, at: datetime) -> None:
        """Take a decision back; that its author has seen what others say stays known."""
        ...

    async def acknowledge(self, record: AlarmAcknowledgement) -> None:
        """Write that an alarm was seen."""
        ...

    async def log(self) -> Log:
        """The registry's steps."""
        ...

    async def decide(self, verb: str, selector: str, author: Author) -> Sequence[Release]:
        """approve, reject or roll back; then tell it."""
        ...

    async def gate(self, plan: str, named: str | None = None) -> GateVerdict | None:
        """The gate's verdict on a plan, from its directory or the registry; `named` is the digest
        that the repair's report names."""
        ...

    async def pairs(self, plan: str) -> Sequence[tuple[str, str, str]]:
        """(prompt, before, after) of a plan's suites, where its directory can be read."""
        ...


class Desk:
    """The state behind the pages, from records and nothing else; its memory is bounded."""

    def __init__(
        self,
        policy: QueuePolicy,
        detection: DetectionPolicy,
        prefix: str,
        outside: Outside,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = ReviewQueue(policy)
        self.outside = outside
        self.clock = clock
        self.alarms: OrderedDict[str, Alarm] = OrderedDict()
        self.acknowledged: OrderedDict[str, AlarmAcknowledgement] = OrderedDict()
        self.rates: OrderedDict[bytes, Rates] = OrderedDict()
        self.reports: OrderedDict[str, RepairReport] = OrderedDict()
        self.failures: OrderedDict[str, Item] = OrderedDict()
        """Coupled failures by their verdict's id, latest last; their text stays on the topic."""
        self._detection = detection
        self._takers = {
            f"{prefix}{topics.REVIEW}": self._take_item,
            f"{prefix}{topics.LABELS}": self._take_label,
            f"{prefix}{topics.ALARMS}": self._take_alarm,
            f"{prefix}{topics.RATES}": self._take_rates,
            f"{prefix}{topics.REPAIRS}": self._take_report,
            f"{prefix}{topics.REPAIR}": self._take_failure,
        }

    @property
    def topics(self) -> tuple[str, ...]:
        """What it follows."""
        return tuple(self._takers)

    def take(self, record: InboundRecord) -> None:
        """One record of a followed topic. Raises DecodeError; the state is then as before."""
        self._takers[record.topic](record)

    def open_alarms(self) -> list[Alarm]:
        """Newest first."""
        return [item for item in reversed(self.alarms.values()) if item.id not in self.acknowledged]

    def newest_failures(self, most: int) -> list[Item]:
        """Newest first."""
        return list(islice(reversed(self.failures.values()), most))

    # Records

    def _take_item(self, record: InboundRecord) -> None:
        self.queue.add(self._item(record, ReviewItem.decode(record.value or b"").verdict))

    def _take_failure(self, record: InboundRecord) -> None:
        item = self._item(record, CoupledFailure.decode(record.value or b"").verdict)
        _put(self.failures, item.id, item, MAX_FAILURES)

    def _item(self, record: InboundRecord, verdict: Verdict) -> Item:
        liked = is_scored_high(verdict.scored_high, self._detection)
        cell = Cell(DECISIONS[verdict.failure_class], liked)
        return Item(verdict, Place(record.topic, record.partition, record.offset), cell)

    def _take_label(self, record: InboundRecord) -> None:
        if record.value is None:
            self._take_undone(record)
        else:
            self.queue.add_label(record.key or b"", Label.decode(record.value))

    def _take_undone(self, record: InboundRecord) -> None:
        key = record.key or b""
        self.queue.remove_label(key)
        if OTHERS_SHOWN_HEADER not in record.header_map:
            return
        named = parse_json(key)
        if not (isinstance(named, list) and len(named) == 2 and all(map(_is_text, named))):
            raise DecodeError("its key names no interaction and reviewer")
        self.queue.saw_others(*named)

    def _take_alarm(self, record: InboundRecord) -> None:
        told = decode_told(record.value)
        if isinstance(told, Alarm):
            _put(self.alarms, told.id, told, MAX_ALARMS)
        else:
            _put(self.acknowledged, told.alarm_id, told, MAX_ALARMS)

    def _take_rates(self, record: InboundRecord) -> None:
        key = record.key or b""
        if record.value is None:
            self.rates.pop(key, None)
            return
        held = decode_held(record.key, record.value)
        if isinstance(held, Rates) and not held.slice.attribute:
            _put(self.rates, key, held, MAX_RATES)

    def _take_report(self, record: InboundRecord) -> None:
        report = RepairReport.decode(record.value or b"")
        _put(self.reports, report.plan_id, report, MAX_REPORTS)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _put(held: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    held[key] = value
    held.move_to_end(key)
    while len(held) > most:
        held.popitem(last=False)
