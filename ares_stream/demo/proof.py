"""The demo's end: a proof of one verdict, and a replay of the whole run, by the programs that an
auditor uses."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ares_stream.audit import verify_proof
from ares_stream.audit.checking import prove_records
from ares_stream.audit.notes import NoteSigner
from ares_stream.audit.ranges import TopicReader
from ares_stream.errors import InputError, ScoringError
from ares_stream.files import read_json, write_document, write_whole
from ares_stream.lab.streams import PREFIX
from ares_stream.processes.service import LOOK_SECONDS, service_process
from ares_stream.records.topics import VERDICTS
from ares_stream.records.verdict import FailureClass, Verdict
from ares_stream.streaming.connection import KafkaConnection

NAME: Final = "demo.example/ares"
SECONDS: Final = 90.0
"""For the notary to sign what is there, and for the replay; each takes some seconds."""


@dataclass(frozen=True, slots=True)
class Proven:
    """What was proven: `verdict` is the id of the one with a proof, in the file `proof`, which
    holds for the public key `key`; of the replay how records came out, and the SHA-256 of what it
    read."""

    verdict: str
    proof: str
    key: str
    holds: bool
    counts: dict[str, int]
    read_digest: str

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


async def prove_and_replay(
    connection: KafkaConnection, verdicts: Sequence[Verdict], out: Path, work: Path
) -> Proven | None:
    """Prove the gravest verdict and replay the run, both at once. None without a verdict.

    Raises ScoringError where the notary does not sign or the replay does not run.
    """
    if not verdicts:
        return None
    gravest = max(verdicts, key=_gravity)
    proof, replay = await asyncio.gather(
        _proof(connection, gravest, out / "proof.json", work), _replay(out, work)
    )
    return Proven(
        gravest.id, str(out / "proof.json"), proof, replay["holds"], replay["counts"],
        replay["read_digest"],
    )  # fmt: skip


def _gravity(verdict: Verdict) -> tuple[bool, float]:
    coupled = verdict.failure_class is FailureClass.COUPLED_FAILURE
    return coupled, verdict.harm.probability * verdict.reward.quantile


async def _proof(connection: KafkaConnection, verdict: Verdict, file: Path, work: Path) -> str:
    """Write it, check it by the auditor's own program, and return the public key."""
    signer = NoteSigner.generate(NAME)
    key = work / "notary.pem"
    write_whole(key, signer.pem())
    settings = {
        "kafka": {"bootstrap": connection.bootstrap},
        "topic_prefix": PREFIX,
        "http": {"port": 0},
        "notary": {
            "group": f"{PREFIX}notary",
            "name": NAME,
            "keys": [str(key)],
            "topics": [VERDICTS],
            "checkpoint_seconds": 0.5,
        },
    }
    reader, deadline = TopicReader(connection), time.monotonic() + SECONDS
    async with service_process("notary", settings, work) as notary:
        while True:
            notary.check()
            try:
                document = await prove_records(
                    reader, PREFIX, VERDICTS, selector=verdict.interaction_id, place=None
                )
            except InputError as error:
                if time.monotonic() > deadline:
                    raise ScoringError(f"the notary did not sign in time: {error}") from None
                await asyncio.sleep(LOOK_SECONDS)
            else:
                break
        await notary.stop()
    keys = [verify_proof.parse_key(str(signer.key))]
    for item in document["proofs"]:
        verify_proof.check(item, keys, [])
    write_document(file, document)
    return str(signer.key)


async def _replay(out: Path, work: Path) -> dict[str, Any]:
    """`ares replay` with the scorer's own settings and the registry of the repairs."""
    settings = yaml.safe_load((work / "scorer.yaml").read_text(encoding="utf-8"))
    settings["registry"] = {"root": str(work / "registry")}
    file, report = work / "replay.yaml", (out / "replay.json").absolute()
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ares_stream", "replay", "--settings", str(file)),
        *("--work", str(work / "replay"), "--workers", "1"),
        *("--json", str(report), "--html", str(report.with_suffix(".html"))),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={key: value for key, value in os.environ.items() if not key.startswith("ARES_")},
    )
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    except TimeoutError:
        raise ScoringError(f"the replay took more than {SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in (0, 1):
        last = said.decode(errors="replace").strip().splitlines()[-1:]
        raise ScoringError(f"the replay ended with {process.returncode}: {json.dumps(last)}")
    document: dict[str, Any] = read_json(report, dict)
    return document
