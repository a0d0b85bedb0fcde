"""What an exported model says of conversations unlike those that it was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ares_stream.models.bundles import Bundle, Windows, load_bundle
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.model import Opinion, ScoringModel
from ares_stream.training.domain import MIN_REFERENCE, DomainRows
from ares_stream.training.examples import conversation
from ares_stream.training.inputs import texts
from tests.support.tiny_models import SAMPLE, checkpoint

pytestmark = pytest.mark.torch

WORDS = [word for text in texts(SAMPLE) for word in text.split() if word.isascii()]


def english(count: int, seed: int) -> list[Interaction]:
    """Conversations of the sample's words, in stretches as they stand there."""
    draw = np.random.default_rng(seed)
    rows: list[Interaction] = []
    for start in draw.integers(0, len(WORDS) - 40, count):
        rows.append(
            conversation(
                " ".join(WORDS[start : start + 8]), " ".join(WORDS[start + 8 : start + 40])
            )
        )
    return rows


def opinions(bundle: Bundle, rows: list[Interaction]) -> list[Opinion]:
    found = ScoringModel(bundle, "cpu").opinions([(item, item.response) for item in rows])
    assert all(isinstance(item, Opinion) for item in found), found
    return [item for item in found if isinstance(item, Opinion)]


def share_outside(bundle: Bundle, rows: list[Interaction]) -> float:
    signs = [item.domain for item in opinions(bundle, rows)]
    return sum(sign is not None and sign.outside for sign in signs) / len(signs)


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "Llama"])
def test_an_exported_judge_tells_other_text_from_text_like_its_training_rows(
    tmp_path: Path, name: str
) -> None:
    from ares_stream.training.export import export_bundle

    bundle = export_bundle(
        "harm",
        checkpoint(tmp_path / "model", name, num_labels=2),
        tmp_path / "judge",
        name="judge",
        max_length=96,
        windows=Windows(most=8),
        domain=DomainRows(english(300, 0), english(150, 1)),
    )
    domain = load_bundle(bundle.path).manifest.domain
    assert domain is not None
    assert domain.scripts == ("LATIN",)
    assert share_outside(bundle, english(200, 2)) <= 0.06
    draw = np.random.default_rng(3)
    noise = [
        conversation("What?", "".join(map(chr, draw.integers(33, 127, 160)))) for _ in range(20)
    ]
    russian = [conversation("Что это?", "Это обычный ответ на вопрос, не больше.")]
    assert share_outside(bundle, russian) == 1.0
    assert share_outside(bundle, noise) >= 0.4  # Random weights know no language.


def test_a_reward_model_gets_a_domain_of_its_reference_where_that_is_large_enough(
    tmp_path: Path,
) -> None:
    from ares_stream.training.export import export_bundle

    source = checkpoint(tmp_path / "model", "Llama", num_labels=1)
    for count, name in ((MIN_REFERENCE, "large"), (MIN_REFERENCE - 1, "small")):
        bundle = export_bundle(
            "reward", source, tmp_path / name, name=name, max_length=96, reference=english(count, 0)
        )
        assert (bundle.manifest.domain is not None) == (name == "large")
        (opinion,) = opinions(bundle, english(1, 5))
        assert (opinion.domain is not None) == (name == "large")
