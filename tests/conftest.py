"""What every test may use."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from ares_stream import errors

# How long an example takes says how busy the machine is. The suite gives one answer for one
# commit, so its examples follow from the tests' text; `make explore` draws new ones.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """What a service sets in its process (secrets to mask, logs, the search for cycles) ends with
    the test that ran it here."""
    secrets, threshold = set(errors._SECRETS), gc.get_threshold()
    configured, former = structlog.is_configured(), structlog.get_config()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    errors._SECRETS.clear()
    errors._SECRETS.update(secrets)
    if configured:
        structlog.configure(**former)
    else:
        structlog.reset_defaults()
    for handler in list(root.handlers):
        # pytest takes its own away.
        if handler not in handlers and not type(handler).__module__.startswith("_pytest"):
            root.removeHandler(handler)
    root.setLevel(level)
    if gc.get_threshold() != threshold:
        gc.unfreeze()
        gc.set_threshold(*threshold)


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts; the test skips where it is absent."""
    folder = Path(os.environ.get("ARES_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real texts at {folder}; name their folder in ARES_SHARED_DATA")
    return folder
