"""Alarms are as rarely false as promised, see a rise soon, and say when it began."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.detection.watches import (
    BETS,
    HIGHEST_BASELINE,
    LOWEST_BASELINE,
    Counts,
    Peak,
    bounded,
    evidence,
    fold,
    peak,
)

WINDOWS = st.lists(
    st.integers(0, 30).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total))),
    max_size=30,
)


def windows(counts: Sequence[tuple[int, int]], first: int = 0) -> list[Counts]:
    """Windows of ten minutes, of (verdicts, hits) each."""
    return [Counts((first + n) * 600, total, hits) for n, (total, hits) in enumerate(counts)]


def run_lengths(rate: float, baseline: float, limit: int, horizon: int, seed: int) -> np.ndarray:
    """Windows of one event until the evidence passes the limit, for 100 streams; the horizon where
    it never does."""
    rng = np.random.default_rng(seed)
    lengths = []
    for _ in range(100):
        stream = windows([(1, int(hit)) for hit in rng.random(horizon) < rate])
        low, high = 0, horizon
        while low < high:
            middle = (low + high) // 2
            passed = peak(None, stream[: middle + 1], baseline).log >= math.log(limit)
            low, high = (low, middle) if passed else (middle + 1, high)
        lengths.append(min(low + 1, horizon))
    return np.array(lengths)


@pytest.mark.parametrize("baseline", [0.02, 0.125])
def test_false_alarms_are_at_least_the_promised_run_length_apart(baseline: float) -> None:
    """184 windows at .02 and 108 at .125, for a promise of 100."""
    assert run_lengths(baseline, baseline, limit=100, horizon=600, seed=2).mean() >= 100


def test_a_rise_is_found_soon() -> None:
    """From 5 to 20 %, with false alarms 1,000 or more windows apart: about 40 events."""
    assert run_lengths(0.20, 0.05, limit=1_000, horizon=300, seed=3).mean() <= 60


def test_a_bet_wins_and_loses_as_the_page_says() -> None:
    """Two windows by hand: what each bet is worth, begun anew at each."""
    first = 2 * np.log1p(BETS * (1 / 0.25 - 1)) + 3 * np.log1p(-BETS)
    second = 7 * np.log1p(-BETS)
    state = fold(None, windows([(5, 2), (7, 0)]), 0.25)
    assert np.allclose(state, np.log(np.exp(first) + 1) + second)
    assert float(evidence(state)) == pytest.approx(float(np.log(np.mean(np.exp(state)))))


@given(WINDOWS, st.integers(0, 30), st.sampled_from([0.01, 0.2, 0.9]))
def test_windows_that_were_let_go_count_as_those_that_are_kept(
    counts: list[tuple[int, int]], kept_from: int, baseline: float
) -> None:
    every = windows(counts)
    old, kept = every[:kept_from], every[kept_from:]
    before = fold(None, old, baseline) if old else None
    whole, part = fold(None, every, baseline), fold(before, kept, baseline)
    assert np.allclose(whole, part)
    if kept:
        at_ends = [
            float(evidence(fold(None, every[: len(old) + number], baseline)))
            for number in range(1, len(kept) + 1)
        ]
        assert peak(before, kept, baseline).log == pytest.approx(max(at_ends))


def test_the_peak_says_which_window_it_ended_and_where_the_rise_began() -> None:
    quiet, risen, over = [(20, 1)] * 6, [(20, 12)] * 3, [(20, 0)] * 5
    found = peak(None, windows([*quiet, *risen, *over], first=100), 0.05)
    assert (found.at, found.changed_at) == ((100 + 8) * 600, (100 + 6) * 600)
    assert found.log > math.log(10_000)


def test_no_windows_are_no_evidence() -> None:
    assert peak(None, [], 0.1) == Peak(-math.inf, -1, 0)
    assert float(evidence(fold(None, [], 0.1))) == -math.inf


def test_bets_span_what_can_be_lost_on_one_event() -> None:
    assert len(BETS) == 14
    assert (BETS[0], BETS[-1]) == (pytest.approx(0.01), pytest.approx(0.6))


@pytest.mark.parametrize(
    ("baseline", "used"),
    [(0.0, LOWEST_BASELINE), (1e-5, 1e-4), (0.3, 0.3), (1.0, HIGHEST_BASELINE), (0.9995, 0.999)],
)
def test_a_baseline_that_no_bet_can_be_made_against_is_moved(baseline: float, used: float) -> None:
    assert bounded(baseline) == used
