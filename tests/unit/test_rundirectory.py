"""Files of a repair that a disk cut short are named, with what to do about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ares_stream.errors import RepairError
from ares_stream.records.base import OffsetRange
from ares_stream.repair.rundirectory import Job, RunDirectory, Workspace


def job(path: Path) -> Job:
    return Job(
        plan_id="plan-1",
        batch=(OffsetRange(topic="repair", partition=0, start=0, end=1),),
        started_at="2026-10-01T12:00:00+00:00",
        policy_model="chat",
        reward_model="rm",
        against={"chat": None},
        policy_base=path,
        incumbent=path,
        reference=path,
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_job_that_was_cut_short_names_its_file_and_what_to_do(
    tmp_path: Path, share: float
) -> None:
    workspace = Workspace(tmp_path)
    run = workspace.run("plan-1")
    run.path.mkdir()
    run.job.write(job(tmp_path))
    assert [item.path for item in workspace.unfinished()] == [run.path]
    raw = run.job.path.read_bytes()
    run.job.path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(RepairError) as caught:
        workspace.unfinished()
    said = str(caught.value)
    assert said.startswith(f"{run.job.path}: not JSON: ")
    assert said.endswith(
        f"restore it, or move {run.path} away: what it repairs is then repaired anew"
    )
    assert "\n" not in said
    run.path.rename(tmp_path / ".aside")
    assert workspace.unfinished() == []


@pytest.mark.parametrize("name", ["plan", "recipe", "gate", "suites"])
def test_what_a_repair_reads_is_to_be_restored_or_the_repair_made_anew(
    tmp_path: Path, name: str
) -> None:
    document = getattr(RunDirectory(tmp_path), name)
    document.path.write_text('{"id": "a')
    with pytest.raises(RepairError, match=rf"{name}\.json: not JSON: .*; restore it, or move"):
        document.read()


@pytest.mark.parametrize("name", ["figures", "answers", "verdict", "report"])
def test_what_a_repair_makes_is_to_be_deleted_and_made_again(tmp_path: Path, name: str) -> None:
    document = getattr(RunDirectory(tmp_path), name)
    document.path.write_text('{"id": "a')
    with pytest.raises(RepairError, match=rf"{name}\.json: not JSON: .*; delete it: what made"):
        document.read()
