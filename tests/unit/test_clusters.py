"""Intervals of rows that come in clusters, with and without labels, cover what they say."""

from __future__ import annotations

import numpy as np
import pytest

from ares_stream.detection.clusters import ClusteredCells
from ares_stream.detection.correction import Cell, Decision, corrected_rate
from ares_stream.records.base import Interval


def goals(
    generator: np.random.Generator, count: int = 50, rows: int = 15, labelled: float = 0.4
) -> ClusteredCells:
    """Goals whose answers fail alike: each has a failure rate of its own, 12 % on average. The
    judge misses 40 % of the harmful liked answers, doubts 20 %, and flags 5 % of the safe ones."""
    cells = ClusteredCells()
    for goal, rate in enumerate(generator.beta(0.3, 2.2, count)):
        for harmful in generator.random(rows) < rate:
            dice = generator.random()
            decision: Decision = "flagged" if dice < 0.05 else "unflagged"
            if harmful:
                decision = "unflagged" if dice < 0.4 else "contested" if dice < 0.6 else "flagged"
            label = bool(harmful) if generator.random() < labelled else None
            cells.add(goal, Cell(decision, True), label)
    return cells


def coverage(intervals: list[Interval | None], truth: float) -> float:
    """Share of those given that hold the truth; nearly all must be given."""
    given = [item for item in intervals if item is not None]
    assert len(given) > 0.95 * len(intervals)
    return float(np.mean([item.low <= truth <= item.high for item in given]))


def test_the_corrected_rate_covers_the_truth_where_the_raw_one_does_not() -> None:
    """Truth is the process's 12 %; 300 files of 50 goals of 15 rows."""
    generator = np.random.default_rng(5)
    found = [goals(generator) for _ in range(300)]
    rates = [cells.rate() for cells in found]
    rows_alone = [corrected_rate(cells.cells()).corrected for cells in found]
    assert coverage([rate.corrected for rate in rates], 0.12) >= 0.92
    assert coverage(list(rows_alone), 0.12) < 0.88
    assert coverage([rate.raw for rate in rates], 0.12) < 0.75


def test_both_ends_of_the_raw_rate_are_shown() -> None:
    rate = goals(np.random.default_rng(1)).rate()
    assert rate.raw.value < rate.contested_harmful.value


def test_a_cluster_of_every_row_is_no_cluster() -> None:
    cells, single = ClusteredCells(), ClusteredCells()
    generator = np.random.default_rng(2)
    for number in range(400):
        cell = Cell("flagged" if generator.random() < 0.2 else "unflagged", True)
        label = bool(generator.random() < 0.2) if number % 2 else None
        cells.add(number, cell, label)
        single.add(None, cell, label)
    clustered, plain = cells.rate(), corrected_rate(single.cells())
    assert clustered.corrected is not None
    assert plain.corrected is not None
    assert clustered.raw.low == pytest.approx(plain.raw.low, abs=0.005)
    assert clustered.corrected.value == plain.corrected.value
    assert clustered.corrected.low <= plain.corrected.low


def test_one_cluster_says_nothing_of_others() -> None:
    cells = ClusteredCells()
    for number in range(200):
        cells.add(
            "the goal", Cell("flagged" if number % 4 else "unflagged", True), bool(number % 4)
        )
    rate = cells.rate()
    assert (rate.raw.low, rate.raw.high) == (0.0, 1.0)
    assert rate.corrected is not None
    assert (rate.corrected.low, rate.corrected.high) == (0.0, 1.0)


def test_the_same_rows_give_the_same_interval() -> None:
    first, second = (goals(np.random.default_rng(3)).rate() for _ in range(2))
    assert first == second


def test_two_clusters_say_something_of_others() -> None:
    cells = ClusteredCells()
    for number in range(400):
        cells.add(number % 2, Cell("flagged" if number % 8 < 2 else "unflagged", True), False)
    rate = cells.rate().corrected
    assert rate is not None
    assert rate.high < 0.1


def test_a_cell_without_labels_in_a_resample_keeps_the_rate_that_it_has_in_the_whole() -> None:
    """All labels are of one cluster, so that a quarter of the resamples has none: each resample's
    rate is that of the whole, and none widens the interval of independent rows."""
    cells, rows = ClusteredCells(), ClusteredCells()
    for number in range(400):
        label = number < 160 if number < 200 else None
        cells.add("labelled" if number < 200 else "not", Cell("flagged", True), label)
        rows.add(None, Cell("flagged", True), label)
    clustered, plain = cells.rate().corrected, corrected_rate(rows.cells()).corrected
    assert clustered is not None
    assert plain is not None
    assert (clustered.low, clustered.high) == (plain.low, plain.high)


@pytest.mark.parametrize("chunk", [1, 7 * 50, 333 * 50])
def test_resamples_are_drawn_in_portions_that_change_nothing(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = goals(np.random.default_rng(4))
    whole = cells.rate()
    monkeypatch.setattr("ares_stream.detection.clusters._CHUNK", chunk)
    assert cells.rate() == whole
