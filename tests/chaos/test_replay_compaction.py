"""An input topic that a broker has really compacted: verdicts whose records are gone cannot be
proven, and the replay says of each that it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.streaming.connection import KafkaConnection
from ares_stream.streaming.reader import read, snapshot
from tests.support.golden_month import Bundles
from tests.support.lived import Lived

COUNT, KEYS = 70, 7
CLEANED_SECONDS = 90.0
"""A cleaner looks every 15 s."""


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as started:
        yield started


@pytest.mark.kafka
@pytest.mark.timeout(240)
async def test_verdicts_whose_records_were_compacted_are_unexpected_each_at_its_offset(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    connection = KafkaConnection(bootstrap=broker.bootstrap)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "work").mkdir()
    lived = Lived(connection, "x.", Bundles.write(tmp_path / "bundles"), tmp_path / "work")
    await lived.create(
        cleanup_policy="compact", segment_ms="100", min_cleanable_dirty_ratio="0.001",
        min_compaction_lag_ms="0", max_compaction_lag_ms="1",
    )  # fmt: skip
    await lived.publish([lived.record(number) for number in range(COUNT)])
    assert await lived.live() == COUNT
    assert (await lived.replay())["holds"] is True

    async def offsets() -> set[tuple[int, int]]:
        ranges = await snapshot(connection, [lived.production])
        return {(item.partition, item.offset) async for item in read(connection, ranges)}

    whole = await offsets()
    async with asyncio.timeout(CLEANED_SECONDS):
        while len(kept := await offsets()) > COUNT // 2 + KEYS:
            # A segment is closed by the record behind it, and only closed ones are cleaned.
            await lived.publish([lived.record(number) for number in range(KEYS)])
            await asyncio.sleep(1)
    gone = whole - kept
    assert gone
    found = await lived.replay()
    assert found["holds"] is False
    named = {(item["partition"], item["offset"]): item for item in found["differences"]}
    # The cleaner may have come again meanwhile.
    assert gone <= set(named) <= whole
    assert {item["agreement"] for item in named.values()} == {"unexpected"}
    assert all("compacted" in item["detail"] for item in named.values())
