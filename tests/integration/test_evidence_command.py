"""`ares evidence` on a real broker: signed, and made again to the byte by somebody else."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from ares_stream.audit.notes import NoteSigner
from ares_stream.cli.main import app
from ares_stream.models.releases import Author
from ares_stream.models.store import Artefact, ReleaseStore
from ares_stream.records import topics
from ares_stream.records.verdict import FailureClass
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.records import OutboundRecord
from tests.integration.test_notary import NAME, create
from tests.support.adapters import write_adapter
from tests.support.notarised import notarise, records_of
from tests.support.verdicts import verdict
from tests.unit.test_evidence import GATE, alarm, label, repair

pytestmark = pytest.mark.kafka
STRANGER = NoteSigner.generate(NAME)


async def write(connection: KafkaConnection, prefix: str, start: int) -> None:
    """A transaction of verdicts, labels, alarms and a repair."""
    rows = [
        (topics.VERDICTS, b"k%d" % k, verdict(k, FailureClass.COUPLED_FAILURE if k % 5 == 0
                                              else FailureClass.CLEAN))
        for k in range(start, start + 40)
    ]  # fmt: skip
    others = [
        (topics.LABELS, label(start, True).key, label(start, True)),
        (topics.ALARMS, b"a", alarm(f"alarm-{start}")),
        (topics.REPAIRS, b"p", repair(f"plan-{start}", "rejected")),
    ]
    records = [
        OutboundRecord(f"{prefix}{name}", key, item.encode())
        for name, key, item in (*rows, *others)
    ]
    async with Journal(connection, f"{prefix}test-{start}") as journal:
        await journal.append(records)


async def write_heads(connection: KafkaConnection, prefix: str, signer: NoteSigner) -> None:
    """Heads of the notary, and behind them one that somebody else put there."""
    topic = f"{prefix}{topics.CHECKPOINTS}"
    heads = [head for _, head in notarise(records_of(20), signers=[signer]).checkpoints]
    forged = [head for _, head in notarise(records_of(25), signers=[STRANGER]).checkpoints][-1]
    async with Journal(connection, f"{prefix}test-heads") as journal:
        await journal.append(
            [OutboundRecord(topic, head.key, head.encode()) for head in (*heads, forged)]
        )


async def ares(*arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, app, list(arguments))


async def another_key_and_another_content_are_told(
    compare: tuple[str, ...], theirs: str, out: Path
) -> None:
    # Without a key of one's own the report's are taken.
    assert (await ares(*compare[:-2], "--settings", theirs)).exit_code == 0
    foreign = await ares(*compare[:-1], str(STRANGER.key), "--settings", theirs)
    assert foreign.exit_code == 1
    assert "the head of ares.verdicts 2 is signed by no key that you named" in foreign.stdout
    assert "evidence.note: signed by no trusted key" in foreign.stdout
    page = out / "evidence.html"
    page.write_text(page.read_text().replace("nobody has taken note", "all is well"))
    altered = await ares(*compare, "--settings", theirs)
    assert altered.exit_code == 1
    assert "evidence.html: is not what these topics and this registry give" in altered.stdout


async def another_locale_and_time_zone_change_no_byte(*words: str) -> None:
    """In a process of its own, whose locale has no letter beyond ASCII."""
    there = {
        "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0",
        "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "7",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("ares")), *words, env={**os.environ, **there},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said


async def test_a_third_party_makes_the_same_report_to_the_byte(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    (tmp_path / "key.pem").write_bytes(signer.pem())
    store = ReleaseStore(str(tmp_path / "registry"))
    author = Author("ann", datetime.now(UTC), "from a test")
    artefact = Artefact("policy", "policy", write_adapter(tmp_path / "adapter"))
    store.propose([artefact], author, gate_report=GATE.document)
    store.approve(store.log().releases[0].digest, author)
    await write(connection, prefix, 0)
    await write_heads(connection, prefix, signer)
    end = datetime.now(UTC) + timedelta(milliseconds=5)

    def settings(name: str, **notary: object) -> str:
        file = tmp_path / name
        content = {
            "kafka": {"bootstrap": kafka}, "topic_prefix": prefix,
            "registry": {"root": str(tmp_path / "registry")}, "notary": {"name": NAME, **notary},
            "monitor": {"slices": ["locale"]}, "scorer": {"review_sample": 1.0},
        }  # fmt: skip
        file.write_text(yaml.safe_dump(content))
        return str(file)

    ours = settings("ours.yaml", keys=[str(tmp_path / "key.pem")])
    theirs = settings("theirs.yaml")
    begin = end - timedelta(hours=1)
    period = ("--since", begin.isoformat(), "--until", end.isoformat())
    out = tmp_path / "evidence"
    made = await ares("evidence", *period, "--out", str(out), "--settings", ours)
    assert made.exit_code == 0, (made.output, made.exception)
    found = json.loads((out / "evidence.json").read_text())
    assert sum(row["records"] for row in found["covers"]["topics"]) == 46
    assert [(row["size"], row["signed_by"], row["refused"]) for row in found["proofs"]] == [
        (20, found["covers"]["notary_keys"], 1)
    ]
    assert [row["state"] for row in found["releases"]] == ["candidate", "active"]
    assert [row["digest"] for row in found["gates"]] == [GATE.digest]
    assert len(found["gates"][0]["checks"]) == len(GATE.checks)
    assert {row["total"] for row in found["figures"] if not row["slice"]["attribute"]} == {40}
    assert [row["kind"] for row in found["incidents"]] == [
        "alarm coupled_failures_rose", "repair rejected",
    ]  # fmt: skip
    archive = tmp_path / "archive"
    names = [f"--topic={name}" for name in ("verdicts", "labels", "repairs", "alarms",
                                            "deadletters", "checkpoints")]  # fmt: skip
    archived = await ares("archive", "write", str(archive), *names, "--settings", theirs)
    assert archived.exit_code == 0, archived.output

    # What comes after the period changes nothing, and an archive is as good as the topics.
    assert datetime.now(UTC) > end
    await write(connection, prefix, 1000)
    compare = ("evidence", *period, "--compare", str(out), "--key", str(signer.key))
    await another_locale_and_time_zone_change_no_byte(
        "evidence", *period, "--out", str(tmp_path / "elsewhere"), "--settings", ours
    )
    for file in out.iterdir():
        assert (tmp_path / "elsewhere" / file.name).read_bytes() == file.read_bytes()
    for source in ((), ("--archive", str(archive))):
        again = await ares(*compare, *source, "--settings", theirs)
        assert again.exit_code == 0, (source, again.output, again.exception)
        assert f"signed by {NAME}" in again.stdout
        assert "the same, to the byte" in again.stdout
    await another_key_and_another_content_are_told(compare, theirs, out)


async def test_options_that_say_nothing_or_two_things_are_refused(tmp_path: Path) -> None:
    period = ("--since", "2026-10-01", "--until", "2026-11-01")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("")
    for arguments, said in (
        (period, "name --out or --compare"),
        ((*period, "--out", "a", "--compare", "b"), "name --out or --compare"),
        (("--since", "November", "--until", "2026-11-01", "--out", "a"), "expected a time such as"),
        (("--since", "2026-11-01", "--until", "2026-10-01", "--out", "a"), "is not after --since"),
        ((*period, "--out", str(tmp_path / "there")), "exists already"),
        ((*period, "--compare", str(tmp_path / "there")), "evidence.json: cannot be read"),
    ):
        result = await ares("evidence", *arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
