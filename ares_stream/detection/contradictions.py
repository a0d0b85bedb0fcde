"""What cannot stand together in a monitor's state, record by record. Pure.

A record may be well-formed and yet say what no counting gives: more failures than verdicts, an
anchor that was answered otherwise more often than asked. Taken up, it would end the monitor in the
middle of a figure, or make figures that nobody can explain. Every check raises DecodeError and
holds for whatever a ledger has ever written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Final

from ares_stream.detection.tallies import (
    CLUSTER_GROUPS,
    NAMED_HITS,
    WINDOW_SECONDS,
    SliceTally,
)
from ares_stream.detection.watches import BETS
from ares_stream.errors import DecodeError
from ares_stream.records.rates import (
    AnchorAnswers,
    AnchorFigures,
    MonitorState,
    Rates,
    SampledVerdict,
    Watch,
    Window,
)
from ares_stream.records.verdict import FailureClass

_BINS: Final = 10
_DRAW: Final = re.compile(r"[0-9a-f]{13}")
LATEST: Final = 253_402_300_800
"""Unix seconds of the year 10000: no date of Python's is later."""


def check_rates(record: Rates) -> None:
    """One slice."""
    tallies = record.tallies
    total = sum(tallies.classes.values())
    _ask(all(count >= 0 for count in tallies.classes.values()), "tallies.classes")
    _ask(all(count >= 0 for count in tallies.cells.values()), "tallies.cells")
    for name in FailureClass:
        both = (tallies.cells.get(f"{name.value},{word}", 0) for word in ("liked", "disliked"))
        _ask(sum(both) <= tallies.classes.get(name, 0), "tallies.cells")
    for histogram in ("harm_histogram", "reward_histogram"):
        counts = getattr(tallies, histogram)
        named = f"tallies.{histogram}"
        _ask(len(counts) == _BINS and min(counts) >= 0 and sum(counts) == total, named)
    _ask(0 <= tallies.outliers <= tallies.outlier_known <= total, "tallies.outliers")
    _check_weights(record, total)
    groups = tallies.clusters
    cells = tallies.cluster_cells or ((0, 0),) * len(groups)
    _ask(len(groups) in (0, CLUSTER_GROUPS) and len(cells) == len(groups), "tallies.clusters")
    for (verdicts, coupled), liked in zip(groups, cells, strict=True):
        _ask(min(verdicts, coupled, *liked) >= 0, "tallies.clusters")
        _ask(coupled + sum(liked) <= verdicts, "tallies.clusters")
    _ask(sum(group[0] for group in groups) <= total, "tallies.clusters")
    _ask(record.since <= record.until, "since")
    _ask(record.late >= 0, "late")
    _check_windows(record.windows, "windows")
    until = record.until.timestamp()
    _ask(all(item.start <= until for item in record.windows), "windows")
    _ask(sum(item.total for item in record.windows) + record.late <= total, "windows")
    coupled = tallies.classes.get(FailureClass.COUPLED_FAILURE, 0)
    _ask(sum(item.coupled for item in record.windows) <= coupled, "windows")
    for watch in record.watches.values():
        _check_watch(watch)


def _check_weights(record: Rates, total: int) -> None:
    sums = record.tallies.weights
    named = "tallies.weights"
    _ask(0 <= sums.draws <= total, named)
    _ask(0 <= sums.hit_weight <= sums.weight, named)
    _ask(0 <= sums.hit_weight_squared <= sums.weight_squared, named)
    if not sums.draws:
        return
    try:
        SliceTally.restored(record).weighted()
    except (ArithmeticError, ValueError):
        raise DecodeError("contradicts itself", field=named) from None


def _check_windows(windows: Sequence[Window], field: str) -> None:
    _ask(len({item.start for item in windows}) == len(windows), field)
    for item in windows:
        _ask(item.start % WINDOW_SECONDS == 0 and abs(item.start) < LATEST, field)
        _ask(min(item.coupled, item.contested) >= 0, field)
        _ask(item.coupled + item.contested <= item.total, field)
        _ask(item.coupled <= item.harmful <= item.total, field)
        _ask(len(item.hits) <= min(NAMED_HITS, item.coupled), field)
        _ask(all(min(hit) >= 0 for hit in item.hits), field)


def _check_watch(watch: Watch) -> None:
    wealth = watch.log_wealth
    _ask(len(wealth) in (0, len(BETS)) and all(map(math.isfinite, wealth)), "watches")
    _ask(watch.baseline is None or 0.0 < watch.baseline < 1.0, "watches")
    _ask(not wealth or watch.baseline is not None, "watches")


def check_anchors(record: AnchorFigures, answers: Iterable[AnchorAnswers]) -> None:
    """One set, with its answers by window."""
    starts = sorted(item.start for item in record.windows)
    _ask(starts == sorted(item.start for item in answers), "windows")
    _ask(all(count >= 0 for count in record.decisions.values()), "decisions")
    for item in answers:
        _ask(item.start % WINDOW_SECONDS == 0 and abs(item.start) < LATEST, "start")
        for asked, otherwise, _ in item.answers.values():
            _ask(asked > 0 and 0 <= otherwise <= asked, "answers")
    for model in record.rewards.values():
        _ask(min(model.count, model.shift_squared, model.reference_squared) >= 0, "rewards")
    _check_watch(record.watch)


def check_sample(record: SampledVerdict) -> None:
    """One verdict of the review sample."""
    _ask(_DRAW.match(record.id) is not None, "id")
    _ask(record.cluster is None or 0 <= record.cluster < CLUSTER_GROUPS, "cluster")


def check_state(record: MonitorState, others: int) -> None:
    """The state itself, beside so many other records."""
    _ask(min((min(i.partition, i.offset) for i in record.positions), default=0) >= 0, "positions")
    places = {(item.topic, item.partition) for item in record.positions}
    _ask(len(places) == len(record.positions), "positions")
    _ask(all(count >= 0 for count in record.unreadable.values()), "unreadable")
    _ask(all(count >= 0 for count in record.folded.values()), "folded")
    _ask(all(item.end >= item.start for item in record.gaps), "gaps")
    for item in record.deadletters:
        _ask(item.start % WINDOW_SECONDS == 0 and abs(item.start) < LATEST, "deadletters")
        _ask(item.total >= 0, "deadletters")
    for watch in record.watches.values():
        _check_watch(watch)
    if record.records not in (None, others):
        raise DecodeError(
            f"{others:,} other records are there, {record.records:,} belong to it; the topic needs "
            "cleanup.policy=compact",
            field="records",
        )


def _ask(holds: bool, field: str) -> None:
    if not holds:
        raise DecodeError("contradicts what stands beside it", field=field)
