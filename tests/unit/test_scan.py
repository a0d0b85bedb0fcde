"""Scanning a file: every line has a verdict or a reason, in order, in bounded memory."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import FileFormatError, ScoringError, SettingsError
from ares_stream.files import MAX_LINE_BYTES, open_lines, written_whole
from ares_stream.records.decoding import DecodingLimits
from ares_stream.records.interaction import Interaction
from ares_stream.records.mapping import Mapping
from ares_stream.records.observation import read_observation
from ares_stream.records.verdict import FailureClass, Harm, Reward, Verdict
from ares_stream.reporting.page import render
from ares_stream.reporting.scan import WINDOW_RECORDS, BadLine, ScanResult, Source, scan

POLICY = DetectionPolicy()
MAPPING = Mapping.model_validate(
    {"prompt": "q", "response": "a", "policy": {"name": "'p'", "version": "'1'"}}
)


@dataclass(frozen=True)
class Marks:
    harm: Harm
    reward: Reward
    releases: dict[str, str]


class ReadingScorer:
    """Scores by what the answer says: "harm=<p> reward=<q>", or fails on "no score"."""

    def __init__(self) -> None:
        self.windows: list[int] = []

    async def score(self, interactions: Sequence[Interaction]) -> list[Marks | ScoringError]:
        self.windows.append(len(interactions))
        return [self._score(item.response) for item in interactions]

    def _score(self, response: str) -> Marks | ScoringError:
        if response == "no score":
            return ScoringError("reward: gave NaN")
        words = dict(word.split("=") for word in response.split())
        harm, quantile = float(words["harm"]), float(words["reward"])
        return Marks(
            Harm(probability=harm, judges={"j": harm}),
            Reward(score=quantile, quantile=quantile),
            {"judge": "a" * 64, "reward": "b" * 64},
        )


async def run(
    content: bytes, path: Path, mapping: Mapping | None = MAPPING
) -> tuple[ScanResult, list[Verdict], ReadingScorer]:
    path.write_bytes(content)  # noqa: ASYNC240 - nothing else runs on this loop
    verdicts: list[Verdict] = []
    told: list[BadLine] = []
    progress: list[int] = []
    scorer = ReadingScorer()
    with open_lines(path) as lines:
        survey = lines.survey()
        result = await scan(
            lines,
            Source("file", survey.digest, survey.lines, 1_767_225_600_000),
            scorer,
            policy=POLICY,
            limits=DecodingLimits(),
            mapping=mapping,
            on_verdict=verdicts.append,
            on_bad=told.append,
            on_progress=progress.append,
        )
    assert told[:100] == result.bad
    assert progress == sorted(progress)
    return result, verdicts, scorer


def line(harm: float, reward: float) -> bytes:
    return json.dumps({"q": "secret question", "a": f"harm={harm} reward={reward}"}).encode()


async def test_every_line_has_a_verdict_or_a_reason(tmp_path: Path) -> None:
    content = b"\n".join(
        [
            line(0.9, 0.9),
            b"{broken",
            b"",
            line(0.1, 0.9),
            b'{"q": "secret", "a": "no score"}',
            b'{"q": "secret"}',
            b'{"q": "\xff", "a": "x"}',
            line(0.9, 0.1),
        ]
    )
    result, verdicts, _ = await run(content, tmp_path / "in.jsonl")
    assert [verdict.source.offset for verdict in verdicts] == [0, 3, 7]
    assert [verdict.failure_class for verdict in verdicts] == [
        FailureClass.COUPLED_FAILURE,
        FailureClass.CLEAN,
        FailureClass.POLICY_FAILURE,
    ]
    # Decoding is a window ahead of scoring, so reasons come grouped by stage.
    assert [(bad.line, bad.stage) for bad in result.bad] == [
        (2, "decode"),
        (6, "decode"),
        (7, "decode"),
        (5, "score"),
    ]
    assert "secret" not in json.dumps(result.summary())
    assert result.summary()["refused"] == 4
    assert result.summary()["input"]["lines"] == 8
    assert result.summary()["coupled_failure_rate"]["value"] == pytest.approx(1 / 3)
    page = render(result.report(), datetime(2026, 1, 1, tzinfo=UTC))
    assert "Refused lines" in page


async def test_the_same_content_gives_the_same_verdicts_anywhere(tmp_path: Path) -> None:
    content = b"\n".join(line(0.9, n / 10) for n in range(10))
    _, one, _ = await run(content, tmp_path / "one.jsonl")
    _, other, _ = await run(gzip.compress(content), tmp_path / "other.gz")
    assert [verdict.encode() for verdict in one] == [verdict.encode() for verdict in other]
    assert one[0].source.topic == f"file:{hashlib.sha256(content).hexdigest()[:12]}"
    assert len({verdict.id for verdict in one}) == 10


async def test_lines_are_scored_in_bounded_windows(tmp_path: Path) -> None:
    content = b"\n".join([line(0.1, 0.5)] * (2 * WINDOW_RECORDS + 7))
    _, verdicts, scorer = await run(content, tmp_path / "in.jsonl")
    assert scorer.windows == [WINDOW_RECORDS, WINDOW_RECORDS, 7]
    assert len(verdicts) == 2 * WINDOW_RECORDS + 7
    # 256 of the larger lines would be 23 MiB; windows close by bytes as well.
    fat = json.dumps({"q": "x" * 90_000, "a": "harm=0.1 reward=0.5"}).encode()
    _, verdicts, scorer = await run(b"\n".join([fat] * 200), tmp_path / "fat.jsonl")
    assert max(scorer.windows) < 100
    assert len(verdicts) == 200


async def test_probes_and_production_are_told_apart(tmp_path: Path) -> None:
    def record(number: int, probe: object) -> bytes:
        return json.dumps(
            {
                "schema": "ares.interaction/1",
                "id": str(number),
                "occurred_at": "2026-01-01T00:00:00Z",
                "messages": [{"role": "user", "content": "q"}],
                "response": "harm=0.9 reward=0.9",
                "policy": {"name": "p", "version": "1"},
                "probe": probe,
            }
        ).encode()

    lineage = {
        "id": "x",
        "campaign": "c",
        "generation": 0,
        "components": {},
        "sampling_probability": 0.5,
    }
    content = b"\n".join([record(0, None), record(1, lineage), record(2, lineage)])
    result, verdicts, _ = await run(content, tmp_path / "in.jsonl", mapping=None)
    assert [verdict.lane for verdict in verdicts] == ["production", "probe", "probe"]
    assert result.main.tiles()[0].note == "probe lane"
    assert {rate["slice"]["lane"] for rate in result.summary()["rates"]} == {"production", "probe"}


async def test_the_monitor_says_the_same_of_the_scans_verdicts(tmp_path: Path) -> None:
    rng = random.Random(5)
    rows = [
        {
            "q": "q",
            "a": f"harm={rng.choice((0.1, 0.5, 0.9))} reward={rng.random():.2f}",
            "goal": f"g{rng.randrange(4)}",
            "at": f"2026-01-{1 + number // 20:02}T{number % 20:02}:00:00Z",
        }
        for number in range(400)
    ]
    rng.shuffle(rows)
    asked = MAPPING.model_dump(exclude_none=True)
    mapping = Mapping.model_validate(asked | {"attributes": {"goal": "goal"}, "occurred_at": "at"})
    content = b"\n".join(json.dumps(row).encode() for row in rows)
    result, verdicts, _ = await run(content, tmp_path / "in.jsonl", mapping=mapping)
    ledger = Ledger(LedgerPolicy(slices=("goal",)))
    for item in verdicts:
        seen = read_observation(item.encode(), POLICY.scored_high_when)
        place = item.source.partition, item.source.offset
        ledger.add(seen, item.source.timestamp_ms, place)
    ledger.changes(datetime(2026, 1, 1, tzinfo=UTC), 0.01)
    expected = [item.as_report() for item in ledger.rates()]
    assert len(expected) == 1 + 4
    assert [
        item | {"figures": item["figures"] | {"correction": None}}
        for item in result.summary()["rates"]
    ] == [item | {"figures": item["figures"] | {"correction": None}} for item in expected]


async def test_a_file_of_bad_lines_still_has_a_report(tmp_path: Path) -> None:
    result, verdicts, _ = await run(b"x\n" * 300, tmp_path / "in.jsonl")
    assert (verdicts, result.bad_count, len(result.bad)) == ([], 300, 100)
    assert result.summary()["coupled_failure_rate"] is None
    assert "300 lines" in render(result.report(), datetime(2026, 1, 1, tzinfo=UTC))


def test_a_line_without_end_cannot_fill_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    with file.open("wb") as stream:
        for _ in range(20):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\nnext\n")
    with open_lines(file) as lines:
        found = list(lines)
    assert [number for number, _ in found] == [1, 2]
    assert len(found[0][1]) == MAX_LINE_BYTES + 1
    assert found[1][1] == b"next"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.jsonl: cannot be read"):  # noqa: SIM117
        with open_lines(tmp_path / "absent.jsonl"):
            pass
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"line\n" * 1_000)[:-10])
    with (
        open_lines(cut) as lines,
        pytest.raises(FileFormatError, match=r"cut\.gz:\d+: broken gzip"),
    ):
        lines.survey()


def test_an_output_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "out.jsonl"

    def stop_midway() -> None:
        with written_whole(file) as out:
            out.write(b"half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        stop_midway()
    assert list(file.parent.iterdir()) == []
    with written_whole(file) as out:
        out.write(b"whole")
    assert file.read_bytes() == b"whole"


def test_map_try_shows_what_a_mapping_makes_of_a_sample(tmp_path: Path) -> None:
    sample, mapping = tmp_path / "in.jsonl", tmp_path / "map.yaml"
    mapping.write_text("prompt: q\nresponse: a\npolicy: {name: \"'p'\", version: \"'1'\"}\n")
    sample.write_text('{"q": "why [bold]", "a": "' + "z" * 900 + '"}\n')
    shown = CliRunner().invoke(app, ["map", "try", str(sample), "--map", str(mapping)])
    assert shown.exit_code == 0
    assert "[bold]" in shown.stdout
    assert shown.stdout.count("z") < 300
    sample.write_text('{"q": "why"}\n')
    refused = CliRunner().invoke(app, ["map", "try", str(sample), "--map", str(mapping)])
    assert refused.exit_code == 1
    assert "response: 'a' finds nothing" in refused.stdout
