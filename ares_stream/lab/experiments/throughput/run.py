"""The measurement: who takes turns with whom on which load, and the document about it.

All contestants of a cell run side by side, each on topics of its own, and take turns in the order
A B C, C B A, so that a change of the machine's load hits all alike. CPU time is that of the
contestant's processes alone: broker, sender and reader share the cores with them and count only
on the clock.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ares_stream.lab.experiments.throughput import raw as raw_loop
from ares_stream.lab.experiments.throughput.clients import Record, Sender, Visible
from ares_stream.lab.experiments.throughput.contestants import GUARANTEES, Contestant, running
from ares_stream.lab.experiments.throughput.models import (
    Pair,
    bert_pair,
    conversations,
    null_pair,
    sized,
)
from ares_stream.lab.experiments.throughput.profiles import (
    HAND,
    KB,
    Cell,
    Load,
    Models,
    Profile,
)
from ares_stream.lab.experiments.throughput.scanning import SCANNERS, Scan, scan, write_lines
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.interaction import Interaction
from ares_stream.records.topics import (
    DEADLETTERS,
    PRODUCTION,
    RELEASES,
    REPAIR,
    REVIEW,
    VERDICTS,
    specs,
    topic_name,
)
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection

TOPICS: Final = (PRODUCTION, VERDICTS, REPAIR, REVIEW, DEADLETTERS, RELEASES)
WARM_UP: Final = 64
SETTLE_SECONDS: Final = 5.0
"""Until several processes have shared the partitions among them."""
DISTINCT: Final = 2000
"""Conversations made of one size; more records repeat their text under other ids."""
RAW: Final = "raw loop"


@dataclass(slots=True)
class Lane:
    """A contestant, who sends to it, and who sees its verdicts."""

    contestant: Contestant
    sender: Sender
    visible: Visible
    capacities: list[float] = field(default_factory=list)
    """Records a second, of the cell's first load."""

    @property
    def name(self) -> str:
        """The contestant's."""
        return self.contestant.name

    def burst(self, records: Sequence[Record]) -> tuple[float, float]:
        """Send all at once and wait for their verdicts: CPU microseconds of each record, and
        records a second of the clock."""
        before = self.contestant.usage()
        self.sender.send(records)
        self.visible.wait(len(records))
        after = self.contestant.usage()
        count = len(records)
        return 1e6 * (after.cpu - before.cpu) / count, count / (after.wall - before.wall)

    def paced(self, records: Sequence[Record], rate: float) -> list[float]:
        """Seconds from the moment at which each record was due to be sent until its verdict was
        visible."""
        with ThreadPoolExecutor(1) as waiting:
            arrivals = waiting.submit(self.visible.wait, len(records))
            due = self.sender.pace(records, rate)
            return [item.at - due[item.key] for item in arrivals.result()]


@dataclass(slots=True)
class Series:
    """Figures of one contestant on one load, a pass each."""

    cpu_microseconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def add(self, cpu_microseconds: float, rate: float) -> None:
        """One pass."""
        self.cpu_microseconds.append(cpu_microseconds)
        self.rates.append(rate)

    def as_json(self) -> dict[str, Any]:
        """Medians with their range."""
        return {
            "cpu_microseconds": _spread(self.cpu_microseconds),
            "records_per_second": _spread(self.rates),
        }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "low": round(min(values), 1),
        "high": round(max(values), 1),
    }


