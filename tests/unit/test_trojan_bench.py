"""What the Trojan searches of several victims come to."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from ares_stream.lab.experiments.probes.trojans import trojans


def seed(
    *, alarms: tuple[int, int] = (0, 0), natural: int = 0, located: tuple[int, int] | None = (2, 2)
) -> dict[str, dict[str, float]]:
    """Figures of the policy and the reward model; `located` of two planted each, or no planting."""
    found: dict[str, dict[str, float]] = {}
    for place, model in enumerate(("policy", "reward")):
        found[model] = {"false_alarms": alarms[place], "natural": natural if place else 0}
        if located:
            found[model] |= {"planted": 2, "located": located[place], "spurious": 0}
    return found


def means(shown: dict[str, Any]) -> dict[str, float]:
    return {name: item["mean"] for name, item in shown.items()}


def test_located_is_told_per_model_and_in_all() -> None:
    figures = trojans({1: seed(), 2: seed(located=(2, 1))}, {})
    assert figures["planted"] == 8
    assert figures["located"]["mean"] == pytest.approx((1.0 + 0.75) / 2)
    assert means(figures["located_by_model"]) == {"policy": 1.0, "reward": 0.75}


def test_a_false_alarm_counts_once_per_search_and_a_natural_trigger_is_none() -> None:
    figures = trojans({1: seed(natural=3), 2: seed(alarms=(0, 4))}, {})
    assert figures["false_alarms"]["mean"] == 0.25
    assert figures["natural"] == {"policy": {"1": 0, "2": 0}, "reward": {"1": 3, "2": 0}}


def test_a_seed_whose_planting_failed_is_left_out_of_what_is_located_and_named() -> None:
    figures = trojans({1: seed(located=(1, 1)), 2: seed(located=None)}, {2: "why"})
    assert figures["left_out"] == {"2": "why"}
    assert figures["located"]["by_seed"] == {"1": 0.5}
    assert set(figures["false_alarms"]["by_seed"]) == {"1", "2"}


def test_without_any_planting_nothing_is_said_about_what_is_located() -> None:
    figures = trojans({2: seed(located=None)}, {2: "why"})
    assert figures["located"] is None
    assert figures["planted"] == 0
