"""The prober killed at random moments, over and over; then its state and what it published.

ARES_CHAOS_PROBER_KILLS=100 pytest tests/chaos/test_prober_kills.py
"""

import os
from pathlib import Path

import pytest

from ares_stream.streaming.broker import EmbeddedBroker
from tests.integration.probing import kill_and_compare

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(1800)]

KILLS = int(os.environ.get("ARES_CHAOS_PROBER_KILLS", "20"))


async def test_random_kills_of_the_prober(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        await kill_and_compare(broker.bootstrap, "chaos.", tmp_path, KILLS)
    print(f"{KILLS} kills: the same state, nothing published twice")
