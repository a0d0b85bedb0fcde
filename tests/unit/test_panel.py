"""A panel of judges and a reward model, with real sessions over tiny models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ares_stream.errors import BundleError, ScoringError
from ares_stream.models.bundles import Calibration, Lineage
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.contract import ScoringObserver
from ares_stream.scoring.panel import Panel, Scores, ScoringConfig, pool
from tests.support.word_models import CRASH, NAN, PAIR, as_draft, reference, says, word_bundle

TWO_THREADS = ScoringConfig(threads=2)


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


@pytest.fixture
async def panel(tmp_path: Path) -> AsyncIterator[Panel]:
    opened = Panel.open(
        [word_bundle(tmp_path, "judge")],
        word_bundle(tmp_path, "rm", "reward", {"good": -1.0, "bad": 1.0, "worse": float("inf")}),
        TWO_THREADS,
    )
    yield opened
    await opened.aclose()


async def scored(panel: Panel, *interactions: Interaction) -> list[Scores]:
    results = await panel.score(interactions)
    assert all(isinstance(item, Scores) for item in results), results
    return [item for item in results if isinstance(item, Scores)]


async def test_one_judge_gives_its_probability_and_no_disagreement(panel: Panel) -> None:
    (scores,) = await scored(panel, says("bad bad"))
    assert scores.harm.probability == pytest.approx(sigmoid(2))
    assert scores.harm.judges == {"judge": pytest.approx(sigmoid(2))}
    assert scores.harm.disagreement == 0
    assert scores.reward.score == pytest.approx(2)
    assert scores.reward.quantile == 1.0
    assert scores.releases == panel.releases


async def test_results_keep_their_order_whatever_is_batched_with_what(panel: Panel) -> None:
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 40, 200).tolist()
    together = await scored(panel, *(says("bad " * count) for count in counts))
    assert [item.reward.score for item in together] == pytest.approx(counts, abs=1e-5)
    for count, item in list(zip(counts, together, strict=True))[::40]:
        (alone,) = await scored(panel, says("bad " * count))
        assert alone.harm.probability == pytest.approx(item.harm.probability, abs=1e-6)


async def test_known_answers_get_rewards_of_their_own(panel: Panel) -> None:
    both, one, none = await scored(
        panel,
        says("dull", reference=reference("bad", "good")),
        says("dull", reference=reference(None, "good good")),
        says("dull"),
    )
    assert (both.reward.chosen, both.reward.rejected) == (1, -1)
    assert (one.reward.chosen, one.reward.rejected) == (None, -2)
    assert (none.reward.chosen, none.reward.rejected) == (None, None)


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (NAN, "model judge gave nan"),
        ("worse", "model rm gave"),
        (CRASH, "ONNX Runtime failed"),
        ("\udc00", "no tokens"),
    ],
)
async def test_one_poisoned_conversation_leaves_its_neighbours_alone(
    panel: Panel, poison: str, reason: str
) -> None:
    window = [says("bad good"), says(f"{poison} bad"), says("good good"), says("dull bad")]
    results = await panel.score(window)
    assert isinstance(results[1], ScoringError)
    assert reason in str(results[1])
    rewards = [item.reward.score for item in results if isinstance(item, Scores)]
    assert rewards == [0, -2, 1]


async def test_a_known_answer_that_fails_fails_its_conversation(panel: Panel) -> None:
    bad, good = await panel.score([says("dull", reference=reference(CRASH, None)), says("bad")])
    assert isinstance(bad, ScoringError)
    assert isinstance(good, Scores)


async def test_nothing_in_is_nothing_out(panel: Panel) -> None:
    assert await panel.score([]) == []


async def test_two_judges_are_pooled_and_their_disagreement_told(tmp_path: Path) -> None:
    panel = Panel.open(
        [
            word_bundle(tmp_path, "sure", weights={"bad": 3.0}),
            word_bundle(tmp_path, "unsure", calibration=Calibration(slope=0.5, intercept=-1)),
        ],
        word_bundle(tmp_path, "rm", "reward"),
    )
    (scores,) = await scored(panel, says("bad"))
    await panel.aclose()
    assert scores.harm.judges == {
        "sure": pytest.approx(sigmoid(3)),
        "unsure": pytest.approx(sigmoid(-0.5)),
    }
    assert scores.harm.probability == pytest.approx(sigmoid((3 - 0.5) / 2))
    assert scores.harm.disagreement == pytest.approx(sigmoid(3) - sigmoid(-0.5))


@pytest.mark.parametrize(
    ("given", "pooled"), [([0.2], 0.2), ([0.2, 0.8], 0.5), ([0.5, 0.9, 0.9], 0.8123), ([0, 1], 0.5)]
)
def test_the_pool_is_the_mean_logit(given: Sequence[float], pooled: float) -> None:
    assert pool(given) == pytest.approx(pooled, abs=1e-4)


async def test_a_swap_shows_between_windows_and_never_inside_one(
    panel: Panel, tmp_path: Path
) -> None:
    before = dict(panel.releases)
    fresh = word_bundle(tmp_path, "rm@2", "reward", {"bad": 10.0})
    running, _ = await asyncio.gather(
        scored(panel, *(says("bad " * 30) for _ in range(500))), panel.swap(fresh)
    )
    for item in running:
        assert item.releases == before
        assert item.reward.score == pytest.approx(30)
    (after,) = await scored(panel, says("bad"))
    assert after.reward.score == pytest.approx(10)
    assert after.releases == {**before, "rm": fresh.digest}


async def test_a_bundle_that_cannot_replace_one_changes_nothing(
    panel: Panel, tmp_path: Path
) -> None:
    before = dict(panel.releases)
    for bundle, reason in (
        (word_bundle(tmp_path, "stranger"), "no judge named stranger; there are judge"),
        (word_bundle(tmp_path, "judge@rm", "reward"), "no reward model named judge"),
        (word_bundle(tmp_path, "rm@none", "reward", reference=None), "`ares bundle reference`"),
        (word_bundle(tmp_path, "rm@nan", "reward", {"[CLS]": float("nan")}), "first score failed"),
    ):
        with pytest.raises(BundleError, match=reason):
            await panel.swap(bundle)
    assert panel.releases == before


async def test_warming_up_fails_where_the_models_do(tmp_path: Path) -> None:
    panel = Panel.open(
        [word_bundle(tmp_path, "judge", weights={"[CLS]": float("nan")})],
        word_bundle(tmp_path, "rm", "reward"),
    )
    with pytest.raises(ScoringError, match="gave nan"):
        await panel.warm_up()
    await panel.aclose()


def test_a_panel_needs_a_judge_and_names_of_their_own(tmp_path: Path) -> None:
    judge, reward = word_bundle(tmp_path, "judge"), word_bundle(tmp_path, "rm", "reward")
    with pytest.raises(BundleError, match="no judge"):
        Panel.open([], reward)
    with pytest.raises(BundleError, match="one name"):
        Panel.open([judge, judge], reward)


async def test_an_observer_hears_of_every_stage_and_every_input(tmp_path: Path) -> None:
    class Heard(ScoringObserver):
        def __init__(self) -> None:
            self.stages: dict[str, float] = {}
            self.records: dict[str, int] = {}

        def stage(self, name: str, seconds: float) -> None:
            self.stages[name] = self.stages.get(name, 0) + seconds

        def batch(self, model: str, records: int, padding: float) -> None:
            assert 0 <= padding < 1
            self.records[model] = self.records.get(model, 0) + records

    heard = Heard()
    lineage = Lineage(base="b")
    panel = Panel.open(
        [word_bundle(tmp_path, "judge", lineage=lineage)],
        word_bundle(tmp_path, "rm", "reward"),
        TWO_THREADS,
        heard,
    )
    await scored(panel, *(says("bad " * (1 + count % 30)) for count in range(60)))
    await panel.aclose()
    assert heard.records == {"judge": 60, "rm": 60}
    assert set(heard.stages) == {"tokenise", "queue", "infer"}
    assert all(seconds >= 0 for seconds in heard.stages.values())


async def test_a_record_at_the_size_limit_ends_in_scores(tmp_path: Path) -> None:
    template = PAIR.model_copy(update={"max_length": 8192})
    panel = Panel.open(
        [word_bundle(tmp_path, "judge", template=template)],
        word_bundle(tmp_path, "rm", "reward", template=template),
    )
    long = says("bad " * 130_000, prompt="dull " * 100_000)
    first, between, last = await scored(panel, says("good"), long, says("bad"))
    await panel.aclose()
    assert (first.reward.score, last.reward.score) == (-1.0, 1.0)
    assert between.reward.score == 8192 - 3 - 16


async def test_the_number_type_is_that_of_each_models_session(tmp_path: Path) -> None:
    import onnx

    judge, reward = word_bundle(tmp_path, "judge"), word_bundle(tmp_path, "reward", "reward")
    model = onnx.load(judge.model)
    model.graph.node[-1].output[0] = "wide_logits"
    half = onnx.TensorProto.FLOAT16
    model.graph.node.append(onnx.helper.make_node("Cast", ["wide_logits"], ["logits"], to=half))
    model.graph.output[0].type.tensor_type.elem_type = half
    onnx.save(model, judge.model)
    panel = Panel.open([as_draft(judge)], reward, ScoringConfig(threads=1))
    assert panel.dtypes == {"judge": "float16", "reward": "float32"}
    await panel.warm_up()
    await panel.aclose()
