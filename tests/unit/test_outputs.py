"""No command begins work whose result has no place, and none overwrites what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ares_stream.cli.main import app
from ares_stream.errors import AresError

SCAN = ["scan", "in.jsonl", "--harm", "judge", "--reward", "rm", "--verdicts"]
IMPORT = ["probe", "import", "garak", "in.jsonl"]
TRIGGERS = ["probe", "triggers", "--carriers", "in.jsonl", "--vocabulary", "words", "--reward",
            "rm", "--json"]  # fmt: skip
CFR = ["bench", "cfr", "--target", "in.jsonl", "--harm", "judge", "--reward", "rm", "--json"]
TRAIN = ["bundle", "train", "harm", "--data", "in.jsonl", "--base", "b", "--out"]

REFUSED: dict[str, tuple[list[str], str]] = {
    "scan over its input": ([*SCAN, "in.jsonl"], "--verdicts in.jsonl: is FILE as well"),
    "scan over its input through a link": ([*SCAN, "link"], "--verdicts link: is FILE as well"),
    "scan over its input by another way": (
        [*SCAN, "judge/../in.jsonl"], "is FILE as well",
    ),
    "scan over its mapping": (
        [*SCAN, "v", "--map", "words", "--report", "words"], "--report words: is --map as well",
    ),
    "scan over its labels": (
        [*SCAN, "v", "--labels", "words", "--json", "words"], "--json words: is --labels as well",
    ),
    "scan into one file twice": ([*SCAN, "v", "--report", "v"], "--report v: is --verdicts as"),
    "scan into a bundle": ([*SCAN, "judge/model.onnx"], "lies in --harm judge"),
    "scan into a folder": ([*SCAN, "judge"], "--verdicts judge: a folder, expected a file"),
    "scan below a file": ([*SCAN, "words/v"], "cannot be written"),
    "scan to standard output": ([*SCAN, "-"], "standard output is not possible"),
    "import over its input": ([*IMPORT, "--taxonomy", "in.jsonl"], "is FILE as well"),
    "import into one file twice": (
        [*IMPORT, "--taxonomy", "t", "--conversations", "t"], "is --taxonomy as well",
    ),
    "export over its record": (["probe", "export", "inspect", "in.jsonl", "in.jsonl"],
                               "OUT in.jsonl: is RECORD as well"),
    "a campaign's record over the campaign": (["probe", "run", "in.jsonl", "--record", "in.jsonl"],
                                              "--record in.jsonl: is CAMPAIGN as well"),
    "a prior over the campaign": (["probe", "export-prior", "in.jsonl", "in.jsonl"],
                                  "OUT in.jsonl: is CAMPAIGN as well"),
    "triggers over their vocabulary": ([*TRIGGERS, "words"], "--json words: is --vocabulary"),
    "a score card over its answers": ([*CFR, "in.jsonl"], "--json in.jsonl: is --target as well"),
    "a score card and its page": ([*CFR, "c", "--markdown", "c"], "is --json as well"),
    "a loop's rounds over the campaign": (["loop", "in.jsonl", "--json", "in.jsonl"],
                                          "--json in.jsonl: is CAMPAIGN as well"),
    "a benchmark into a folder": (["bench", "probes", "--seeds", "1", "--json", "judge"],
                                  "--json judge: a folder"),
    "a repair's benchmark into a folder": (["bench", "repair", "--json", "judge"],
                                           "--json judge: a folder"),
    "training into a bundle": ([*TRAIN, "judge"], "--out judge: exists already"),
    "training over its rows": ([*TRAIN, "new", "--json", "in.jsonl"], "is --data in.jsonl as well"),
    "training below a file": ([*TRAIN, "words/new"], "--out words/new: cannot be written"),
    "a demo's picture over its input": (
        ["demo", "--input", "in.jsonl", "--harm", "judge", "--reward", "rm", "--picture",
         "in.jsonl"], "--picture in.jsonl: is --input as well",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_an_output_that_would_destroy_or_fail_is_refused_before_the_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("judge", "rm"):
        Path(folder).mkdir()
        Path(folder, "bundle.json").write_text("{}")
    Path("in.jsonl").write_text('{"kept": true}\n')
    Path("words").write_text("kept\n")
    Path("link").symlink_to("in.jsonl")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    arguments, reason = REFUSED[name]
    result = CliRunner().invoke(app, arguments)
    told = str(result.exception) if isinstance(result.exception, AresError) else result.output
    assert reason in told, (told, result.exception)
    assert Path("in.jsonl").read_text() == '{"kept": true}\n'
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
