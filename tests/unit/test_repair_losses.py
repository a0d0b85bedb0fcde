"""The terms of the repair's objective, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.repair import losses

ONES = torch.ones(2)


def test_each_token_has_the_probability_that_was_foretold() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.9], [0.7, 0.3]]))
    found = losses.token_log_probabilities(logits, torch.tensor([1, 0]))
    assert found.exp().tolist() == pytest.approx([0.9, 0.7])


def test_long_answers_weigh_no_more_than_short_ones() -> None:
    values, owners = torch.tensor([-1.0, -1.0, -1.0, -4.0]), torch.tensor([0, 0, 0, 1])
    means = losses.row_means(values, owners, 2)
    assert means.tolist() == [-1.0, -4.0]
    assert losses.nll(means, ONES).item() == pytest.approx(2.5)
    assert losses.nll(means, torch.tensor([3.0, 1.0])).item() == pytest.approx(1.75)


def test_a_row_without_answer_and_a_batch_without_weight_count_as_nothing() -> None:
    assert losses.row_means(torch.ones(2), torch.tensor([1, 1]), 2).tolist() == [0.0, 1.0]
    assert losses.nll(-ONES, torch.zeros(2)).item() == 0.0


def test_npo_at_the_reference_is_two_over_beta_log_two_with_gradient_one() -> None:
    start = torch.tensor([-1.0], requires_grad=True)
    loss = losses.npo(start, torch.tensor([-1.0]), torch.ones(1), beta=0.1, floor=-9.0)
    assert loss.item() == pytest.approx(2 / 0.1 * math.log(2))
    (gradient,) = torch.autograd.grad(loss, start)
    assert gradient.item() == pytest.approx(1.0)


def test_npo_fades_as_the_answer_becomes_unlikely_and_stops_at_the_floor() -> None:
    start = torch.tensor([-1.0, -6.0, -9.5], requires_grad=True)
    loss = losses.npo(start, torch.full((3,), -1.0), torch.ones(3), beta=1.0, floor=-9.0)
    (gradient,) = torch.autograd.grad(loss, start)
    here, lower, under = (3 * gradient).tolist()
    assert here == pytest.approx(1.0)
    assert lower == pytest.approx(2 / (1 + math.exp(5)))
    assert under == 0.0


def test_kl_is_taken_from_the_reference_and_is_a_mean_over_tokens() -> None:
    reference = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    present = torch.log(torch.tensor([[0.25, 0.75], [0.9, 0.1]]))
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert losses.token_kl(reference, present).item() == pytest.approx(wanted / 2)


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6))
def test_kl_is_never_negative_and_zero_only_without_change(values: list[float]) -> None:
    present = torch.tensor(values).view(2, 3)
    assert losses.token_kl(present, present).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.token_kl(torch.zeros(2, 3), present).item() >= -1e-6


def test_the_hinge_asks_for_the_ranking_and_for_the_threshold() -> None:
    safe, harmful = torch.tensor([1.0]), torch.tensor([0.5])
    found = losses.reward_hinge(safe, harmful, torch.ones(1), margin=1.0, threshold=0.0)
    assert found.item() == pytest.approx((1.0 - 0.5) + (0.5 + 0.25))


@given(st.floats(-1, 5), st.floats(-5, -0.25))
def test_the_hinge_leaves_alone_what_is_right_where_bradley_terry_goes_on(
    safe: float, harmful: float
) -> None:
    scores = torch.tensor([max(safe, harmful + 1.0), harmful], requires_grad=True)
    hinge = losses.reward_hinge(scores[:1], scores[1:], torch.ones(1), margin=1.0, threshold=0.0)
    pushed = losses.bradley_terry(scores[:1], scores[1:], torch.ones(1))
    assert hinge.item() == pytest.approx(0.0, abs=1e-5)
    assert torch.autograd.grad(pushed, scores)[0].abs().sum().item() > 0.0


def test_the_anchor_is_the_mean_squared_change() -> None:
    found = losses.anchor(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert found.item() == pytest.approx(0.5)


def test_an_answer_that_the_reward_model_likes_weighs_more_and_sends_it_no_gradient() -> None:
    safe = torch.tensor([1.0, 1.0, 0.0])
    harmful = torch.tensor([-2.0, 1.5, 9.0], requires_grad=True)
    weights = losses.coupling(safe, harmful, threshold=0.5, strength=0.5)
    assert weights.tolist() == pytest.approx([1.0, 1.5, 2.5])
    assert not weights.requires_grad


def test_the_floor_is_where_a_guess_over_the_vocabulary_lies() -> None:
    assert losses.uniform_floor(1000) == pytest.approx(math.log(1 / 1000))
