"""200,000 bad records through the scorer's handler: resident memory is flat.

ARES_SOAK_RECORDS=200000 pytest tests/chaos/test_soak.py -s
"""

from __future__ import annotations

import asyncio
import json
import os

import psutil
import pytest

from ares_stream.streaming.records import InboundRecord, Rejection
from tests.support.mutations import document, handler

pytestmark = pytest.mark.timeout(3600)

RECORDS = int(os.environ.get("ARES_SOAK_RECORDS", "200000"))
WINDOW = 200


def test_memory_is_flat_while_every_record_is_refused() -> None:
    scoring = handler("in")
    process = psutil.Process()
    blank = document(0) | {"messages": [{"role": "user", "content": " "}]}
    early_time = document(0) | {"occurred_at": "1960-01-01T00:00:00Z"}
    values = [json.dumps(made | {"response": "x" * 4000}).encode() for made in (blank, early_time)]

    async def soak(first: int, last: int) -> None:
        for base in range(first, last, WINDOW):
            records = [
                InboundRecord("in", 0, base + n, 1, b"k", bytes(bytearray(values[n % 2])))
                for n in range(WINDOW)
            ]
            outcomes = await scoring.handle(records)
            assert all(isinstance(outcome, Rejection) for outcome in outcomes)

    fifth = RECORDS // 5
    asyncio.run(soak(0, fifth))
    early = process.memory_info().rss
    asyncio.run(soak(fifth, RECORDS))
    grown = process.memory_info().rss - early
    print(f"\n{RECORDS} refused records: {grown / 2**20:+.1f} MiB over the last four fifths")
    assert grown < 16 << 20
