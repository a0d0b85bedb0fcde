"""Every command of the docs runs as written, in the order in which a reader meets it.

The folder holds what the pages take for granted. A service starts where its command stands and
stops at the end. Ports are changed, for a machine runs more than one test. What takes minutes, or
needs what only another command leaves behind, stands in ELSEWHERE with the test that runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from ares_stream.processes.ports import free_port
from tests.support.reader import Reader, policy_endpoint, readers_folder
from tests.unit.test_docs import ROOT, code_lines

pytestmark = pytest.mark.kafka

PAGES: Final = ("scan.md", "bundles.md", "topics.md", "scorer.md", "probes.md")
COMMAND: Final = re.compile(r"^([A-Z_]+=\S+ )*(ares|make|python) ")


def documented(page: str) -> list[str]:
    return [line for line in code_lines(ROOT / "docs" / page) if COMMAND.match(line)]


def yaml_block(page: str, holds: str) -> str:
    """The YAML of a page in which a word stands."""
    for block in re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL):
        if holds in block:
            return str(block)
    raise AssertionError(f"{page}: no YAML with {holds}")


ELSEWHERE: Final = {
    r"make demo|ares demo|ares scan build/demo": "integration/test_demo.py",
    r"make rules": "unit/test_chart.py",
    r"make dashboards": "unit/test_dashboards.py",
    r"ares bundle export": "integration/test_bundle_command.py",
    r"ares bundle train": "integration/test_bundle_train.py",
    r"ares bundle import": "unit/test_onnx_import.py",
    r"ares probe triggers": "integration/test_probe_triggers.py",
    r"ares probe (import|export) ": "integration/test_interchange.py",
    r"ares loop": "integration/test_loop.py",
    r"ares repairer": "integration/test_repair_loop.py",
    r"ares release": "integration/test_releases.py",
    r"ares repair show": "integration/test_forecast_command.py",
    r"ares repair export": "unit/test_repair_exports.py",
    r"ares anchors make": "integration/test_monitor.py",
    r"ares forecast": "integration/test_forecast_command.py",
    r"ares (monitor|rates|alarms)": "integration/test_monitor.py",
    r"ares audit merge": "unit/test_replay_merging.py",
    r"ares (audit|archive|trace)|python verify_proof": "integration/test_audit_command.py",
    r"ares replay": "integration/test_replay.py",
    r"ares notary": "integration/test_notary.py",
    r"ares evidence": "integration/test_evidence_command.py",
    r"ares console": "integration/test_console.py",
    r"ares (review|bundle recalibrate)": "integration/test_review_command.py",
    r"ares send .*:9094": "integration/test_send.py",
    r"ares bench chaos": "integration/test_chaos_bench.py",
}
"""Commands that need minutes, or a repair or an alarm that went before, and the test of each."""
NOWHERE: Final = {
    r"make gpu": "a GPU's",
    r"make bench|(OMP_NUM_THREADS=1 )?python -m benchmarks": "a measurement",
    r"ares bench replay": "a measurement",
    r"ares bench (probes|repair|repair-cost|repair-poison|attribution|monitor)": "a measurement",
    r"ares bench (audit|explain|forecast|intervals|throughput)": "a measurement",
    r"ares bench victim|python -m tests.cluster": "a cluster's",
    r"ARES_KAFKA__BOOTSTRAP=broker:9093": "a broker of the reader's",
    r"ares (map|probe) --help": "help, of which unit/test_help.py reads every page",
}


def one_of(patterns: Iterable[str], line: str) -> bool:
    return any(re.match(pattern, line) for pattern in patterns)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[int]:
    with policy_endpoint() as port:
        yield port


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, endpoint: int) -> Path:
    """A reader's folder, with the pages' own settings and campaigns in it."""
    here = tmp_path_factory.mktemp("reader")
    readers_folder(here)
    campaign = yaml_block("probes.md", "# campaign.yaml")
    campaign = campaign.replace("http://policy:8000", f"http://127.0.0.1:{endpoint}")
    campaign = re.sub(r"budget: \d+", "budget: 40", campaign)
    (here / "campaign.yaml").write_text(campaign)
    (here / "other.yaml").write_text(campaign.replace("nightly", "other"))
    (here / "ours.yaml").write_text(yaml_block("probes.md", "tax_evasion"))
    settings = {
        "kafka": {"bootstrap": "127.0.0.1:9092"},
        "scorer": {"harm": ["bundles/judge"], "reward": "bundles/reward"},
    }
    (here / "ares.yaml").write_text(yaml.safe_dump(settings))
    return here


@pytest.mark.timeout(600)
def test_the_commands_of_the_pages_run_in_the_order_of_a_reader(
    folder: Path, endpoint: int
) -> None:
    reader = Reader(folder, {"9092": free_port(), "8000": endpoint})
    try:
        for page in PAGES:
            for line in documented(page):
                if not one_of((*ELSEWHERE, *NOWHERE), line):
                    reader.type(line)
    finally:
        codes = reader.close()
        for line, seconds in reader.seconds.items():
            print(f"{seconds:5.1f} s  {line}")
    assert set(codes.values()) == {0}, codes
    assert {"broker", "scorer"} <= set(codes)
    left = [path for path in (folder / "home").rglob("*") if path.is_file()]
    assert left == [], "written outside the reader's folder"


def test_every_command_of_the_other_pages_runs_in_a_test_that_is_named() -> None:
    others = sorted({page.name for page in (ROOT / "docs").glob("*.md")} - set(PAGES))
    lines = [line for page in others for line in documented(page)]
    # The runbook repeats commands of the pages above.
    seen = {line.split("#")[0].strip() for page in PAGES for line in documented(page)}
    repeated = r"ares (doctor|topics check|verdicts tail)"
    assert [
        line
        for line in lines
        if not one_of((*ELSEWHERE, *NOWHERE, repeated), line) and line not in seen
    ] == []


@pytest.mark.parametrize(("pattern", "file"), ELSEWHERE.items())
def test_the_named_test_is_there_and_types_the_command(pattern: str, file: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    words = re.findall(r"(?:ares|make) ([a-z]+)", pattern) or re.findall(r"\((\w+)", pattern)
    assert any(re.search(rf"\b{word}", text) for word in words)
    assert "def test_" in text
