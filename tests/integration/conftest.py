"""A real broker for the tests that need one, and names that no other test uses."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ares_stream.errors import AresError
from ares_stream.streaming.broker import EmbeddedBroker


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
    return stack.enter_context(EmbeddedBroker()).bootstrap


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A topic prefix of this test's own, so that tests share a broker and not topics."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)[:60]
    return f"{name}-{os.urandom(4).hex()}."
