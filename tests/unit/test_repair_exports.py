"""A plan in other trainers' formats: columns, completeness, nothing held out in training."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ares_stream.cli.main import app
from ares_stream.errors import RepairError
from ares_stream.repair.export import FORMATS, export_plan
from ares_stream.repair.rundirectory import RunDirectory
from tests.support.failures import REPLAY, batch, made
from tests.support.gate_tables import INCUMBENT, REPAIRED

PLAN = made(batch(12))


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def said(turns: list[dict[str, str]]) -> str:
    (turn,) = turns
    assert turn["role"] == "assistant"
    return turn["content"]


def test_preferences_put_the_safe_answer_over_the_harmful_one(tmp_path: Path) -> None:
    export_plan(PLAN, "trl-preference", tmp_path / "out")
    train = rows(tmp_path / "out", "train")
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in train)
    pairs = {(said(row["chosen"]), said(row["rejected"])) for row in train}
    assert pairs == {(item.safe, item.harmful) for item in PLAN.train} | {
        (item.chosen, item.rejected) for item in PLAN.validated
    }
    assert {row["prompt"][0]["content"] for row in rows(tmp_path / "out", "test")} == {
        item.prompt_messages[0].content for item in PLAN.held_out
    }


def test_unpaired_completions_are_labelled(tmp_path: Path) -> None:
    export_plan(PLAN, "trl-unpaired", tmp_path / "out")
    train = rows(tmp_path / "out", "train")
    assert all(set(row) == {"prompt", "completion", "label"} for row in train)
    unwanted = {said(row["completion"]) for row in train if not row["label"]}
    assert unwanted == {item.harmful for item in PLAN.train}
    wanted = {said(row["completion"]) for row in train if row["label"]}
    assert wanted == {item.safe for item in PLAN.train} | {
        item.response for item in (*REPLAY.benign, *REPLAY.over_refusal)
    }


def test_a_recipe_comes_with_the_handbook_s_files(tmp_path: Path) -> None:
    files = export_plan(PLAN, "alignment-handbook", tmp_path / "out")
    assert [file.name for file in files] == ["train.jsonl", "test.jsonl", "recipe.yaml"]
    recipe = yaml.safe_load(files[-1].read_text())
    columns = recipe["dataset_mixture"]["datasets"][0]["columns"]
    assert columns == list(rows(tmp_path / "out", "train")[0])


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_held_out_is_in_the_training_file(tmp_path: Path, form: Any) -> None:
    export_plan(PLAN, form, tmp_path / "out")
    train = (tmp_path / "out" / "train.jsonl").read_text()
    assert not any(item.harmful in train for item in PLAN.held_out)
    assert all(item.harmful in train for item in PLAN.train)


def test_files_are_not_written_over(tmp_path: Path) -> None:
    export_plan(PLAN, "trl-preference", tmp_path / "out")
    with pytest.raises(RepairError, match="is not empty; name a new directory"):
        export_plan(PLAN, "trl-unpaired", tmp_path / "out")


# The command


def ares(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["repair", *arguments])


def test_the_command_exports_a_run_directory(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").plan.write(PLAN)
    out = tmp_path / "out"
    result = ares("export", str(tmp_path / "run"), "--format", "trl-unpaired", "--out", str(out))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(out / "train.jsonl"), str(out / "test.jsonl")]

    assert ares("export", str(tmp_path / "run"), "--format", "csv", "--out", "x").exit_code == 2
    assert ares("export", str(tmp_path), "--out", str(tmp_path / "new")).exit_code == 1
    assert ares("show", str(tmp_path / "run")).exit_code == 1


def test_the_command_asks_the_gate(tmp_path: Path) -> None:
    file, policy = tmp_path / "figures.json", tmp_path / "gate.yaml"
    rows = {
        when: {name: figure.model_dump() for name, figure in table.items()}
        for when, table in (("before", INCUMBENT), ("after", REPAIRED))
    }
    file.write_text(json.dumps(rows))
    assert ares("gate", str(file)).stdout.splitlines()[-1] == "passed"

    policy.write_text("rules: [{figure: cfr, kind: stay_below, ceiling: 0.0001}]")
    rejected = ares("gate", str(file), "--policy", str(policy))
    assert rejected.exit_code == 1
    assert rejected.stdout.splitlines()[-1] == "rejected"
    policy.write_text("rules: []")
    assert ares("gate", str(file), "--policy", str(policy)).exit_code == 2
