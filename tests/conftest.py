"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("ares", deadline=None)
hypothesis.settings.load_profile("ares")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts; the test skips where it is absent."""
    folder = Path(os.environ.get("ARES_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real texts at {folder}; name their folder in ARES_SHARED_DATA")
    return folder
