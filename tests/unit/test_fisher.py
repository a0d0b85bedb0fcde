"""Fisher's exact test beside SciPy's, and where SciPy's takes minutes or overflows."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from ares_stream.detection.fisher import fisher_greater

COUNTS = st.one_of(st.integers(0, 40), st.integers(0, 5000))


@given(COUNTS, COUNTS, st.floats(0, 1), st.floats(0, 1))
def test_it_gives_what_scipy_gives(count: int, others: int, share: float, other: float) -> None:
    failed, others_failed = round(count * share), round(others * other)
    rows = [[failed, count - failed], [others_failed, others - others_failed]]
    expected = float(fisher_exact(rows, alternative="greater").pvalue)
    assert fisher_greater(failed, count, others_failed, others) == pytest.approx(
        expected, rel=1e-6, abs=1e-12
    )


@pytest.mark.parametrize("size", [200_000, 1_000_000, 5_000_000])
@pytest.mark.parametrize("share", [1e-5, 0.01, 0.5, 0.9])
@pytest.mark.parametrize("deviations", [-2.0, 0.0, 1.64, 4.0])
def test_of_many_it_gives_what_scipy_gives(size: int, share: float, deviations: float) -> None:
    """On both sides of where the normal distribution stands in for it."""
    failed = round(size * share)
    more = max(0, failed + round(deviations * (2 * size * share * (1 - share)) ** 0.5))
    rows = [[more, size - more], [failed, size - failed]]
    expected = float(fisher_exact(rows, alternative="greater").pvalue)
    assert fisher_greater(more, size, failed, size) == pytest.approx(expected, rel=0.02, abs=1e-6)


@pytest.mark.parametrize("count", [10**9, 10**12, 2**53 - 1, 2**62])
@pytest.mark.parametrize("others", [1, 100, 10**12, 2**53 - 1])
@pytest.mark.parametrize("share", [0.0, 1e-12, 0.5, 1.0])
@pytest.mark.parametrize("other", [0.0, 0.5, 1.0])
def test_counts_that_nobody_has_cost_no_time_and_no_memory(
    count: int, others: int, share: float, other: float
) -> None:
    tracemalloc.start()
    try:
        p = fisher_greater(round(count * share), count, round(others * other), others)
        back = fisher_greater(round(others * other), others, round(count * share), count)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert 0.0 <= p <= 1.0
    assert p + back >= 1.0 - 1e-9, "what both hold is in both tails"
    if round(count * share) / count > other + 0.1 and others > 50:
        assert p < 1e-6


@pytest.mark.parametrize("odd", [(2, 1, 0, 1), (0, 1, 2, 1), (-1, 1, 0, 1)])
def test_more_failures_than_trials_are_refused(odd: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="more failures than trials"):
        fisher_greater(*odd)
