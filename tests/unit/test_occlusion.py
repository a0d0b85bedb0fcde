"""Explanations find words that carry a score alone, together, or in each other's place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ares_stream.errors import ScoringError
from ares_stream.models.bundles import Bundle
from ares_stream.records.interaction import Interaction, Message
from ares_stream.scoring.model import Opinion, ScoringModel
from ares_stream.scoring.occlusion import BEAM, EDITS, PAIRED, WORDS, explain
from tests.support.word_models import as_draft, says, word_bundle


def reward(folder: Path, weights: dict[str, float], at_most: float | None = None) -> ScoringModel:
    """The sum of the words' weights; with `at_most` no more than that."""
    bundle = word_bundle(folder, "rm", "reward", weights)
    if at_most is not None:
        capped(bundle, at_most)
    return ScoringModel(as_draft(bundle), "cpu")


def capped(bundle: Bundle, at_most: float) -> None:
    model = onnx.load(bundle.model)
    model.graph.node[-1].output[0] = "sum"
    model.graph.initializer.append(numpy_helper.from_array(np.array([at_most], np.float32), "most"))
    model.graph.node.append(helper.make_node("Min", ["sum", "most"], ["logits"]))
    onnx.save(model, bundle.model)


def asked(prompt: str, answer: str) -> Interaction:
    return says(answer).model_copy(update={"messages": (Message(role="user", content=prompt),)})


def test_a_word_that_is_written_twice_is_left_out_everywhere(tmp_path: Path) -> None:
    model = reward(tmp_path, {"bad": 2.0, "dull": 0.5})
    found = explain(model, asked("bad dull", "bad good"), 2.0)
    assert [word.text for word in found.edit] == ["bad"]
    assert [span.text for span in found.edit[0].spans] == ["bad", "bad"]
    assert found.edit[0].place == "prompt and answer"
    assert found.scores == (4.5, 0.5)
    assert [(weight.word.text, weight.loss) for weight in found.words] == [
        ("bad", 4.0), ("dull", 0.5), ("good", 0.0),
    ]  # fmt: skip


def test_words_that_stand_in_for_each_other_are_found_together(tmp_path: Path) -> None:
    model = reward(tmp_path, {"bad": 1.0, "dull": 1.0}, at_most=1.0)
    found = explain(model, asked("bad good", "dull good"), 0.5)
    assert {word.text for word in found.edit} == {"bad", "dull"}
    assert all(weight.loss == 0.0 for weight in found.words)
    assert found.scores == (1.0, 1.0, 0.0)


def test_what_no_few_words_carry_has_no_edit_and_shows_the_lowest_set(tmp_path: Path) -> None:
    model = reward(tmp_path, {"bad": 1.0})
    found = explain(model, asked("bad good", "dull"), -1.0)
    assert (found.edit, [word.text for word in found.tried]) == ((), ["bad"])
    assert found.scores == (1.0, 0.0)
    below = explain(model, asked("good", "dull"), 1.0)
    assert (below.edit, below.tried, below.scores) == ((), (), (0.0,))


def test_a_long_conversation_costs_a_bounded_number_of_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reward(tmp_path, {"bad": 1.0})
    runs = 0
    opinions = model.opinions

    def counted(inputs: Sequence[tuple[Interaction, str]]) -> list[Opinion | ScoringError]:
        nonlocal runs
        runs += len(inputs)
        return opinions(inputs)

    monkeypatch.setattr(model, "opinions", counted)
    text = " ".join(f"word{number}" for number in range(WORDS + 40))
    explain(model, asked(f"bad {text}", text), -1.0)
    most = WORDS + PAIRED * (PAIRED - 1) // 2 + (EDITS - 2) * BEAM * PAIRED
    # Each call scores the whole conversation once more.
    assert WORDS < runs <= most + 3 * EDITS
