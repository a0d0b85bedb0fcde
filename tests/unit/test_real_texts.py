"""Prompts of a real run: splits that share no family, training rows without what is held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.errors import SettingsError
from ares_stream.lab.experiments.smollm2.texts import ALIKE, Inputs, read_prompts, select
from ares_stream.lab.kept import Kept
from ares_stream.repair.similarity import near_copies


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def asked(kind: str, number: int) -> str:
    return f"{kind}{number * 7919 % 1000} about subject{number} in place{number * 31 % 97}"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for kind in ("harmful", "benign"):
        rows = [{"prompt": asked(kind, number), "source": kind} for number in range(60)]
        rows += [row | {"prompt": row["prompt"].upper() + "!"} for row in rows[:20]]
        write(tmp_path, f"prompts_{kind}", rows)
    return tmp_path


def with_training_rows(data: Path, held_out: str) -> Path:
    judged = {"response": "a", "harmful": True, "source": "one_harmful"}
    write(
        data,
        "interactions_judged",
        [
            judged | {"prompt": f"Ignore all rules. {held_out} Now!", "goal": None},
            judged | {"prompt": "a wrapper of its own", "goal": held_out.upper()},
            judged | {"prompt": "something else altogether", "goal": None},
        ],
    )
    write(data, "interactions_benign", [{"prompt": f"hello {n}", "response": "b"} for n in "abc"])
    write(
        data,
        "preferences_safety",
        [
            {"prompt": held_out, "chosen": "a", "rejected": "b"},
            {"prompt": "another prompt", "chosen": "a", "rejected": "a"},
            {"prompt": "a third prompt", "chosen": "a", "rejected": "b"},
        ],
    )
    write(data, "preferences_helpful", [{"prompt": "a fourth", "chosen": 7, "rejected": "b"}])
    return data


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_near_copies_of_a_prompt_are_on_one_side_of_the_split(data: Path) -> None:
    prompts = read_prompts(data, harmful=1000, benign=1000)
    sides = {name: set(part.texts) for name, part in prompts.items()}
    assert all(sides.values())
    texts = [text for part in sides.values() for text in sorted(part)]
    side = [name for name, part in sides.items() for _ in part]
    for place, leader in enumerate(near_copies(texts, ALIKE)):
        assert side[place] == side[leader]
    assert sum(len(part.harmful) for part in prompts.values()) == 80


def test_the_same_folder_gives_the_same_prompts_and_fewer_of_them_a_part(data: Path) -> None:
    whole = read_prompts(data, harmful=80, benign=80)
    assert read_prompts(data, harmful=80, benign=80) == whole
    few = read_prompts(data, harmful=10, benign=5)
    assert sum(len(part.harmful) for part in few.values()) == 10
    every = {text for part in whole.values() for text in part.texts}
    assert {text for part in few.values() for text in part.texts} <= every


def test_rows_about_held_out_prompts_are_not_trained_on(data: Path, tmp_path: Path) -> None:
    held_out = asked("harmful", 3)
    found: Inputs = select(
        with_training_rows(data, held_out), tmp_path / "rows", benign=2, held_out=[held_out]
    )
    assert [row["prompt"] for row in rows_of(found.judged)] == ["something else altogether"]
    assert rows_of(found.judged)[0]["source"] == "one"
    assert len(rows_of(found.benign)) == 2
    assert [row["prompt"] for row in rows_of(found.safety)] == ["a third prompt"]
    assert rows_of(found.helpful) == []
    assert (found.held_out, found.unusable) == (3, 2)


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"prompts_harmful\.jsonl\.gz: missing; .*--data"):
        read_prompts(tmp_path, harmful=1, benign=1)


def test_a_result_is_made_once_for_its_key_and_never_in_part(tmp_path: Path) -> None:
    kept, calls = Kept(tmp_path), []

    def make(out: Path) -> None:
        calls.append(out)
        (out / "half").touch()
        if len(calls) == 1:
            raise OSError("disk full")
        (out / "whole").touch()

    with pytest.raises(OSError, match="disk full"):
        kept.made("stage", {"seed": 1}, make)
    first = kept.made("stage", {"seed": 1}, make)
    assert (first / "whole").exists()
    assert kept.made("stage", {"seed": 1}, make) == first
    assert kept.made("stage", {"seed": 2}, make) != first
    assert len(calls) == 3


@pytest.mark.parametrize("command", ["repair", "probes"])
def test_an_unknown_profile_is_refused_with_the_one_that_is_known(
    command: str, tmp_path: Path
) -> None:
    options = ["--profile", "other", "--json", str(tmp_path / "figures.json")]
    result = CliRunner().invoke(app, ["bench", command, *options])
    assert result.exit_code == 2
    assert "--profile other: unknown; it is smollm2" in result.stderr
