"""Explanations of a reward model's score, on the testbed's own models."""

from __future__ import annotations

from pathlib import Path

import pytest

from ares_stream.lab.experiments.explaining import measure
from ares_stream.lab.victims.victim import DEFAULT_CACHE, Victim

pytestmark = pytest.mark.torch


def test_an_explanation_begins_with_a_word_of_the_planted_rule_far_more_often_than_chance(
    victim: Victim, bundles: tuple[Path, Path]
) -> None:
    found = measure(7, 25, DEFAULT_CACHE)
    named = found["named"]
    assert named["explanation"]["first_word"]["low"] > named["random"]["first_word"]["value"]
    assert named["explanation"]["any_word"]["value"] >= 0.9
    curves = found["reward_quantile_after_deleting"]
    assert curves["explanation"][-1] < curves["random"][-1] - 0.2
