"""What a megabyte of each codec can take of memory, at its worst, is bounded and told.

pytest tests/chaos/test_bombs.py -s     # prints the table of docs/reliability.md
"""

from __future__ import annotations

import asyncio
import re

import pytest

from ares_stream.processes.broker import EmbeddedBroker
from tests.support.bombs import (
    INPUTS,
    PARTITIONS,
    measured,
    measured_everywhere,
    send_everywhere,
)
from tests.support.sessions import Copying

BOUND_MIB = {"zstd": 160}
"""A zstd frame may look back over 128 MiB; what a batch may hold bounds what of it is used."""

EVERYWHERE_MIB = 320
"""What is in flight (64 MiB), as much again compressed, and one batch while it is read."""


@pytest.mark.parametrize("name", INPUTS)
def test_reading_the_worst_input_of_a_codec_stays_within_its_bound(name: str) -> None:
    line = measured(name)
    print(line)
    peak = re.search(r"peak \+(\d+) MiB", line)
    assert peak is not None
    assert int(peak[1]) < BOUND_MIB.get(name, 100)


@pytest.mark.kafka
@pytest.mark.timeout(600)
async def test_bombs_of_every_codec_on_sixteen_partitions_at_once_stay_within_one_bound() -> None:
    with EmbeddedBroker() as broker:
        copying = Copying(broker.bootstrap, "bombs.", partitions=PARTITIONS)
        await copying.create()
        await send_everywhere(copying)
        line = await asyncio.to_thread(measured_everywhere, copying)
    print(line)
    peak = re.search(r"peak \+(\d+) MiB, 16 dead letters", line)
    assert peak is not None
    assert int(peak[1]) < EVERYWHERE_MIB
