"""ONNX Runtime behind one call: shapes checked, failures named, no provider by accident."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.errors import BundleError, ProviderError, ResourceError, ScoringError
from ares_stream.models.bundles import Bundle, Calibration, Outputs, RewardReference
from ares_stream.scoring.model import ScoringModel, calibrate, logit, quantile, read_outputs
from ares_stream.scoring.runtime import OnnxModel
from ares_stream.scoring.tokenising import Tokens
from tests.support.word_models import CRASH, WORDS, word_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return word_bundle(tmp_path_factory.mktemp("runtime"), "judge")


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> OnnxModel:
    return OnnxModel(bundle, "cpu")


def tokens(*words: str) -> Tokens:
    ids = np.array([WORDS.index(word) for word in words], dtype=np.int64)
    return Tokens(ids, np.zeros_like(ids))


@given(st.lists(st.lists(st.sampled_from(WORDS[:7]), min_size=1, max_size=30), min_size=1))
def test_a_batch_scores_as_its_inputs_alone(model: OnnxModel, texts: list[list[str]]) -> None:
    batch = [tokens(*text) for text in texts]
    alone = np.concatenate([model.run([item]) for item in batch])
    np.testing.assert_allclose(model.run(batch), alone, atol=1e-5)


def test_a_failing_run_is_a_scoring_error(model: OnnxModel) -> None:
    with pytest.raises(ScoringError, match="ONNX Runtime failed"):
        model.run([tokens("good"), tokens(CRASH)])


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from ares_stream.errors import ResourceError
from ares_stream.scoring.model import ScoringModel
from tests.support.word_models import WEIGHTS, WORDS, as_draft, word_bundle, word_model
from tests.unit.test_runtime import tokens

folder, labels, rows, mebibytes = Path(sys.argv[1]), *map(int, sys.argv[2:])
bundle = word_bundle(folder, "judge")
# It takes 4 bytes a token and label, twice.
bundle.model.write_bytes(word_model(WEIGHTS, labels))
model = ScoringModel(as_draft(bundle), "cpu")
batch = [tokens(*["good"] * 60)] * rows
pages = int(Path("/proc/self/statm").read_text().split()[0])
limits = resource.getrlimit(resource.RLIMIT_AS)
limit = pages * resource.getpagesize() + (mebibytes << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limits[1]))
try:
    model._onnx.run(batch)
except ResourceError as error:
    print(error)
if rows > 1:
    results = model.run(batch)
resource.setrlimit(resource.RLIMIT_AS, limits)
if rows == 1:
    results = model.run(batch)
print(len(model.outputs(results)))
"""


def short_of_memory(folder: Path, labels: int, rows: int, mebibytes: int) -> list[str]:
    """What a process of its own prints: threads of this one take addresses, too."""
    numbers = map(str, (labels, rows, mebibytes))
    done = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(folder), *numbers],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_a_batch_that_memory_does_not_hold_is_halved_until_it_does(tmp_path: Path) -> None:
    said, results = short_of_memory(tmp_path, 80_000, 128, 1200)
    assert "no memory left for 7,680 tokens" in said
    assert results == "128"


def test_one_input_that_memory_does_not_hold_is_no_fault_of_the_input(tmp_path: Path) -> None:
    said, results = short_of_memory(tmp_path, 500_000, 1, 100)
    assert "no memory left for 60 tokens" in said
    assert results == "1"


