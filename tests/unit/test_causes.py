"""Failures are grouped by the words that carry their reward; each is compared with benign text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ares_stream.records.base import EPOCH
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.scoring.causes import Cause, causes, words_of
from ares_stream.scoring.nearest import BenignIndex
from ares_stream.scoring.occlusion import Explanation, Span, Weight, Word


def test_a_cause_is_the_word_that_most_name_with_what_nearly_all_of_them_name_as_well() -> None:
    named = {
        "a": ["velvet", "hammer"],
        "b": ["velvet", "hammer"],
        "c": ["hammer", "velvet", "north"],
        "d": ["north"],
        "e": ["north", "south"],
        "f": ["alone"],
    }
    assert causes(named) == [
        Cause(("hammer", "velvet"), ("a", "b", "c")),
        Cause(("north",), ("d", "e")),
    ]


@given(st.dictionaries(st.text("xyz", min_size=1, max_size=3),
                       st.lists(st.sampled_from("abcdef"), max_size=4), max_size=20))  # fmt: skip
def test_every_failure_is_in_one_cause_at_most_and_names_its_first_word(
    named: dict[str, list[str]],
) -> None:
    found = causes(named)
    members = [failure for cause in found for failure in cause.failures]
    assert len(members) == len(set(members))
    assert all(cause.words[0] in named[each] for cause in found for each in cause.failures)
    assert all(len(cause.failures) >= 2 for cause in found)
    left = [words for failure, words in named.items() if failure not in members]
    for word in "abcdef":
        assert sum(word in words for words in left) < 2


def test_an_explanation_names_its_edit_else_its_heaviest_words() -> None:
    words = [Word(text, (Span("prompt", 0, 1, text),)) for text in ("One", "two", "TWO")]
    weights = tuple(Weight(word, 1.0) for word in words)
    edited = Explanation(2.0, 1.0, weights, (words[1], words[2]), (), (2.0,))
    assert words_of(edited) == ("two",)
    assert words_of(Explanation(2.0, 1.0, weights, (), (), (2.0,))) == ("one", "two")


def conversation(prompt: str, response: str) -> Interaction:
    return Interaction(
        id=prompt, occurred_at=EPOCH, messages=(Message(role="user", content=prompt),),
        response=response, policy=Policy(name="chat", version="1"),
    )  # fmt: skip


def test_the_nearest_benign_conversation_shares_the_rare_words() -> None:
    rows = [
        conversation("how do I bake a loaf of bread", "knead the dough"),
        conversation("how do I open a locked door", "call a locksmith"),
        conversation("how do I do a thing", "do it"),
    ]
    index = BenignIndex(rows)
    found = index.nearest(conversation("how do I open a locked door of others", "with a pick"))
    assert found is not None
    assert found.interaction == rows[1]
    same = index.nearest(rows[0])
    assert same is not None
    assert same.likeness > 0.999
    assert index.nearest(conversation("zzz", "yyy")) is None
    assert BenignIndex([]).nearest(rows[0]) is None
