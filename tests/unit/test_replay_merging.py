"""The reports of a replay's parts merge into that of a replay that was not split; what is missing,
doubled or of another replay is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ares_stream.audit.notes import NoteSigner
from ares_stream.audit.replay.findings import OLDER
from ares_stream.audit.replay.merging import merged
from ares_stream.audit.replay.models import WhatIf
from ares_stream.cli.main import app
from ares_stream.errors import InputError
from ares_stream.reporting.page import render
from ares_stream.reporting.replay import replay_page
from tests.support.auditor import Auditor
from tests.support.golden_month import DEADLETTERS, OUTPUTS, Month, live

PARTS = 4
NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Month:
    return live(tmp_path_factory.mktemp("month"), count=160)


@pytest.fixture
def auditor(month: Month, tmp_path: Path) -> Auditor:
    return Auditor(month, tmp_path)


def ares(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def files(reports: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    return [(f"part-{item['index']}.json", json.dumps(item).encode()) for item in reports]


def in_parts(auditor: Auditor, **chosen: Any) -> list[dict[str, Any]]:
    return [auditor.replay(part=(index, PARTS), **chosen) for index in range(PARTS)]


def without(report: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name not in names}


def test_all_parts_in_any_order_give_the_report_of_an_unsplit_replay(auditor: Auditor) -> None:
    # Differences of each part, and outputs that are none, which every part finds.
    auditor.topics.change(OUTPUTS.verdicts, 5, value=b"{}")
    for number in (1, 30, 60):
        auditor.topics.change(OUTPUTS.verdicts, number, key=b"other")
    auditor.topics.drop(DEADLETTERS, 1)
    whole = auditor.replay()
    assert whole["differences_total"] == 6
    found = merged(files(in_parts(auditor)[::-1]))
    assert [item["index"] for item in found["parts"]] == list(range(PARTS))
    passing = ("parts", "workers", "cpu_seconds")
    assert without(found, *passing) == without(whole, *passing)
    assert "of 4 parts" in render(replay_page(found), NOON)


def test_a_what_if_in_parts_adds_up_by_class_and_slice(auditor: Auditor) -> None:
    bundles = auditor.month.bundles
    strict = WhatIf(judges=(("judge", bundles.strict.digest),))
    spec = replace(auditor.spec(), mode="what-if", what_if=strict, slices=("locale",))
    whole = auditor.replay(spec)
    assert whole["counts"]["changed"] > 5
    found = merged(files([auditor.replay(spec, part=(index, PARTS)) for index in range(PARTS)]))
    assert found["what_if"] == whole["what_if"]
    assert (found["counts"], found["holds"]) == (whole["counts"], None)
    assert found["replayed_digest"] == whole["replayed_digest"]


def test_parts_that_are_missing_doubled_or_of_another_replay_are_refused(auditor: Auditor) -> None:
    parts = in_parts(auditor)
    other = auditor.replay(auditor.spec(block=32), part=(1, PARTS))
    whole = auditor.replay()
    damaged = without(parts[1], "counts")
    taken = ("partitions", "records", "read_digest", "replayed_digest")
    foreign = parts[1] | {name: parts[0][name] for name in taken}
    cases = [
        ([], "no part is named"),
        ([parts[0], parts[2], parts[3]], "of 4 parts these are missing: 1"),
        ([*parts, parts[2]], "part-2.json: part 2 is there twice"),
        ([parts[0], other, *parts[2:]], "part-1.json: is of another replay than part-0.json: set"),
        ([parts[0], whole], "of another replay than part-0.json: of differs"),
        ([merged(files(parts))], "part-0.json: is a merged report already"),
        ([damaged], "part-1.json: counts: missing"),
        ([parts[0], foreign, *parts[2:]], "is not of part 1"),
        ([parts[1] | {"schema": OLDER}], "part-1.json: was made by an older version"),
        ([{"schema": "ares.trace/1", "index": 0}], "part-0.json: no report of `ares replay`"),
    ]
    for reports, said in cases:
        with pytest.raises(InputError, match=said):
            merged(files(reports))
    bent: list[tuple[str, Any]] = [
        ("records", parts[1]["records"] + 1), ("holds", False), ("differences_total", 1),
        ("partitions", []), ("read_digest", "0" * 64), ("replayed_digest", "0" * 64),
    ]  # fmt: skip
    for field, value in bent:
        with pytest.raises(InputError, match=r"part-1\.json: .* is not what its other figures"):
            merged(files([parts[0], parts[1] | {field: value}, *parts[2:]]))
    with pytest.raises(InputError, match="x: no report"):
        merged([("x", b"{")])


def test_the_command_writes_signs_and_tells_the_merged_report(
    auditor: Auditor, tmp_path: Path
) -> None:
    auditor.topics.change(OUTPUTS.verdicts, 7, key=None)
    names = []
    for name, raw in files(in_parts(auditor)):
        (tmp_path / name).write_bytes(raw)
        names.append(str(tmp_path / name))
    signer = NoteSigner.generate("example.com/ares")
    (tmp_path / "key.pem").write_bytes(signer.pem())
    (tmp_path / "ares.yaml").write_text("notary: {name: example.com/ares}\n")
    words = ["--json", str(tmp_path / "all.json"), "--html", str(tmp_path / "all.html")]
    words += ["--sign", str(tmp_path / "key.pem"), "--settings", str(tmp_path / "ares.yaml")]
    done = ares("audit", "merge", *names, *words)
    assert done.exit_code == 1, done.output
    assert "divergent: its verdict record has another key" in done.output
    checked = ares("audit", "report", str(tmp_path / "all.json"), "--key", str(signer.key))
    assert checked.exit_code == 0, checked.output
    assert json.loads((tmp_path / "all.json").read_text())["of"] == 1
    assert ares("audit", "merge", names[0], *words).exit_code == 2
