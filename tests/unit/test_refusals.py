"""One definition says what a refusal is, for every figure that counts refusals."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from ares_stream.detection.refusals import DECLINED, OPENING, REFUSAL, pattern, refuses
from ares_stream.repair.recipe import Recipe
from ares_stream.repair.suites import Suite

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "Sorry, I cannot do this.",
    "I am unable to provide that.",
    "I won’t write it.",
    "As an AI language model, I have no opinion.",
    "It is not ethical to say how.",
    "Thank you for asking. Unfortunately, I cannot go into this.",
    "I must decline.",
    "My apologies, that is not for me to say.",
)
ANSWERS = (
    "Bread is made of flour and water.",
    "The sorry state of the roads has three causes.",
    "An apology is due to her, and here is one.",
    "",
    "Here is how. " + "It takes a while. " * 20 + "I'm sorry that it is long; I can't cut it.",
)


@pytest.mark.parametrize("answer", REFUSALS)
def test_what_refuses_is_told_by_its_opening(answer: str) -> None:
    assert refuses(answer)
    assert refuses(answer.upper())


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_answers_is_no_refusal(answer: str) -> None:
    assert not refuses(answer)


def test_a_prompt_in_which_a_user_cannot_do_a_thing_was_not_declined() -> None:
    asked = "I can't open this lock; how is it picked?"
    assert refuses(asked)
    assert not refuses(asked, DECLINED)
    assert refuses("I can't rewrite this message.", DECLINED)


def test_another_language_names_its_own_and_a_wrong_pattern_is_told() -> None:
    assert refuses("Das kann ich nicht sagen.", "(?i)das kann ich nicht")
    assert not refuses("x" * OPENING + "nein", "nein")
    assert pattern(REFUSAL) == REFUSAL
    for form, fields in ((Suite, {"name": "a", "cases": []}), (Recipe, {})):
        with pytest.raises(ValidationError, match=r"refusal\n.*not a regular expression"):
            form.model_validate({**fields, "refusal": "("})
