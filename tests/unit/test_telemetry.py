"""No library reports to its maker."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import ares_stream


def run(code: str, home: Path) -> list[Path]:
    """Files that an interpreter leaves in its home, with no variable that quiets a library."""
    home.mkdir()
    quiet = {*ares_stream.NO_TELEMETRY, "CI", "ORT_RUNNING_UNIT_TESTS"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        environment.pop(name, None)
    subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(home)},
        cwd=Path(__file__).parents[2],
        check=True,
        timeout=120,
    )
    return [path for path in home.rglob("*") if path.is_file()]


def test_onnxruntime_leaves_no_identifier_in_the_home_folder(tmp_path: Path) -> None:
    assert run("import ares_stream.scoring.runtime", tmp_path / "ours") == []


def test_without_us_it_would(tmp_path: Path) -> None:
    """Otherwise the test above shows nothing."""
    if tuple(map(int, version("onnxruntime").split(".")[:2])) < (1, 32):
        pytest.skip("this onnxruntime does not report")
    assert run("import onnxruntime", tmp_path / "theirs")


def test_the_hub_reports_nothing() -> None:
    code = "import ares_stream, huggingface_hub.constants as c; assert c.HF_HUB_DISABLE_TELEMETRY"
    quiet = {*ares_stream.NO_TELEMETRY}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
