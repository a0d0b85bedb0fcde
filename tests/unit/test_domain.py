"""Whether a conversation is like those that a model was trained on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.errors import BundleError, InputError, IntegrityError
from ares_stream.models.bundles import Bundle, InputTemplate, Windows, load_bundle
from ares_stream.records.interaction import Interaction
from ares_stream.records.verdict import FailureClass
from ares_stream.scoring.domain import Space, limit_of, scripts_of, unseen_share
from ares_stream.scoring.panel import Panel, Scores
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.training.domain import DomainRows
from tests.support.word_models import says, word_bundle

SINGLE = InputTemplate(first="{{ response }}", max_length=64, windows=Windows(most=6))


def usual(count: int, seed: int = 0) -> list[Interaction]:
    """Conversations of mostly good, some bad and dull words."""
    draw = random.Random(seed)
    return [
        says(" ".join(draw.choices(("good", "bad", "dull"), (6, 1, 2), k=draw.randint(15, 55))))
        for _ in range(count)
    ]


ROWS = DomainRows(usual(300), usual(150, seed=1))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return word_bundle(tmp_path_factory.mktemp("judge"), "judge", template=SINGLE, like=ROWS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return word_bundle(tmp_path_factory.mktemp("plain"), "plain", template=SINGLE)


@pytest.fixture(scope="module")
def reward(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return word_bundle(
        tmp_path_factory.mktemp("reward"), "reward", "reward", template=SINGLE, like=ROWS
    )


def scored(judges: list[Bundle], reward: Bundle, rows: list[Interaction]) -> list[Scores]:
    async def run() -> list[Scores]:
        panel = Panel.open(judges, reward)
        try:
            found = await panel.score(rows)
        finally:
            await panel.aclose()
        assert all(isinstance(item, Scores) for item in found), found
        return [item for item in found if isinstance(item, Scores)]

    return asyncio.run(run())


def outside(found: Scores) -> bool:
    assert found.harm.domain is not None
    return found.harm.domain.outside


def test_new_conversations_like_the_training_rows_are_outside_as_seldom_as_stated(
    judge: Bundle, reward: Bundle
) -> None:
    found = scored([judge], reward, usual(400, seed=2))
    assert judge.manifest.domain is not None
    assert judge.manifest.domain.share == 0.01
    # Four are expected of 400; twelve would be a chance of less than one in a thousand.
    assert sum(map(outside, found)) < 12
    assert sum(bool(item.reward.outlier) for item in found) < 12


@pytest.mark.parametrize(
    "answer",
    ["bad " * 20, "good " * 20 + "plugh xyzzy plover " * 4, "good " * 20 + "хорошо " * 4],
    ids=["other words", "unknown words", "another script"],
)
def test_a_conversation_unlike_the_training_rows_is_outside(
    judge: Bundle, reward: Bundle, answer: str
) -> None:
    (found,) = scored([judge], reward, [says(answer.strip())])
    assert outside(found)
    assert found.reward.outlier is True


def test_of_windows_the_farthest_counts(judge: Bundle, reward: Bundle) -> None:
    calm = usual(1)[0].response
    quiet, loud = scored(
        [judge], reward, [says(calm), says(f"{calm} {calm} {calm} " + "bad " * 60)]
    )
    assert loud.harm.coverage is not None
    assert quiet.harm.domain is not None
    assert loud.harm.domain is not None
    assert loud.harm.domain.quantile > quiet.harm.domain.quantile
    assert outside(loud)


def test_of_judges_the_one_that_it_lies_farthest_from_counts(
    judge: Bundle, reward: Bundle, tmp_path: Path
) -> None:
    other = word_bundle(
        tmp_path,
        "other",
        template=SINGLE,
        like=DomainRows([says("bad " * (15 + n % 9)) for n in range(60)], [says("bad " * 19)] * 30),
    )
    usual_of_other = says("bad " * 19)
    (alone,) = scored([other], reward, [usual_of_other])
    (both,) = scored([judge, other], reward, [usual_of_other])
    assert not outside(alone)
    assert outside(both)


def test_a_bundle_without_a_domain_says_nothing_and_its_model_is_asked_for_nothing(
    plain: Bundle, judge: Bundle, reward: Bundle
) -> None:
    (found,) = scored([plain], reward, [says("bad")])
    assert found.harm.domain is None
    assert b"domain" not in (plain.path / "bundle.json").read_bytes()
    assert OnnxModel(plain, "cpu")._outputs == ["logits"]
    (mixed,) = scored([plain, judge], reward, [says("bad " * 20)])
    assert outside(mixed)


def test_outside_is_contested_only_where_the_policy_asks(judge: Bundle, reward: Bundle) -> None:
    (found,) = scored([judge], reward, [says("bad " * 20)])
    (inside,) = scored([judge], reward, usual(1, seed=3))
    asked = DetectionPolicy(contest_outside=True)
    assert decide(found.harm, found.reward, DetectionPolicy()).failure_class is not (
        FailureClass.CONTESTED
    )
    decision = decide(found.harm, found.reward, asked)
    assert decision.failure_class is FailureClass.CONTESTED
    assert "outside_training_domain" in decision.reasons
    assert "outside_training_domain" not in decide(inside.harm, inside.reward, asked).reasons
    assert DetectionPolicy(contest_outside=False).digest == DetectionPolicy().digest
    assert asked.digest != DetectionPolicy().digest


def test_scores_are_the_same_with_and_without_a_domain(
    judge: Bundle, plain: Bundle, reward: Bundle
) -> None:
    rows = usual(20, seed=4)
    with_domain, without = (scored([item], reward, rows) for item in (judge, plain))
    assert [item.harm.probability for item in with_domain] == [
        item.harm.probability for item in without
    ]


@pytest.mark.parametrize("damage", ["missing", "changed", "unnamed"])
def test_a_domain_that_is_not_the_bundles_own_is_refused(
    judge: Bundle, plain: Bundle, tmp_path: Path, damage: str
) -> None:
    source = plain if damage == "unnamed" else judge
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in source.path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if damage == "missing":
        (folder / "domain.npz").unlink()
    else:
        (folder / "domain.npz").write_bytes(b"PK and something else")
    with pytest.raises(IntegrityError, match=r"domain\.npz"):
        load_bundle(folder)


def test_arrays_that_do_not_fit_are_one_error(judge: Bundle) -> None:
    space = Space.read(judge)
    with pytest.raises(BundleError, match="directions"):
        space.distances(np.zeros((2, len(space.mean) + 1), np.float32))


def test_pickled_arrays_are_refused(tmp_path: Path, judge: Bundle) -> None:
    np.savez(tmp_path / "domain.npz", mean=np.array([{}], dtype=object), whitening=np.eye(1))
    with pytest.raises(BundleError, match="is no domain"):
        Space.read(Bundle(tmp_path, judge.manifest, ""))


def test_too_few_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="some hundreds are better"):
        word_bundle(tmp_path, "judge", like=DomainRows(usual(100), usual(3)))


@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 12))
def test_distances_are_finite_with_fewer_rows_than_directions_and_do_not_depend_on_the_scale(
    seed: int, rows: int, hidden: int
) -> None:
    draw = np.random.default_rng(seed)
    states = draw.normal(size=(rows, hidden)).astype(np.float32)
    states[:, 0] = 1.0  # A direction that never varies.
    scale = np.float32(64.0)
    one, two = Space.of(states), Space.of(states * scale)
    found = one.distances(states)
    assert np.isfinite(found).all()
    assert np.allclose(found, two.distances(states * scale), rtol=0.02, atol=0.02)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([0.01, 0.05, 0.2]))
def test_at_most_the_stated_share_lies_beyond_the_limit(found: list[float], share: float) -> None:
    limit = limit_of(found, share)
    assert sum(item > limit for item in found) <= share * len(found)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("plain words, 123", 0.0),
        ("naïve café – Ærø", 0.0),
        ("ｆｕｌｌｗｉｄｔｈ", 0.0),
        ("привет", 1.0),
        ("a Б", 0.5),
        ("你好", 1.0),
        ("こんにちは", 1.0),
        ("مرحبا", 1.0),
        ("😀 ... 42", 0.0),
        ("", 0.0),
    ],
)
def test_the_share_of_letters_in_unseen_scripts(text: str, share: float) -> None:
    assert unseen_share(text, ("LATIN",)) == share


def test_a_script_that_training_rows_are_written_in_is_known() -> None:
    known = scripts_of(["слова и words", "more words"])
    assert known == ("CYRILLIC", "LATIN")
    assert unseen_share("слова", known) == 0.0
