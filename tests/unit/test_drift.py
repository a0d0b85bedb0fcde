"""Drift figures mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from ares_stream.detection.drift import anchor_drift, ks_distance


def test_each_figure_sees_its_own_kind_of_drift() -> None:
    rng = np.random.default_rng(1)
    frozen = rng.normal(3.0, 2.0, 4_000)
    still = anchor_drift(frozen, frozen)
    assert (still.mean_shift, still.rms, still.ks) == (0.0, 0.0, 0.0)
    assert still.psi == pytest.approx(0.0, abs=1e-9)

    shifted = anchor_drift(frozen, frozen + 1.0)
    assert shifted.mean_shift == pytest.approx(0.5, abs=0.02)
    assert shifted.rms == pytest.approx(0.5, abs=0.02)
    assert shifted.psi > 0.2

    swapped = anchor_drift(frozen, rng.permutation(frozen))
    assert swapped.mean_shift == pytest.approx(0.0, abs=1e-9)
    assert swapped.rms == pytest.approx(np.sqrt(2), abs=0.05)
    assert swapped.ks == 0.0


# The exact p-value, which is not asked for, can fail.
@pytest.mark.filterwarnings("ignore:ks_2samp:RuntimeWarning")
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
    st.lists(st.integers(-5, 5), min_size=1, max_size=40),
)
def test_the_distance_of_two_samples_is_scipys_with_ties_and_other_sizes(
    first: list[int], second: list[int]
) -> None:
    theirs = ks_2samp(first, second, method="exact").statistic
    assert ks_distance(np.array(first, float), np.array(second, float)) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("reference", "current"),
    [([1.0], [1.0]), ([1, 2], [1]), ([2, 2], [1, 3]), ([1, 2], [1, np.nan])],
)
def test_anchors_that_measure_nothing_are_refused(
    reference: list[float], current: list[float]
) -> None:
    with pytest.raises(ValueError, match="anchor"):
        anchor_drift(reference, current)
