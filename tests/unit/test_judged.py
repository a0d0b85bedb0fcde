"""What `ares scan` says of its rate: both ends of the doubt, labels, clusters, the reference."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.errors import FileFormatError
from ares_stream.files import open_lines
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.mapping import Mapping
from ares_stream.reporting.judged import read_labels
from ares_stream.reporting.page import render
from ares_stream.reporting.scan import Reference, ScanResult, Source, scan
from tests.unit.test_scan import ReadingScorer

MAPPING = Mapping.model_validate(
    {
        "id": "id",
        "prompt": "q",
        "response": "a",
        "policy": {"name": "'p'", "version": "'1'"},
        "attributes": {"goal": "goal"},
    }
)
FLAGGED, DOUBTED, MISSED, DISLIKED = (
    "harm=0.9 reward=0.9",
    "harm=0.5 reward=0.9",
    "harm=0.1 reward=0.9",
    "harm=0.9 reward=0.1",
)


def rows(answers: list[str], goals: int = 1_000_000) -> list[dict[str, Any]]:
    return [
        {"id": f"row-{number}", "q": f"prompt {number}", "a": answer, "goal": f"g{number % goals}"}
        for number, answer in enumerate(answers)
    ]


async def scanned(
    content: list[dict[str, Any]],
    path: Path,
    labels: dict[str, bool] | None = None,
    cluster: str | None = None,
    reference: Reference | None = None,
) -> ScanResult:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))  # noqa: ASYNC240
    with open_lines(path) as lines:
        survey = lines.survey()
        return await scan(
            lines,
            Source("file", survey.digest, survey.lines, 1_767_225_600_000),
            ReadingScorer(),
            policy=DetectionPolicy(),
            limits=DecodingLimits(),
            mapping=MAPPING,
            labels=labels,
            cluster=cluster,
            reference=reference,
            on_verdict=lambda verdict: None,
            on_bad=lambda bad: None,
            on_progress=lambda line: None,
        )


async def test_contested_answers_are_shown_as_harmless_and_as_harmful(tmp_path: Path) -> None:
    result = await scanned(rows([FLAGGED] * 10 + [DOUBTED] * 30 + [MISSED] * 60), tmp_path / "in")
    summary = result.summary()
    assert summary["coupled_failure_rate"]["value"] == 0.1
    assert summary["contested_as_harmful"]["value"] == 0.4
    assert summary["corrected"] is False
    assert summary["corrected_reason"] == "no labels were given"
    assert summary["corrected_rate"] is None


async def test_labels_correct_what_the_judge_misses(tmp_path: Path) -> None:
    """A judge that misses 20 of 50 harmful liked answers, doubts 10 and flags 20."""
    answers = [FLAGGED] * 20 + [DOUBTED] * 10 + [MISSED] * 170
    harmful = [True] * 50 + [False] * 150
    sample = random.Random(3).sample(range(200), 120)
    labels = {f"row-{number}": harmful[number] for number in sample}
    summary = (await scanned(rows(answers), tmp_path / "in", labels)).summary()
    assert summary["coupled_failure_rate"]["value"] == 0.1
    assert summary["corrected"] is True
    assert summary["corrected_rate"]["low"] < 0.25 < summary["corrected_rate"]["high"]
    assert 0.2 < summary["judge"]["liked"]["sensitivity"]["value"] < 0.6
    assert summary["judge"]["disliked"]["sensitivity"] is None
    assert summary["labels"] == {"used": 120, "prompts_liked": 120, "unmatched": 0}


async def test_labels_of_few_prompts_do_not_correct(tmp_path: Path) -> None:
    content = [row | {"q": f"prompt {n % 10}"} for n, row in enumerate(rows([FLAGGED] * 200))]
    labels = {f"row-{number}": True for number in range(100)}
    summary = (await scanned(content, tmp_path / "in", labels)).summary()
    assert summary["corrected"] is False
    assert summary["corrected_reason"].startswith("labels of 10 prompts")
    for item in summary["rates"]:
        assert item["figures"]["correction"]["corrected"] is False
        assert item["figures"]["correction"]["rate"] is None


async def test_labels_correct_each_slice_as_the_monitor_does(tmp_path: Path) -> None:
    """Half of the rows are of goal g0, where the judge misses nothing; of g1 it misses a third."""
    answers = [FLAGGED if n % 4 < 2 else MISSED for n in range(800)]
    content = rows(answers, goals=2)
    labels = {
        f"row-{n}": answers[n] == FLAGGED or (n % 2 == 1 and n % 3 == 0) for n in range(0, 800, 3)
    }
    found = {
        item["slice"]["value"]: item["figures"]["correction"]
        for item in (await scanned(content, tmp_path / "in", labels)).summary()["rates"]
    }
    assert found[""]["labels"] == len(labels)
    assert found["g0"]["labels"] + found["g1"]["labels"] == len(labels)
    assert found["g0"]["rate"]["value"] == pytest.approx(0.5)
    assert found["g1"]["rate"]["value"] == pytest.approx(1.0)


async def test_labels_that_belong_to_no_line_are_counted(tmp_path: Path) -> None:
    result = await scanned(rows([FLAGGED] * 5), tmp_path / "in", {"row-0": True, "elsewhere": True})
    assert result.summary()["labels"]["unmatched"] == 1


async def test_rows_of_one_goal_widen_the_interval(tmp_path: Path) -> None:
    answers = ([FLAGGED] + [MISSED] * 9) * 30
    content = rows(answers, goals=10)
    alone = (await scanned(content, tmp_path / "in")).summary()
    clustered = (await scanned(content, tmp_path / "in", cluster="goal")).summary()
    prompts = (await scanned(content, tmp_path / "in", cluster="prompt")).summary()

    def width(summary: dict[str, Any]) -> float:
        rate = summary["coupled_failure_rate"]
        return float(rate["high"] - rate["low"])

    assert clustered["cluster"] == {"field": "goal", "clusters": 10}
    assert width(clustered) > 3 * width(alone)
    assert width(prompts) == pytest.approx(width(alone), rel=0.05)


async def test_the_page_says_the_same_as_the_summary(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    content = rows([FLAGGED] * 10 + [DOUBTED] * 30 + [DISLIKED] * 20 + [MISSED] * 40)
    result = await scanned(content, tmp_path / "in", reference=Reference(50, "a" * 64))
    page = render(result.report(), datetime(2026, 1, 1, tzinfo=UTC))
    # The chart's corner holds the tile's figure: contested answers are in no corner.
    assert "harmful, liked 10.0 %" in page
    assert "harmful, disliked 20.0 %" in page
    assert "safe, liked 40.0 %" in page
    assert "40.0 %" in page
    assert "no labels were given" in page
    assert "50 reference answers of the bundle (set aaaaaaaaaaaa)" in page
    assert "50 are few (below 200)" in page
    assert "benign answers" not in page


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "interaction_id: a text is needed"),
        (b'{"harmful": true}', "interaction_id: a text is needed"),
        (b'{"interaction_id": "x", "harmful": "yes"}', "harmful: true or false is needed"),
        (b'{"interaction_id": "a", "harmful": false}', "interaction_id: labelled both ways"),
    ],
)
def test_a_line_of_labels_that_cannot_be_used_is_named(line: bytes, reason: str) -> None:
    with pytest.raises(FileFormatError, match=f"labels:2: {reason}"):
        read_labels([(1, b'{"interaction_id": "a", "harmful": true}'), (2, line)], "labels")
