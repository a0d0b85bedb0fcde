"""Commands and services under strace: they look up no name, and call whom the settings name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from ares_stream.processes.broker import EmbeddedBroker
from tests.support import tiny_models
from tests.support.reader import Reader, policy_endpoint, readers_folder

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

if shutil.which("strace") is None:
    if os.environ.get("ARES_REQUIRE_STRACE") == "1":
        raise RuntimeError("ARES_REQUIRE_STRACE=1, and strace is not installed")
    pytest.skip("strace is not installed", allow_module_level=True)

CALL: Final = re.compile(r"\b(?:connect|sendto|sendmsg|sendmmsg)\(")
PEER: Final = re.compile(
    r"sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"([^\"]+)\""
)
NAMES: Final = re.compile(r"sun_path=\"[^\"]*(?:nscd|resolve)[^\"]*\"")
"""Sockets of the system's look-up services. Users are looked up there as well; where no service
is (ENOENT), a look-up of a host goes to a name server, and is seen as that."""


def behind(trace: Path) -> list[str]:
    # -D: the command stays our child, and gets our signals. --seccomp-bpf: no other system call
    # is stopped at, so a service starts in its usual time.
    strace = f"strace -D -f --seccomp-bpf -e trace=network -s 0 -o {trace}"
    return ["sh", "-c", f'echo $$ > {trace}.pid; exec {strace} "$@"', "sh"]


def whole(trace: Path) -> list[str]:
    """The trace's lines once it says that the command itself has ended."""
    pid = Path(f"{trace}.pid").read_text().strip()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        lines = trace.read_text(errors="replace").splitlines()
        if any(re.match(rf"{pid} +\+\+\+ ", line) for line in lines):
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{trace}: the trace does not end")


def peers(trace: Path) -> set[str]:
    """Whom the traced processes called: address:port, or the socket of a look-up service."""
    found: set[str] = set()
    for line in whole(trace):
        if CALL.search(line):
            found |= {f"{address}:{port}" for port, address in PEER.findall(line)}
            found |= set() if "ENOENT" in line else set(NAMES.findall(line))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("network")
    readers_folder(here)
    return here


@pytest.fixture(scope="module")
def services() -> Iterator[tuple[int, int]]:
    """Ports of a broker and of a policy's endpoint."""
    with policy_endpoint() as endpoint, EmbeddedBroker() as broker:
        yield int(broker.bootstrap.split(":")[-1]), endpoint


def test_a_look_up_and_a_foreign_address_are_seen(tmp_path: Path) -> None:
    calls = (
        "import socket\n"
        "try: socket.getaddrinfo('telemetry.invalid', 443)\n"
        "except OSError: pass\n"
        "with socket.socket(type=socket.SOCK_DGRAM) as one: one.connect(('192.0.2.1', 9))"
    )
    trace = tmp_path / "trace"
    subprocess.run([*behind(trace), sys.executable, "-c", calls], check=True, timeout=150)
    seen = peers(trace)
    assert "192.0.2.1:9" in seen
    assert len(seen) > 1, "the look-up of a name is not seen"


def test_a_scan_calls_nobody(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    Reader(folder, {"9092": 9092}, behind(trace)).type(
        "ares scan conversations.jsonl --harm bundles/judge --reward bundles/reward "
        "--verdicts verdicts.jsonl --report report.html --json summary.json"
    )
    assert peers(trace) == set()


@pytest.mark.torch
def test_an_export_calls_nobody(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    tiny_models.checkpoint(folder / "checkpoint", "Bert")
    Reader(folder, {"9092": 9092}, behind(trace)).type(
        "ares bundle export harm checkpoint --out bundles/exported"
    )
    assert peers(trace) == set()


def test_scorer_and_prober_call_the_broker_and_the_endpoint_that_their_settings_name(
    folder: Path, services: tuple[int, int], tmp_path: Path
) -> None:
    kafka, endpoint = services
    settings = {
        "kafka": {"bootstrap": f"127.0.0.1:{kafka}"},
        "scorer": {"harm": ["bundles/judge"], "reward": "bundles/reward"},
    }
    campaign = {
        "name": "network",
        "budget": 40,
        "target": {
            "endpoint": {
                "url": f"http://127.0.0.1:{endpoint}/v1",
                "model": "assistant",
                "version": "1",
            }
        },
    }
    (folder / "ares.yaml").write_text(yaml.safe_dump(settings))
    (folder / "campaign.yaml").write_text(yaml.safe_dump(campaign))
    ports = {"9092": kafka}
    Reader(folder, ports).type("ares topics create --settings ares.yaml")
    scorer = Reader(folder, ports, behind(tmp_path / "scorer"))
    prober = Reader(folder, ports, behind(tmp_path / "prober"))
    try:
        scorer.type("ares scorer --settings ares.yaml")
        prober.type("ares probe run campaign.yaml --settings ares.yaml")
    finally:
        codes = scorer.close()
    assert codes == {"scorer": 0}
    broker = {f"127.0.0.1:{kafka}"}
    assert peers(tmp_path / "scorer") == broker
    assert peers(tmp_path / "prober") == broker | {f"127.0.0.1:{endpoint}"}