def test_a_runtime_that_fails_on_what_it_answered_before_blames_no_input(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ScoringModel(bundle, "cpu")
    broken = [tokens(CRASH)]
    assert isinstance(model.run(broken)[0], ScoringError)
    model.run([tokens("good")])
    assert isinstance(model.run(broken)[0], ScoringError)

    class Session:
        """As after an error of a GPU: no run of the process succeeds any more."""

        def run(self, *_: Any) -> Any:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")

    monkeypatch.setattr(model._onnx, "_session", Session())
    with pytest.raises(ResourceError, match="judge gives no answer any more on CPUExecution"):
        model.run(broken)


def test_the_provider_asked_for_is_the_one_in_use(bundle: Bundle, model: OnnxModel) -> None:
    import onnxruntime

    assert model.provider == "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ProviderError, match="no CUDAExecutionProvider"):
            OnnxModel(bundle, "cuda")


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    bundle = word_bundle(tmp_path, "judge")
    bundle.model.write_bytes(b"not a model")
    with pytest.raises(BundleError, match=r"model\.onnx: cannot be loaded"):
        OnnxModel(bundle, "cpu")


def test_a_model_of_other_inputs_is_refused(tmp_path: Path) -> None:
    import onnx

    bundle = word_bundle(tmp_path, "judge")
    model = onnx.load(bundle.model)
    model.graph.input[0].name = model.graph.node[0].input[1] = "pixels"
    onnx.save(model, bundle.model)
    with pytest.raises(BundleError, match="takes attention_mask, pixels"):
        OnnxModel(bundle, "cpu")


def test_the_labels_probabilities_are_added_or_the_largest_is_taken() -> None:
    logits = np.log(np.array([[1, 2, 5], [6, 1, 1]], np.float32))
    softmax = read_outputs(logits, Outputs(activation="softmax", labels=(1, 2)))
    assert softmax.tolist() == pytest.approx([7 / 8, 2 / 8])
    sigmoid = read_outputs(logits, Outputs(activation="sigmoid", labels=(0, 1)))
    assert sigmoid.tolist() == pytest.approx([2 / 3, 6 / 7])
    identity = read_outputs(logits, Outputs(activation="identity", labels=(2,)))
    assert identity.tolist() == pytest.approx(np.log([5, 1]).tolist())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_a_row_with_a_value_that_is_no_number_gives_none(activation: str) -> None:
    logits = np.array([[0, np.nan], [np.inf, 0], [0, -np.inf], [0, 0]], np.float32)
    outputs = Outputs.model_validate({"activation": activation, "labels": (0,)})
    assert np.isfinite(read_outputs(logits, outputs)).tolist() == [False, False, False, True]


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e30, -1e30], [-1e30, 1e30]], np.float32)
    for activation in ("softmax", "sigmoid"):
        outputs = Outputs.model_validate({"activation": activation, "labels": (0,)})
        assert read_outputs(logits, outputs).tolist() == pytest.approx([1.0, 0.0])


def test_a_label_the_model_does_not_have_is_named() -> None:
    outputs = Outputs(activation="softmax", labels=(2,))
    with pytest.raises(ScoringError, match="has 2 labels; its bundle reads label 2"):
        read_outputs(np.zeros((1, 2), np.float32), outputs)


@given(st.floats(0, 1), st.floats(0.01, 20), st.floats(-20, 20))
def test_calibrated_probabilities_stay_probabilities_in_order(
    p: float, slope: float, intercept: float
) -> None:
    low, high = calibrate(
        np.array([p * 0.9, p]), Calibration(slope=slope, intercept=intercept)
    ).tolist()
    assert 0 <= low <= high <= 1


@given(st.floats(1e-5, 1 - 1e-5))
def test_calibration_by_nothing_changes_nothing(p: float) -> None:
    assert float(calibrate(np.array([p]), Calibration())[0]) == pytest.approx(p, abs=1e-9)


def test_certainty_has_a_finite_logit() -> None:
    assert np.isfinite(logit(np.array([0.0, 1.0]))).all()


def test_the_quantile_counts_reference_scores_at_or_below() -> None:
    table = RewardReference(version="c" * 64, count=4, scores=(-1.0, 0.0, 0.0, 2.0))
    places = [quantile(score, table) for score in (-2, -1, 0, 1, 2, 3)]
    assert places == [0.0, 0.25, 0.75, 0.75, 1.0, 1.0]
