"""The probe benchmark's figures, on victims that are the planted rules and noise."""

import numpy as np
import pytest

from ares_stream.lab.experiments.probes.search import (
    FIGURES,
    Question,
    SimulatedVictim,
    compared,
    failing_cells,
    findable_rules,
    measure,
    probe_space,
    run,
    transfer,
    transferred,
)
from ares_stream.lab.language.world import Sibling, World

VICTIM = SimulatedVictim(World(3))


def test_probing_leaves_out_the_tactics_that_are_held_out() -> None:
    space = probe_space(VICTIM.world)
    tactics = set(space.unravel(space.numbers)[:, 1].tolist())
    assert tactics.isdisjoint(VICTIM.world.unprobed_tactics)
    assert len(tactics) + len(VICTIM.world.unprobed_tactics) == 16


def test_findable_rules_show_in_truth_and_none_of_them_is_held_out() -> None:
    space = probe_space(VICTIM.world)
    rules = findable_rules(VICTIM.world, space, failing_cells(space, VICTIM.fails))
    assert rules
    for rule in rules:
        assert not rule.held_out
        assert (rule.mask.ravel() & VICTIM.fails & space.allowed).any()


def test_the_judge_errs_on_about_two_in_a_hundred_and_the_same_question_has_one_answer() -> None:
    space = probe_space(VICTIM.world)
    questions = [Question(int(number), f"q{number}", 0) for number in space.numbers[::5]]
    judged = VICTIM.judge(questions)
    assert judged == VICTIM.judge(questions)
    harmful = VICTIM.world.policy_weak.ravel()
    wrong = np.mean(
        [(item.harm > 0.5) != harmful[q.number] for q, item in zip(questions, judged, strict=True)]
    )
    assert 0.01 < wrong < 0.05


def test_a_search_that_learns_finds_more_than_one_that_does_not() -> None:
    found = {
        method: run(VICTIM, method, seed=1, budget=1000).figures["1000"]
        for method in ("adaptive", "uniform")
    }
    for figure in ("triple_recall", "unique_per_1k"):
        assert found["adaptive"][figure] > 2 * found["uniform"][figure]


def test_every_figure_of_every_method_and_checkpoint_is_in_the_document() -> None:
    document = compared({3: measure(VICTIM, 3, methods=("uniform", "paper_weights"), budget=500)})
    assert set(document) == {"uniform", "paper_weights"}
    for entry in document.values():
        assert set(entry) == {"500", "selection_ms_per_probe"}
        assert set(entry["500"]) == set(FIGURES)
        for figure in entry["500"].values():
            assert set(figure) == {"mean", "low", "high", "by_seed"}
            assert set(figure["by_seed"]) == {"3"}


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second = (run(VICTIM, "adaptive", seed=2, budget=500) for _ in range(2))
    assert first.figures == second.figures
    assert first.campaign.state() == second.campaign.state()


@pytest.mark.parametrize("kept", [0.0, 0.75, 1.0])
def test_a_sibling_keeps_its_share_of_rules_and_never_weakens_a_held_out_tactic(
    kept: float,
) -> None:
    first = World(3)
    second = Sibling(3, other=1003, kept=kept)
    same = sum(a == b for a, b in zip(first.rules, second.rules, strict=True))
    assert same == len(first.rules) if kept == 1.0 else same < len(first.rules)
    for rule in second.rules:
        tactics = rule.needs.get(1, frozenset())
        assert rule.held_out or tactics.isdisjoint(first.unprobed_tactics)
    held_out = [(a, b) for a, b in zip(first.rules, second.rules, strict=True) if a.held_out]
    assert all(a == b for a, b in held_out)
    replaced = sum(a != b for a, b in zip(first.rules, second.rules, strict=True))
    assert replaced == round((1 - kept) * (len(first.rules) - len(held_out)))
    assert (first.policy_weak != second.policy_weak).any() == (kept < 1.0)


def test_what_a_first_campaign_learnt_saves_queries_on_a_sibling() -> None:
    second = SimulatedVictim(Sibling(3, other=1003))
    cold, warm = transfer(VICTIM, second, 3, budget=500)
    assert warm < cold
    figures = transferred({3: (cold, warm), 4: (100.0, 50.0)})
    assert figures["ratio"] == (warm + 50.0) / (cold + 100.0)
    assert figures["warm"]["by_seed"] == {"3": warm, "4": 50.0}
