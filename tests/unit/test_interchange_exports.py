"""What of a campaign's record reaches other tools' logs."""

import json
from pathlib import Path

import pytest

from ares_stream.errors import FileFormatError, SettingsError
from ares_stream.interchange.exports import export
from ares_stream.interchange.seeds import read_seeds
from ares_stream.probes.record import read_record, write_record
from tests.support.campaign_record import CAMPAIGN, exchange


def test_a_record_that_is_written_reads_back_equal(tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    assert write_record(file, CAMPAIGN) == 4
    assert list(read_record(file)) == CAMPAIGN


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("interaction", "response", 3), "interaction.response"),
        (("interaction", "probe", None), "interaction.probe: missing"),
        (("verdict", "interaction_id", "other"), "verdict.interaction_id"),
    ],
)
def test_a_bad_line_of_a_record_is_refused_with_line_and_field(
    change: tuple[str, str, object], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "record.jsonl"
    write_record(file, CAMPAIGN)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    part, field, value = change
    rows[2][part][field] = value
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(FileFormatError) as caught:
        list(read_record(file))
    assert caught.value.line == 3
    assert reason in caught.value.reason


def test_an_evals_log_reads_back_as_the_same_prompts_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    export(CAMPAIGN, "evals-log", file)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert list(rows[0]) == ["spec"]
    assert rows[-1]["final_report"]["coupled_failure_rate"] == 0.5
    assert [row["event_id"] for row in rows[1:-1]] == list(range(8))
    seeds = read_seeds(file, "evals").seeds
    assert [seed.messages for seed in seeds] == [item.interaction.messages for item in CAMPAIGN]
    assert [seed.response for seed in seeds] == [item.interaction.response for item in CAMPAIGN]


def test_evals_samples_hold_each_failed_prompt_once(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    export([*CAMPAIGN, CAMPAIGN[1]], "evals-samples", file)
    seeds = read_seeds(file, "evals").seeds
    assert [seed.request for seed in seeds] == ["Question 1", "Question 3"]


def test_a_record_of_no_campaign_or_of_two_is_not_exported(tmp_path: Path) -> None:
    two = [*CAMPAIGN, exchange(9, failed=False, campaign="c-2")]
    for exchanges, count in (([], 0), (two, 2)):
        with pytest.raises(SettingsError, match=f"holds {count} campaigns"):
            export(exchanges, "inspect", tmp_path / "out")
    with pytest.raises(SettingsError, match="no failed probe"):
        export(CAMPAIGN[:1], "evals-samples", tmp_path / "out")
    with pytest.raises(SettingsError, match="format csv: unknown; one of inspect"):
        export(CAMPAIGN, "csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
