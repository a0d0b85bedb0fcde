"""The prober killed at random moments, over and over; then its state and what it published.

ARES_CHAOS_PROBER_KILLS=100 pytest -s tests/chaos/test_prober_kills.py
"""

import os
from pathlib import Path

import pytest

from ares_stream.processes.broker import EmbeddedBroker
from tests.support.probing import kill_and_compare

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("ARES_CHAOS_PROBER_KILLS", "20"))


@pytest.mark.parametrize("attacked", [False, True], ids=["alone", "with an attacker"])
async def test_random_kills_of_the_prober(attacked: bool, tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        counted = await kill_and_compare(
            broker.bootstrap, "chaos.", tmp_path, KILLS, attacked=attacked
        )
    print(counted)
