"""Labelled files become rows: what is wrong with a line is named, and families stay together."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import FileFormatError, InputError
from ares_stream.repair.export import export_plan
from ares_stream.training.examples import (
    Judgement,
    balanced_weights,
    by_part,
    conversation,
    family,
    mixed_sources,
    part_of,
    read_conversations,
    read_judgements,
    read_preferences,
)
from tests.support.failures import batch, made

GOOD: dict[str, Any] = {"prompt": "How?", "response": "So.", "harmful": True}
PAIR: dict[str, Any] = {"prompt": "How?", "chosen": "Well.", "rejected": "So."}

Write = Callable[[str, Sequence[Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, rows: Sequence[Any]) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def row(source: str, harmful: bool, weight: float = 1.0) -> Judgement:
    return Judgement(conversation("p", "r"), harmful, "family", source, weight)


def test_a_row_takes_its_family_from_its_goal_and_its_source_from_its_file(write: Write) -> None:
    wrapped = GOOD | {"prompt": "Pretend: How?", "goal": "how", "harmful": False, "weight": 0.5}
    rows, files = read_judgements([write("mine.jsonl", [GOOD, wrapped | {"source": "theirs"}])])
    assert rows[0].family == rows[1].family
    assert [item.source for item in rows] == ["mine.jsonl", "theirs"]
    assert [item.harmful for item in rows] == [True, False]
    assert [item.weight for item in rows] == [1.0, 0.5]
    assert rows[1].interaction.prompt == "Pretend: How?"
    assert [(item.name, item.rows) for item in files] == [("mine.jsonl", 2)]


def test_interactions_with_a_label_among_their_attributes_are_rows_too(write: Write) -> None:
    interaction = json.loads(conversation("How?", "So.").encode())
    labelled = interaction | {"attributes": {"harmful": "false", "goal": "other", "source": "x"}}
    rows, _ = read_judgements([write("rows.jsonl", [GOOD, labelled])])
    assert rows[1].harmful is False
    assert rows[1].source == "x"
    assert rows[1].family == family("other")
    assert rows[1].interaction.response == "So."


def test_zipped_and_plain_files_of_one_content_have_one_digest(
    write: Write, tmp_path: Path
) -> None:
    plain = write("rows.jsonl", [GOOD, GOOD | {"harmful": False}])
    zipped = tmp_path / "rows.jsonl.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    (rows, [a]), (unzipped, [b]) = read_judgements([plain]), read_judgements([zipped])
    assert a.digest == b.digest
    assert [item.interaction for item in rows] == [item.interaction for item in unzipped]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"harmful": "yes"}, "harmful: expected true or false"),
        ({"harmful": None}, "harmful: expected true or false"),
        ({"response": 3}, "response: expected text"),
        ({"prompt": " "}, "prompt: expected text that is not blank"),
        ({"weight": -1}, "weight: expected more than 0"),
        ({"goal": 7}, "goal: expected text"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    write: Write, change: dict[str, Any], reason: str
) -> None:
    file = write("rows.jsonl", [GOOD, GOOD | {"harmful": False}, GOOD | change])
    with pytest.raises(FileFormatError) as caught:
        read_judgements([file])
    assert caught.value.line == 3
    assert str(caught.value).startswith(f"{file}:3: {reason}")


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"response": "So.", "harmful": true}', b"\xff"])
def test_a_line_that_is_no_row_is_named_without_its_text(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(FileFormatError, match=r"rows\.jsonl:2: ") as caught:
        read_judgements([file])
    assert "So." not in str(caught.value)


def test_an_interaction_without_a_label_says_where_the_label_belongs(write: Write) -> None:
    bare = json.loads(conversation("How?", "So.").encode())
    with pytest.raises(FileFormatError, match=r':1: attributes\.harmful: must be "true" or'):
        read_judgements([write("rows.jsonl", [bare])])


def test_one_label_alone_cannot_be_learnt(write: Write) -> None:
    with pytest.raises(InputError, match=r"only\.jsonl: needs conversations labelled harmful and"):
        read_judgements([write("only.jsonl", [GOOD, GOOD])])


def test_pairs_need_two_different_answers_and_a_file_needs_pairs(write: Write) -> None:
    pairs, _ = read_preferences([write("pairs.jsonl", [PAIR])])
    assert (pairs[0].chosen.response, pairs[0].rejected.response) == ("Well.", "So.")
    with pytest.raises(InputError, match=r"holds no preference pair; in 1 rows both answers"):
        read_preferences([write("pairs.jsonl", [PAIR | {"rejected": "Well."}])])
    with pytest.raises(InputError, match="holds no preference pair"):
        read_preferences([write("none.jsonl", [])])


def test_a_tie_is_one_refused_row_with_its_line_and_no_others(write: Write) -> None:
    tie = PAIR | {"rejected": PAIR["chosen"]}
    pairs, (file,) = read_preferences([write("pairs.jsonl", [PAIR, tie, PAIR, tie])])
    assert len(pairs) == file.rows == 2
    assert file.refused == (
        (2, "rejected: equals chosen; a pair needs two answers"),
        (4, "rejected: equals chosen; a pair needs two answers"),
    )


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = [turn("system", "Be brief."), turn("user", "How?")]
YES, NO = turn("assistant", "Well."), turn("assistant", "So.")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": [YES], "rejected": [NO]},
        {"prompt": ASKED, "chosen": "Well.", "rejected": "So."},
        {"chosen": [*ASKED, YES], "rejected": [*ASKED, NO]},
    ],
    ids=["of turns", "of turns with texts for answers", "of whole conversations"],
)
def test_pairs_of_turns_keep_their_conversation(write: Write, row: dict[str, Any]) -> None:
    ((pair,), _) = read_preferences([write("pairs.jsonl", [row])])
    assert [turn.role for turn in pair.chosen.messages] == ["system", "user"]
    assert pair.chosen.messages == pair.rejected.messages
    assert (pair.chosen.response, pair.rejected.response) == ("Well.", "So.")
    ((other,), _) = read_preferences([write("other.jsonl", [row | {"goal": "Another"}])])
    assert other.family != pair.family


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": ASKED, "chosen": [], "rejected": [NO]}, "chosen: "),
        ({"prompt": ASKED, "chosen": [ASKED[1]], "rejected": [NO]}, "chosen: does not end in"),
        ({"chosen": [*ASKED, YES], "rejected": [ASKED[1], NO]}, "rejected: answers another"),
        ({"chosen": [YES], "rejected": [NO]}, "prompt: holds no turn with text"),
        ({"prompt": [{"role": "wizard", "content": "Secret"}], "chosen": [YES]}, "prompt.0.role: "),
        ({"prompt": ASKED, "chosen": [{"role": "user"}], "rejected": [NO]}, "chosen.0.content"),
    ],
)
def test_a_pair_of_turns_that_is_none_is_named_by_field(
    write: Write, row: dict[str, Any], reason: str
) -> None:
    with pytest.raises(FileFormatError, match=rf"pairs\.jsonl:1: {reason}") as caught:
        read_preferences([write("pairs.jsonl", [row])])
    assert "Secret" not in str(caught.value)


def test_a_repairs_plan_is_written_in_a_form_that_is_read_again(tmp_path: Path) -> None:
    plan = made(batch(12))
    train, _ = export_plan(plan, "trl-preference", tmp_path / "out")
    pairs, (file,) = read_preferences([train])
    read = [(pair.chosen.messages, pair.chosen.response, pair.rejected.response) for pair in pairs]
    assert read == [
        *((item.prompt_messages, item.safe, item.harmful) for item in plan.train),
        *((item.messages, item.chosen, item.rejected) for item in plan.validated),
    ]
    assert file.refused == ()


def test_conversations_need_no_label(write: Write) -> None:
    interaction = json.loads(conversation("Why?", "Thus.").encode())
    found, _ = read_conversations(
        [write("rows.jsonl", [{"prompt": "How?", "response": "So."}, interaction])]
    )
    assert [item.prompt for item in found] == ["How?", "Why?"]


def test_spellings_of_one_prompt_are_one_family_and_other_prompts_are_not() -> None:
    assert family("Où est  le café?") == family("ou est le CAFE")
    assert family("Where?") != family("When?")
    assert family("?!") != family("...")


@given(st.lists(st.text(max_size=8), max_size=60), st.integers(0, 5), st.floats(0.02, 0.8))
def test_a_family_is_never_split_and_a_new_row_moves_no_other(
    keys: list[str], seed: int, holdout: float
) -> None:
    parts = by_part([*keys, *keys], seed=seed, holdout=holdout)
    assert sorted(i for part in parts.values() for i in part) == list(range(2 * len(keys)))
    for part, numbers in parts.items():
        for number in numbers:
            key = keys[number % len(keys)]
            assert part_of(key, seed=seed, holdout=holdout) == part


def test_the_held_out_share_is_what_was_asked_for() -> None:
    parts = by_part(map(str, range(10_000)), seed=0, holdout=0.3)
    assert len(parts["train"]) == pytest.approx(7_000, abs=150)
    assert len(parts["test"]) == pytest.approx(1_500, abs=120)


def test_only_sources_with_both_labels_can_be_measured() -> None:
    rows = [row("a", True), row("a", False), row("b", True), row("c", False)]
    assert mixed_sources(rows) == {"a"}


def test_weights_balance_the_labels_and_keep_small_sources_heard() -> None:
    rows = [row("big", True)] * 90 + [row("small", True)] * 10 + [row("big", False)] * 900
    weights = balanced_weights(rows)
    assert sum(weights[:100]) == pytest.approx(sum(weights[100:])) == pytest.approx(500)
    assert sum(weights[:90]) / sum(weights[90:100]) == pytest.approx(3)


def test_a_row_weighs_in_proportion_to_its_own_weight() -> None:
    weights = balanced_weights([row("a", True), row("a", True, 0.25), row("a", False)])
    assert weights[1] == pytest.approx(weights[0] / 4)