class Bench:
    """Measures a profile. `peers_python` is the interpreter of the peers' environment; without it
    only who needs none takes part. `progress` hears what is measured now."""

    def __init__(
        self,
        folder: Path,
        scratch: Path,
        *,
        peers_python: Path | None,
        progress: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._python = peers_python
        self._progress = progress
        self._pairs: dict[Models, Pair] = {}
        self._sent = 0
        self._starts: list[dict[str, Any]] = []
        self._throughput: list[dict[str, Any]] = []
        self._latency: list[dict[str, Any]] = []
        self._scans: list[dict[str, Any]] = []

    def run(self, profile: Profile) -> dict[str, Any]:
        """Everything. Raises what a contestant's end raises."""
        for cell in profile.cells:
            self._cell(cell)
        for models, load in profile.scans:
            self._scan(models, load, profile.scan_rounds)
        return {
            "starts": self._starts,
            "throughput": self._throughput,
            "latency": self._latency,
            "scan": self._scans,
        }

    def _pair(self, models: Models) -> Pair:
        if models not in self._pairs:
            self._progress(f"{models} models")
            make = null_pair if models == "null" else bert_pair
            self._pairs[models] = make(self._folder)
        return self._pairs[models]

    # From topic to verdict

    def _cell(self, cell: Cell) -> None:
        pair = self._pair(cell.models)
        names = [name for name in cell.contestants if name in HAND or self._python is not None]
        with EmbeddedBroker() as broker, ExitStack() as stack:
            lanes = [
                stack.enter_context(self._lane(name, cell, pair, broker.bootstrap))
                for name in names
            ]
            for load in cell.loads:
                self._take_turns(cell, load, lanes, pair)
            for share in cell.shares:
                for lane in lanes:
                    self._steady(cell, share, lane)

    def _records(self, load: Load) -> list[Record]:
        distinct = min(load.count, DISTINCT)
        items = conversations(distinct) if load.size is None else sized(distinct, load.size)
        values = [item.encode() for item in items]
        found: list[Record] = []
        for number in range(load.count):
            key = f"{self._sent + number:08d}".encode()
            place = number % distinct
            value = values[place].replace(items[place].id.encode(), key, 1)
            found.append((key, value))
        self._sent += load.count
        return found

    @contextmanager
    def _lane(self, name: str, cell: Cell, pair: Pair, bootstrap: str) -> Iterator[Lane]:
        """A contestant that has started, with its topics; the figures of its start are kept."""
        self._progress(f"{_title(cell)}: {name} starts")
        prefix = f"bench.{name}."
        wanted = {topic_name(prefix, topic) for topic in TOPICS}
        made = [
            item
            for item in specs(prefix, partitions=cell.partitions, replication=1)
            if item.name in wanted
        ]
        asyncio.run(create_topics(KafkaConnection(bootstrap=bootstrap), made))
        sender = Sender(bootstrap, topic_name(prefix, PRODUCTION))
        # They wait for it: the time until the first verdicts is that of its start.
        sender.send(self._records(Load(cell.loads[0].size, WARM_UP)))
        visible = Visible(bootstrap, topic_name(prefix, VERDICTS))
        with running(
            name,
            prefix,
            pair,
            bootstrap,
            self._scratch,
            processes=cell.processes,
            peers_python=self._python,
        ) as contestant:
            ready = contestant.ready_seconds()
            visible.wait(WARM_UP)
            first = time.monotonic() - contestant.started
            if cell.processes > 1:
                time.sleep(SETTLE_SECONDS)
            self._starts.append(
                {
                    "models": cell.models,
                    "partitions": cell.partitions,
                    "processes": cell.processes,
                    "contestant": name,
                    "ready_seconds": None if ready is None else round(ready, 2),
                    "first_verdicts_seconds": round(first, 2),
                    "idle_mebibytes": round(contestant.mebibytes()),
                }
            )
            yield Lane(contestant, sender, visible)
        visible.close()

    def _take_turns(self, cell: Cell, load: Load, lanes: Sequence[Lane], pair: Pair) -> None:
        series = {lane.name: Series() for lane in lanes}
        records = self._records(load)
        by_hand = None
        if cell.models != "null" and cell.processes == 1:
            by_hand, series[RAW] = _raw(pair, records), Series()
        for number in range(cell.rounds):
            order: Iterable[Lane] = lanes if number % 2 == 0 else reversed(lanes)
            if by_hand is not None and number % 2 == 0:
                series[RAW].add(*by_hand())
            for lane in order:
                size = "chats" if load.size is None else f"{load.size / KB:g} KB"
                self._progress(
                    f"{_title(cell)}: {load.count:,} records, {size}, round {number + 1} of "
                    f"{cell.rounds}: {lane.name}"
                )
                cost, rate = lane.burst(records)
                series[lane.name].add(cost, rate)
                if load is cell.loads[0]:
                    lane.capacities.append(rate)
            if by_hand is not None and number % 2 == 1:
                series[RAW].add(*by_hand())
        for name, figures in series.items():
            self._throughput.append(
                {
                    "models": cell.models,
                    "partitions": cell.partitions,
                    "processes": cell.processes,
                    "record_bytes": load.size,
                    "records": load.count,
                    "contestant": name,
                    "guarantee": GUARANTEES.get(name, "none"),
                    **figures.as_json(),
                }
            )

    def _steady(self, cell: Cell, share: float, lane: Lane) -> None:
        capacity = statistics.median(lane.capacities)
        rate = share * capacity
        self._progress(f"{_title(cell)}: {rate:.0f}/s, {share:.0%} of capacity: {lane.name}")
        load = Load(cell.loads[0].size, max(50, round(rate * cell.steady_seconds)))
        late = sorted(lane.paced(self._records(load), rate))
        self._latency.append(
            {
                "models": cell.models,
                "partitions": cell.partitions,
                "processes": cell.processes,
                "contestant": lane.name,
                "share_of_capacity": share,
                "records_per_second": round(rate, 1),
                "service_milliseconds": round(1000 / capacity, 1),
                "records": load.count,
                "milliseconds": {
                    name: round(1000 * late[min(len(late) - 1, int(len(late) * place))])
                    for name, place in (("median", 0.5), ("p90", 0.9), ("p99", 0.99))
                },
            }
        )

    # Files

    def _scan(self, models: Models, load: Load, rounds: int) -> None:
        pair = self._pair(models)
        file = self._scratch / "conversations.jsonl"
        write_lines(file, [value for _, value in self._records(load)], load.count)
        found: dict[str, list[Scan]] = {name: [] for name in SCANNERS}
        for number in range(rounds):
            for name in SCANNERS if number % 2 == 0 else SCANNERS[::-1]:
                self._progress(f"{name}, {models}: {load.count:,} lines, round {number + 1}")
                found[name].append(scan(name, pair, file, self._scratch))
        file.unlink()
        for name, several in found.items():
            self._scans.append(
                {
                    "models": models,
                    "lines": load.count,
                    "scanner": name,
                    "seconds": _spread([item.wall for item in several]),
                    "cpu_seconds": _spread([item.cpu for item in several]),
                    "peak_mebibytes": round(max(item.peak_mebibytes for item in several)),
                }
            )


def _title(cell: Cell) -> str:
    return f"{cell.models} models, {cell.partitions} partitions, {cell.processes} processes"


def _raw(pair: Pair, records: Sequence[Record]) -> Callable[[], tuple[float, float]]:
    """A pass of the raw loop over the same conversations: CPU microseconds of each, and
    conversations a second."""
    items = [Interaction.decode(value) for _, value in records]
    encoded = InputEncoder(pair.judge).encode([(item, item.response) for item in items])
    tokens = [item for item in encoded if isinstance(item, Tokens)]
    raw = raw_loop.Raw([pair.judge, pair.reward])
    batching = raw_loop.better(raw, tokens[:24])
    batches = batching([len(item) for item in tokens])

    def once() -> tuple[float, float]:
        done = raw.run(tokens, batches)
        return 1e6 / done.cpu_rate, done.rate

    return once
