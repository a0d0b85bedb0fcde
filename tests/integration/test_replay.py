"""`ares replay` as an auditor types it, after a real scorer on a real broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from typer.testing import CliRunner

from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.notes import NoteSigner
from ares_stream.cli.main import app
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.records.topics import PROBE, PRODUCTION, VERDICTS, topic_name
from ares_stream.records.verdict import Verdict
from ares_stream.streaming.records import OutboundRecord
from tests.integration.test_scorer import (
    BAD,
    CANARY,
    MAP,
    MIB,
    THEIRS,
    Models,
    announcement,
    bad,
    create,
    events,
    models,
    scorer_of,
)
from tests.support.exactly_once import content, publish

__all__ = ["models"]
pytestmark = pytest.mark.kafka
NAME = "example.com/ares"
LIMITS = {"record_mebibytes": 1}
"""A larger record is not read: one is sent."""
LANES = {PRODUCTION: "production", PROBE: "probe", THEIRS: "production"}


class Auditor:
    """Types `ares replay` in a folder of its own."""

    def __init__(self, kafka: str, prefix: str, folder: Path, models: Models) -> None:
        self.folder = folder
        self.runs = 0
        self.inputs: list[dict[str, Any]] = [
            {"topic": topic_name(prefix, name), "lane": lane} for name, lane in LANES.items()
        ]
        self.inputs[-1]["map"] = MAP
        settings = {
            "kafka": {"bootstrap": kafka},
            "topic_prefix": prefix,
            "registry": {"root": str(folder / "registry")},
            "notary": {"name": NAME},
            "scorer": {
                "inputs": self.inputs,
                "processing": LIMITS,
                "harm": [str(models.judge.path)],
                "reward": str(models.reward.path),
            },
        }
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))

    async def ares(
        self, *words: str, alone: bool = False, settings: bool = True
    ) -> tuple[int, str]:
        """Exit code, and what was said; in a process of its own, or by this one, which has imported
        everything already."""
        line = list(words)
        if settings:
            line += ["--settings", str(self.folder / "settings.yaml")]
        if not alone:
            done = await asyncio.to_thread(CliRunner().invoke, app, line)
            return done.exit_code, done.output
        ended = await asyncio.to_thread(
            subprocess.run, [str(Path(sys.executable).with_name("ares")), *line],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return ended.returncode, ended.stdout + ended.stderr

    async def replay(
        self, *words: str, work: str | None = None, workers: int = 1
    ) -> tuple[int, dict[str, Any], str]:
        """Exit code, report and what was said."""
        self.runs += 1
        report = self.folder / f"report-{self.runs}.json"
        folder = self.folder / (work or f"work-{self.runs}")
        named = ("--json", str(report), "--work", str(folder), "--workers", str(workers))
        code, said = await self.ares("replay", *named, *words, alone=workers > 1)
        return code, json.loads(report.read_bytes()) if report.exists() else {}, said


async def scored(kafka: str, prefix: str, folder: Path, models: Models) -> Auditor:
    """Events good and bad, of three topics, under two releases of the reward model."""
    await create(kafka, prefix)
    auditor = Auditor(kafka, prefix, folder, models)
    store = ReleaseStore(str(folder / "registry"))
    author = Author("ann", datetime(2026, 10, 1, tzinfo=UTC))
    store.propose([Artefact("reward", "reward", models.repaired.path)], author)
    stream = events(prefix, 300)
    for position, kind in enumerate(kind for kind in BAD if kind != "10 MB"):
        stream.insert(position * 13, bad(prefix, kind, position))
    names = tuple(LANES)
    stream.append(OutboundRecord(topic_name(prefix, PRODUCTION), b"large", b"x" * (2 * MIB)))
    with scorer_of(
        kafka, prefix, folder / "scorer", models, inputs=auditor.inputs, processing=LIMITS
    ) as scorer:
        await publish(kafka, stream)
        await scorer.until_done(names)
        await publish(kafka, [announcement(prefix, models.repaired)])
        async with asyncio.timeout(150):
            while "release swapped" not in scorer.log:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await publish(kafka, events(prefix, 200, start=300))
        await scorer.until_done(names)
        await scorer.drained()
    return auditor


@pytest.mark.timeout(280)
async def test_an_auditor_proves_a_run_and_finds_what_was_forged(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    auditor = await scored(kafka, prefix, tmp_path, models)
    signer = NoteSigner.generate(NAME)
    (tmp_path / "key.pem").write_bytes(signer.pem())
    code, report, said = await auditor.replay(
        "--html", str(tmp_path / "page.html"), "--sign", str(tmp_path / "key.pem"), workers=2
    )
    assert (code, report.get("differences")) == (0, []), said
    counts, letters = report["counts"], len(BAD) - 1 + 1
    assert counts["identical"] == report["records"] == 500 + letters
    digests = {item["digest"] for item in report["models"]}
    assert {models.judge.digest, models.reward.digest, models.repaired.digest} == digests
    assert report["runtime"]["provider"] == "CPUExecutionProvider"
    raw = (tmp_path / "report-1.json").read_bytes()
    checks = ("audit", "report", str(tmp_path / "report-1.json"), "--key")
    code, said = await auditor.ares(*checks, str(signer.key), settings=False)
    assert (code, said) == (0, f"signed by {signer.key}\n")
    stranger = str(NoteSigner.generate(NAME).key)
    assert (await auditor.ares(*checks, stranger, settings=False))[0] == 2
    assert CANARY not in raw.decode() + said + (tmp_path / "page.html").read_text()

    code, again, _ = await auditor.replay()
    assert code == 0
    for name in ("read_digest", "replayed_digest", "counts", "partitions"):
        assert again[name] == report[name]
    code, repeated, _ = await auditor.replay(work="work-1")
    assert (code, repeated["read_digest"]) == (0, report["read_digest"])

    archive = str(tmp_path / "archive")
    names = ("interactions.production", "interactions.probe", THEIRS, "verdicts", "repair",
             "review", "deadletters")  # fmt: skip
    words = [word for name in names for word in ("--topic", name)]
    assert (await auditor.ares("archive", "write", archive, *words))[0] == 0
    code, archived, said = await auditor.replay("--archive", archive)
    # The archive holds the record that was too large for the scorer.
    assert (code, archived["records"]) == (0, report["records"]), said
    assert [item["detail"] for item in archived["tolerated"]] == ["refused at fetch in other words"]
    assert len(await ArchiveReader(archive).snapshot([topic_name(prefix, VERDICTS)])) == 3

    code, estimate, said = await auditor.replay("--dry-run", "--core-price", "500")
    assert (code, estimate["schema"]) == (0, "ares.replay-estimate/1"), said
    assert estimate["offsets"] >= report["records"]
    assert min(estimate[name] for name in ("seconds", "core_hours", "cost")) > 0
    assert "hours of one core, a cost of" in said

    (tmp_path / "strict.yaml").write_text("{harm_threshold: 0.2, abstain_above: 0.1}\n")
    code, other, said = await auditor.replay(
        "--mode", "what-if", "--policy", str(tmp_path / "strict.yaml")
    )
    assert (code, other["holds"]) == (0, None), said
    assert set(other["what_if"]["moves"]) <= {"contested → coupled_failure", "contested → clean"}

    # A forged verdict of the last record, and a record that was never scored.
    records = await content(kafka, topic_name(prefix, VERDICTS))
    verdict = Verdict.decode(records[-1].value or b"")
    reward = verdict.reward.model_copy(update={"score": verdict.reward.score + 1})
    forged = verdict.model_copy(update={"reward": reward})
    await publish(
        kafka, [OutboundRecord(records[-1].topic, records[-1].key, forged.encode())]
    )  # fmt: skip
    code, report, said = await auditor.replay()
    assert (code, report["differences_total"]) == (1, 1)
    (found,) = report["differences"]
    source = verdict.source
    assert (found["topic"], found["partition"], found["offset"], found["agreement"]) == (
        source.topic, source.partition, source.offset, "unexpected",
    )  # fmt: skip
    # A folder of before, whose replay was told, answers nothing that was asked after it.
    assert (await auditor.replay(work="work-1"))[0] == 1


@pytest.mark.timeout(200)
async def test_a_gap_or_a_missing_bundle_is_an_error_with_its_place_and_no_report(
    kafka: str, prefix: str, tmp_path: Path, models: Models
) -> None:
    auditor = await scored(kafka, prefix, tmp_path, models)
    (tmp_path / "registry").rename(tmp_path / "elsewhere")
    code, report, said = await auditor.replay()
    assert (code, report) == (2, {})
    assert f"no bundle of reward reward {models.repaired.digest[:12]}" in said
    assert "offsets" in said
    path = str(models.repaired.path)
    assert (await auditor.replay("--bundle", path))[0] == 0

    topic = topic_name(prefix, PRODUCTION)
    code, report, said = await auditor.replay("--offsets", f"{topic}:0:0-9999999", "--bundle", path)
    assert (code, report) == (3, {})
    assert "offset 9999999 was asked for" in said
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=20)})
        verdicts = topic_name(prefix, VERDICTS)
        code, report, said = await auditor.replay("--offsets", f"{topic}:0:5-40", "--bundle", path)
        assert (code, report) == (3, {})
        assert f"truncated: {topic} 0 starts at offset 20, offset 5 was asked for" in said
        code, report, said = await auditor.replay("--since", "2026-01-01", "--bundle", path)
        assert (code, report) == (3, {})
        assert f"truncated: {topic} 0 begins at offset 20" in said
        assert (await auditor.replay("--bundle", path))[0] == 0
        await admin.delete_records(
            {
                TopicPartition(verdicts, number): RecordsToDelete(before_offset=60)
                for number in (0, 1, 2)
            }
        )
        code, report, said = await auditor.replay("--bundle", path)
        assert (code, report) == (3, {})
        assert "has no output, and retention has deleted what stood before" in said
    finally:
        await admin.close()
