"""What a program of somebody else prints as it works: progress, or a line of its log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ares_stream.processes.child import Limits, run_child
from ares_stream.services.metrics import MAX_STAGES, RepairerMetrics

LIMITS = Limits(60.0, 2 << 30)
ODD = (
    '{"stage": "train", "done": Infinity, "total": 3}',
    '{"stage": "train", "done": 1e999, "total": 3}',
    '{"stage": "train", "done": NaN, "total": 3}',
    '{"stage": "train", "done": 1' + "0" * 400 + ', "total": 1}',
    '{"stage": "train", "done": -1, "total": 3}',
    '{"stage": "\\ud83d", "done": 1, "total": 3}',
    '{"stage": "train", "done": [1], "total": 3}',
    '{"a": ' + "[" * 100_000,
    "[]", "null", "\x00", "",
)  # fmt: skip


@pytest.mark.parametrize("line", ODD, ids=lambda line: ascii(line[:40]))
async def test_an_odd_line_is_no_progress_and_ends_nothing(tmp_path: Path, line: str) -> None:
    (tmp_path / "lines").write_text(line + '\n{"stage": "train", "done": 1, "total": 2}\n')
    printed = "import sys; print(open(sys.argv[1] + '/lines').read())"
    metrics = RepairerMetrics(CollectorRegistry())
    log = tmp_path / "log"
    await run_child([sys.executable, "-c", printed], tmp_path, LIMITS, log, metrics.on_progress)
    assert b'stage="train"} 0.5' in generate_latest(metrics.registry)
    assert line in log.read_text()


def test_a_program_that_names_each_batch_a_stage_makes_no_metric_of_each() -> None:
    metrics = RepairerMetrics(CollectorRegistry())
    for number in range(5_000):
        metrics.on_progress(f"batch {number}", 1, 2)
    metrics.on_progress("batch 0", 2, 2)
    text = generate_latest(metrics.registry).decode()
    assert text.count('stage="batch') == MAX_STAGES
    assert 'stage="batch 0"} 1.0' in text
    metrics.on_idle()
    assert 'stage="batch' not in generate_latest(metrics.registry).decode()
