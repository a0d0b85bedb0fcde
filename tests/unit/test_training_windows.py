"""Fitting sees an answer as the scorer pools it: the worst window, or their mean."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from ares_stream.training.encoder import (  # noqa: E402
    FITTED_WINDOWS,
    SHARPNESS,
    Encoded,
    _fitted,
    _places,
    mean,
    worst,
)


def answer(windows: int, tokens: int = 3) -> tuple[Encoded, ...]:
    return tuple(Encoded((number,) * tokens, (0,) * tokens) for number in range(windows))


def test_the_worst_window_decides_smoothly_and_receives_the_gradient() -> None:
    answers = [answer(3), answer(1)]
    logits = torch.tensor([0.0, 9.0, -4.0, 2.0], requires_grad=True)
    pooled = worst(logits, *_places(answers, torch.device("cpu")), 2)
    assert pooled.tolist() == pytest.approx([9.0, 2.0], abs=1e-3)
    pooled[0].backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.0, 1.0, 0.0, 0.0], abs=1e-3)


def test_what_is_fitted_is_near_what_scoring_takes_however_many_windows_there_are() -> None:
    """A sum over windows would grow with their number, and scoring takes the largest."""
    for windows in (2, FITTED_WINDOWS):
        logits = torch.zeros(windows + 1)
        pooled = worst(logits, *_places([answer(windows), answer(1)], torch.device("cpu")), 2)
        assert 0.0 < float(pooled[0]) <= math.log(FITTED_WINDOWS) / SHARPNESS + 1e-6
        assert float(pooled[1]) == pytest.approx(0.0, abs=1e-6)


def test_large_logits_stay_finite() -> None:
    places = _places([answer(2)], torch.device("cpu"))
    assert torch.isfinite(worst(torch.tensor([1e4, -1e4]), *places, 1)).all()


def test_the_mean_is_weighted_by_tokens() -> None:
    pair = [(*answer(1, tokens=9), *answer(1, tokens=1))]
    pooled = mean(torch.tensor([1.0, 11.0]), *_places(pair, torch.device("cpu")), 1)
    assert pooled.tolist() == pytest.approx([2.0])


def test_of_a_long_answer_windows_are_fitted_evenly_from_first_to_last() -> None:
    few = _fitted(answer(31))
    assert [row.ids[0] for row in few] == [0, 6, 12, 18, 24, 30]
    assert len(few) == FITTED_WINDOWS
    assert _fitted(answer(4)) == answer(4)
