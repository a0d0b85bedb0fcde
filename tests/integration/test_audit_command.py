"""`ares audit`, `ares archive` and `ares trace` as an auditor types them, against a real broker."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ares_stream.audit.archive import ArchiveReader
from ares_stream.audit.notes import NoteSigner
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.journal import Journal
from ares_stream.streaming.records import InboundRecord, OutboundRecord
from tests.integration.test_notary import (
    NAME,
    content,
    create,
    until_signed,
    write,
)
from tests.support.service_process import NotaryProcess
from tests.support.stamp_authority import StampServer

pytestmark = pytest.mark.kafka


@pytest.mark.timeout(280)
async def test_an_auditor_verifies_proves_erases_and_archives(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    connection = await create(kafka, prefix)
    signer = NoteSigner.generate(NAME)
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"kafka: {{bootstrap: '{kafka}'}}\ntopic_prefix: '{prefix}'\n")
    key = str(signer.key)

    def ares(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ares")), *words, "--settings", str(settings)],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def check(proof: Path) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-I", "verify_proof.py", str(proof), "--key", key],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        return done.returncode, done.stdout

    authority = StampServer(tmp_path / "authority")
    async with authority.served() as url:
        stamps = {"url": url, "roots": str(authority.roots), "timeout_seconds": 30}
        with NotaryProcess(kafka, prefix, tmp_path / "notary", [signer], stamps=stamps) as notary:
            await write(connection, prefix, 0, 20)
            await until_signed(connection, prefix, [signer.key], 100)
            assert notary.stop() == 0

    code, said = ares("audit", "verify", "--key", key, "--keep", "heads", "--json")
    report = json.loads(said)
    assert (code, report["holds"]) == (0, True)
    assert sum(part["equal"] for part in report["partitions"]) == 100
    check_stamps(report, key, authority, StampServer(tmp_path / "other"), ares)
    kept = sorted(str(file) for file in (tmp_path / "heads").iterdir())
    for known in (kept[0], "heads"):
        code, said = ares("audit", "verify", "--key", key, "--known", known, "--keep", "heads")
        assert (code, said.splitlines()[-1]) == (0, "all as signed")
    stranger = str(NoteSigner.generate(NAME).key)
    assert ares("audit", "verify", "--key", stranger, "--topic", "verdicts")[0] == 1

    (tmp_path / "verify_proof.py").write_bytes(
        (Path(__file__).parents[2] / "ares_stream/audit/verify_proof.py").read_bytes()
    )
    assert ares("audit", "prove", "key-1", "--out", "verdict.json")[0] == 0
    assert check(tmp_path / "verdict.json")[0] == 0
    assert ares("audit", "prove", "nobody")[0] == 2

    repair = ("audit", "prove", "key-1", "--topic", "repair", "--out", "repair.json")
    assert ares(*repair)[0] == 0
    assert "value" in (tmp_path / "repair.json").read_text()
    await erase_while_others_read(key, ares)
    assert check(tmp_path / "meanwhile.json")[0] == 0
    assert ares("audit", "erase", "key-1", "--by", "ann", "--reason", "asked")[0] == 2
    assert ares(*repair)[0] == 0
    proofs = json.loads((tmp_path / "repair.json").read_text())["proofs"]
    assert all(item["record"] is None for item in proofs)
    code, said = check(tmp_path / "repair.json")
    assert (
        code,
        said.count("a record that is not shown (its text was erased, or is kept back) is leaf"),
    ) == (0, 5)
    code, said = ares("audit", "verify", "--key", key, "--json")
    report = json.loads(said)
    assert (code, sum(part["erased"] for part in report["partitions"])) == (0, 20)

    await archive_and_restore(connection, kafka, prefix, tmp_path, ares)

    async with Journal(connection, f"{prefix}forger") as journal:
        await journal.append([OutboundRecord(f"{prefix}checkpoints", b"k", b"nothing")])
    code, said = ares("audit", "verify", "--key", key)
    assert (code, f"{prefix}checkpoints 0 offset" in said, "forged" in said) == (1, True, True)
    assert ares("trace", "nobody")[0] == 2


async def erase_while_others_read(key: str, ares: Callable[..., tuple[int, str]]) -> None:
    # Read and erased at the same moment: every answer is that of before or that of after.
    verify = ("audit", "verify", "--key", key, "--json")
    erase = ("audit", "erase", "key-1", "--by", "ann", "--reason", "asked")
    asked = [
        verify,
        erase,
        ("audit", "prove", "key-1", "--topic", "repair", "--out", "meanwhile.json"),
    ]
    (seen, told), (code, said), (shown, _) = await asyncio.gather(
        *(asyncio.to_thread(ares, *words) for words in asked)
    )
    assert (code, said.count("salt erased")) == (0, 10), said
    assert (seen, shown) == (0, 0), told
    counts = [(part["equal"], part["erased"]) for part in json.loads(told)["partitions"]]
    assert sum(equal + erased for equal, erased in counts) == 100
    # Two at once, for one id: the later word stands beside the first, and no salt comes back.
    twice = await asyncio.gather(
        *(asyncio.to_thread(ares, "audit", "erase", "key-2", *erase[3:]) for _ in range(2))
    )
    assert {item[0] for item in twice} <= {0, 2}
    assert any(item[0] == 0 for item in twice)
    code, said = ares("audit", "erase", "key-of-nobody", *erase[3:])
    assert (code, "no salt is of a record with that key" in said, "Traceback" in said) == (
        2, True, False,
    )  # fmt: skip


def check_stamps(
    report: Mapping[str, Any],
    key: str,
    authority: StampServer,
    other: StampServer,
    ares: Callable[..., tuple[int, str]],
) -> None:
    trees = [part for part in report["partitions"] if part["leaves"]]
    # One time stamp a tree: its first head's.
    assert [part["stamps"] for part in trees] == [1] * len(trees) == [1] * authority.asked
    assert {part["stamped_at"] for part in trees} == {None}
    words = ("audit", "verify", "--key", key, "--stamp-roots")
    code, said = ares(*words, str(authority.roots))
    assert (code, said.count("by time stamp")) == (0, len(trees))
    code, said = ares(*words, str(other.roots))
    assert (code, said.count("bad_stamp")) == (1, len(trees))


def in_order(records: Sequence[InboundRecord]) -> list[InboundRecord]:
    return sorted(records, key=lambda record: record.partition)


async def archive_and_restore(
    connection: KafkaConnection,
    kafka: str,
    prefix: str,
    tmp_path: Path,
    ares: Callable[..., tuple[int, str]],
) -> None:
    code, said = ares("archive", "write", "kept", "--topic", "verdicts")
    assert (code, said.split()[0]) == (0, "20")
    name = f"{prefix}verdicts"
    reader = ArchiveReader(str(tmp_path / "kept"))
    archived = [item async for item in reader.read(await reader.snapshot([name]))]
    # Partitions come as they are fetched; within each the order is that of the offsets.
    held = await content(connection, name)
    assert in_order(archived) == in_order(held)
    other = f"new-{prefix}"
    await create(kafka, other)
    assert ares("archive", "restore", "kept", "--topic", name, "--to-prefix", other)[0] == 0
    again = await content(connection, f"{other}verdicts")
    parts = [
        sorted((i.key or b"", i.value or b"", i.headers, i.timestamp_ms) for i in items)
        for items in (archived, again)
    ]
    assert parts[0] == parts[1]
