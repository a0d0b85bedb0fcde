"""Other tools' own readers read what is exported, and the commands lead from file to file."""

import json
from pathlib import Path

import yaml
from inspect_ai.log import read_eval_log, write_eval_log
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.interchange.exports import export
from ares_stream.probes.record import write_record
from ares_stream.records.interaction import Interaction
from tests.support.campaign_record import CAMPAIGN
from tests.support.foreign_files import JAILBREAKBENCH


def test_inspect_ai_reads_the_log_with_messages_scores_and_lineage(tmp_path: Path) -> None:
    file = tmp_path / "campaign.json"
    export(CAMPAIGN, "inspect", file)
    log = read_eval_log(str(file))
    assert (log.status, log.eval.model, log.eval.dataset.samples) == ("success", "policy/3", 4)
    assert log.results is not None
    assert log.samples is not None
    assert log.results.scores[0].metrics["rate"].value == 0.5
    for sample, item in zip(log.samples, CAMPAIGN, strict=True):
        assert sample.id == item.interaction.id
        assert [turn.role for turn in sample.messages] == ["system", "user", "assistant"]
        assert sample.messages[1].text == item.interaction.prompt
        assert sample.output.completion == item.interaction.response
        assert sample.scores is not None
        score = sample.scores["coupled_failure"]
        assert (score.value, score.answer) == (int(item.failed), item.verdict.failure_class.value)
        assert score.metadata is not None
        assert score.metadata["harm_probability"] == item.verdict.harm.probability
        assert sample.metadata["components"] == {"topic": "theft"}
        assert sample.metadata["sampling_probability"] == 0.25
    # What Inspect writes of what it read is what it reads again.
    again = tmp_path / "again.json"
    write_eval_log(log, str(again))
    assert read_eval_log(str(again)).samples == log.samples


def test_import_writes_a_taxonomy_and_conversations(tmp_path: Path) -> None:
    file = tmp_path / "artefact.json"
    file.write_text(json.dumps(JAILBREAKBENCH))
    taxonomy, conversations = tmp_path / "seeds.yaml", tmp_path / "conversations.jsonl"
    told = CliRunner().invoke(
        app,
        [
            *("probe", "import", "jailbreakbench", str(file)),
            *("--taxonomy", str(taxonomy), "--conversations", str(conversations)),
        ],
    )
    assert told.exit_code == 0, told.output
    assert "1 entries, 1 different prompts" in told.output
    [phrases] = yaml.safe_load(taxonomy.read_text())["topics"].values()
    assert phrases == {"phrases": ["Ask"]}
    [line] = conversations.read_bytes().splitlines()
    assert Interaction.decode(line).response == "Told"


def test_export_writes_what_inspect_ai_reads(tmp_path: Path) -> None:
    record, out = tmp_path / "record.jsonl", tmp_path / "log.json"
    write_record(record, CAMPAIGN)
    told = CliRunner().invoke(app, ["probe", "export", "inspect", str(record), str(out)])
    assert told.exit_code == 0, told.output
    assert len(read_eval_log(str(out)).samples or []) == len(CAMPAIGN)


def test_a_bad_file_ends_the_command_with_exit_code_2_and_its_line(tmp_path: Path) -> None:
    file = tmp_path / "hits.jsonl"
    file.write_text("{}\n{\n")
    told = CliRunner().invoke(
        app, ["probe", "import", "evals", str(file), "--taxonomy", str(tmp_path / "out.yaml")]
    )
    assert told.exit_code == 2
    assert f"{file}:1: input: missing" in told.output
    assert not (tmp_path / "out.yaml").exists()
