"""A real broker for the tests that need one, and names that no other test uses."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from ares_stream.errors import AresError
from ares_stream.processes.broker import EmbeddedBroker

if TYPE_CHECKING:
    from ares_stream.lab.victims.victim import Victim


def _docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=10, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """host:port of a broker: ARES_TEST_BOOTSTRAP, testcontainers, or the embedded one.

    Without any the test skips and says why; ARES_REQUIRE_KAFKA=1 makes that a failure.
    """
    if given := os.environ.get("ARES_TEST_BOOTSTRAP"):
        yield given
        return
    with ExitStack() as stack:
        try:
            bootstrap = _start(stack)
        except (AresError, OSError) as error:
            reason = f"no Kafka broker: {error}"
            if os.environ.get("ARES_REQUIRE_KAFKA") == "1":
                pytest.fail(reason)
            pytest.skip(reason)
        yield bootstrap


def _start(stack: ExitStack) -> str:
    if _docker_answers():
        from testcontainers.kafka import KafkaContainer

        container = stack.enter_context(KafkaContainer())
        return str(container.get_bootstrap_server())
    # Records of fixed times are old: the broker would delete them when it next looks.
    forever = {"log.retention.ms": "-1"}
    return stack.enter_context(EmbeddedBroker(properties=forever)).bootstrap


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A topic prefix of this test's own, so that tests share a broker and not topics."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60]
    return f"{name}-{os.urandom(4).hex()}."


@pytest.fixture(scope="session")
def victim_bundles() -> tuple[Victim, Path, Path]:
    """The demo's victim with its harm and reward bundle, in the demo's cache; made once, however
    many processes run tests."""
    from ares_stream.lab.victims.traffic import export_victim_bundles
    from ares_stream.lab.victims.victim import DEFAULT_CACHE, make_victim

    DEFAULT_CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(DEFAULT_CACHE / "tests.lock"):
        victim = make_victim(7)
        harm, reward = export_victim_bundles(victim, DEFAULT_CACHE)
        # Settings files that name them lie elsewhere.
        return victim, harm.absolute(), reward.absolute()


@pytest.fixture(scope="session")
def victim(victim_bundles: tuple[Victim, Path, Path]) -> Victim:
    """That victim alone."""
    return victim_bundles[0]


@pytest.fixture(scope="session")
def bundles(victim_bundles: tuple[Victim, Path, Path]) -> tuple[Path, Path]:
    """Its harm and reward bundle."""
    return victim_bundles[1:]
