"""`ares bench throughput` on a load of seconds: who takes part is measured to the last verdict."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import pytest

from ares_stream.cli.bench_throughput import Name
from ares_stream.errors import ScoringError
from ares_stream.lab.experiments.throughput.models import null_pair
from ares_stream.lab.experiments.throughput.profiles import HAND, PROFILES, Cell, Load, Profile
from ares_stream.lab.experiments.throughput.report import environment, lines, tables
from ares_stream.lab.experiments.throughput.run import Bench
from ares_stream.lab.experiments.throughput.scanning import scan, write_lines

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


def test_a_verdict_of_each_record_is_waited_for_and_its_cost_told(tmp_path: Path) -> None:
    stages: list[str] = []
    bench = Bench(tmp_path / "models", tmp_path, peers_python=None, progress=stages.append)
    profile = Profile(
        cells=[Cell("null", 2, [Load(500, 200)], rounds=2, shares=[0.3], steady_seconds=1.0)],
        scans=[("null", Load(500, 300))],
        scan_rounds=1,
    )
    document = {"environment": environment(None), **bench.run(profile)}

    assert [row["contestant"] for row in document["starts"]] == list(HAND)
    ours, theirs = document["throughput"]
    assert (ours["guarantee"], theirs["guarantee"]) == ("exactly once", "exactly once")
    for row in (ours, theirs):
        cost = row["cpu_microseconds"]
        assert 0 < cost["low"] <= cost["median"] <= cost["high"]
        assert row["records_per_second"]["low"] > 0
    for row in document["latency"]:
        seen = row["milliseconds"]
        assert 0 < seen["median"] <= seen["p90"] <= seen["p99"]
    for row in document["scan"]:
        assert row["cpu_seconds"]["median"] > 0
        assert 30 < row["peak_mebibytes"] < 1000
    rows = [line.split("|")[1:-1] for line in tables(document).splitlines()]
    share = next(row[-1] for row in rows if len(row) == 6 and row[1] == " confluent ")
    own, peer = (row["cpu_microseconds"]["median"] for row in (ours, theirs))
    assert float(share) == pytest.approx(own / peer, abs=0.01)
    page = "\n".join(lines(document))
    assert "x the best peer" in page
    assert "ares scan" in page
    assert any("confluent" in stage for stage in stages)


def test_every_profile_can_be_named() -> None:
    assert get_args(Name) == tuple(PROFILES)


def test_a_scan_that_fails_says_why(tmp_path: Path) -> None:
    pair = null_pair(tmp_path / "models")
    file = tmp_path / "lines.jsonl"
    write_lines(file, [b"{}"], 3)
    started = time.monotonic()
    with pytest.raises(ScoringError, match="line 1"):
        scan("ares scan", pair, file, tmp_path)
    assert time.monotonic() - started < 60
