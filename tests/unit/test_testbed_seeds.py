"""The interval of a figure over seeds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.lab.experiments.seeds import over_seeds


def test_the_interval_of_three_seeds_is_students() -> None:
    found = over_seeds({11: 0.01, 12: 0.02, 13: 0.03})
    half = 4.302652729911275 * 0.01 / 3**0.5
    assert found["mean"] == pytest.approx(0.02)
    assert (found["low"], found["high"]) == pytest.approx((0.02 - half, 0.02 + half))
    assert found["by_seed"] == {"11": 0.01, "12": 0.02, "13": 0.03}


def test_one_seed_has_no_interval() -> None:
    assert over_seeds({11: 0.5}) == {
        "mean": 0.5, "low": None, "high": None, "by_seed": {"11": 0.5},
    }  # fmt: skip


@given(st.dictionaries(st.integers(0, 99), st.floats(0, 1e3), min_size=2, max_size=9))
def test_an_interval_holds_its_mean_and_equal_seeds_give_no_width(
    by_seed: dict[int, float],
) -> None:
    shown = over_seeds(by_seed)
    assert shown["low"] <= shown["mean"] <= shown["high"]
    level = over_seeds(dict.fromkeys(by_seed, 0.25))
    assert level["low"] == level["mean"] == level["high"] == 0.25
