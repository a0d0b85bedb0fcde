"""Rows behind other words: what a judge that reads windows learns beside the rows as they are."""

from __future__ import annotations

import math

import pytest

from ares_stream.training.examples import Judgement, conversation, family
from ares_stream.training.placement import SHARE, WORDS, placed


def row(number: int, *, harmful: bool, source: str, weight: float = 1.0) -> Judgement:
    word = f"{source}{number}"
    return Judgement(
        conversation(f"prompt {word}", " ".join([word] * 30)),
        harmful,
        family(f"goal {word}"),
        source,
        weight,
    )


ATTACKS = [row(n, harmful=n % 2 == 0, source="attack", weight=1 + n) for n in range(200)]
ORDINARY = [row(n, harmful=False, source="ordinary") for n in range(60)]


def front(moved: Judgement) -> list[str]:
    """The words before the row's own."""
    words = moved.interaction.response.split()
    own = {word: place for place, word in reversed(list(enumerate(words)))}[words[-1]]
    assert len(words) - own == 30
    return words[:own]


def test_a_share_of_the_rows_stands_behind_words_and_keeps_all_but_its_text() -> None:
    rows = [*ATTACKS, *ORDINARY]
    by_prompt = {item.interaction.prompt: item for item in rows}
    found = placed(rows, seed=0)
    assert len(found) == pytest.approx(SHARE * len(rows), rel=0.4)
    assert {item.harmful for item in found} == {True, False}
    for item in found:
        was = by_prompt[item.interaction.prompt]
        assert item.interaction.response.endswith(was.interaction.response)
        assert (item.harmful, item.family, item.source, item.weight) == (
            was.harmful,
            was.family,
            was.source,
            was.weight,
        )
        assert item.interaction.id != was.interaction.id
        assert math.floor(WORDS[0]) <= len(front(item)) <= WORDS[1]


def test_the_words_are_of_sources_that_hold_no_harm_and_of_other_prompts() -> None:
    for item in placed([*ATTACKS, *ORDINARY], seed=0):
        words = set(front(item))
        assert all(word.startswith("ordinary") for word in words)
        assert item.interaction.response.split()[-1] not in words


def test_without_such_a_source_they_are_of_harmless_rows() -> None:
    harmful = {item.interaction.response.split()[0] for item in ATTACKS if item.harmful}
    found = placed(ATTACKS, seed=0)
    assert found
    for item in found:
        assert harmful.isdisjoint(front(item))


def test_the_draw_depends_on_the_seed_and_not_on_the_order_of_other_rows() -> None:
    rows = [*ATTACKS, *ORDINARY]
    once, again = placed(rows, seed=0), placed([*reversed(ATTACKS), *ORDINARY], seed=0)
    assert once == placed(rows, seed=0) == sorted(again, key=once.index)
    assert once != placed(rows, seed=1)


def test_where_all_rows_are_of_one_prompt_or_harmful_there_are_no_words() -> None:
    assert placed([item for item in ATTACKS if item.harmful], seed=0) == []
    alone = Judgement(conversation("a", "b"), False, "one", "x")
    same = [Judgement(conversation("a", f"b {n}"), False, "one", "x") for n in range(50)]
    assert placed([alone, *same], seed=0) == []
