"""A million bent records through reading, decoding and the scorer's handler: each offset becomes
one verdict or one dead letter, and memory stays flat.

    ARES_FUZZ_RECORDS=1000000 ARES_FUZZ_SEED=7 pytest tests/chaos/test_fuzz.py -s
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections import Counter

import psutil
import pytest

from ares_stream.streaming.batches import Batches, BatchReader
from ares_stream.streaming.deadletters import dead_letter, source_of
from ares_stream.streaming.records import InboundRecord, OutboundRecord, ReadLimits, Rejection
from ares_stream.streaming.session import damaged
from tests.support.mutations import BATCH, bent_batch, bent_record, handler

pytestmark = pytest.mark.timeout(7200)

RECORDS = int(os.environ.get("ARES_FUZZ_RECORDS", "20000"))
SEED = int(os.environ.get("ARES_FUZZ_SEED", "1"))
LIMIT = 1_000_000


def test_each_bent_record_is_one_verdict_or_one_dead_letter_and_memory_is_flat() -> None:
    chance = random.Random(SEED)
    scoring = handler("in")
    process = psutil.Process()
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    started, early = time.monotonic(), 0

    async def one(base: int) -> None:
        records = [bent_record(base + n, chance) for n in range(BATCH)]
        data = bent_batch(records, chance, base)
        found = Batches("in", 0, data, position=base, highwater=base + BATCH, aborted=None)
        read = [record for raw in found for record in BatchReader(raw, ReadLimits())]
        assert [record.offset for record in read] == list(range(base, base + BATCH))
        whole = [record for record in read if record.damage is None]
        outcomes = await scoring.handle(whole)
        assert len(outcomes) == len(whole)
        for record, outcome in zip(whole, outcomes, strict=True):
            if isinstance(outcome, Rejection):
                counts["dead letters"] += 1
                reasons[outcome.reason.partition(":")[0][:40]] += 1
                check(record, outcome)
            else:
                counts["verdicts"] += 1
                assert outcome[0].topic == "verdicts"
        for record in read:
            if record.damage is not None:
                counts["coordinates"] += 1
                check(record, damaged(record.damage))

    def check(record: InboundRecord, rejection: Rejection) -> None:
        letter = dead_letter(record, rejection, "dead", service="s", failed_at_ms=1, limit=LIMIT)
        assert source_of(_read_back(letter)) == ("in", 0, record.offset)
        if record.damage is None and (record.key is not None or record.value is not None):
            assert (letter.key, letter.value) == (record.key, record.value)
            assert letter.headers[: len(record.headers)] == record.headers

    async def all_of_them() -> None:
        nonlocal early
        for base in itertools.count(0, BATCH):
            if base >= RECORDS:
                return
            await one(base)
            if early == 0 and base >= RECORDS // 5:
                early = process.memory_info().rss

    asyncio.run(all_of_them())
    grown = process.memory_info().rss - early
    seconds = time.monotonic() - started
    print(
        f"\n{counts.total()} records, seed {SEED}, {seconds:.0f} s: {dict(counts)}; resident "
        f"memory {early >> 20} MiB after a fifth, {grown / 2**20:+.1f} MiB at the end; "
        f"{len(reasons)} reasons"
    )
    assert counts.total() == -(-RECORDS // BATCH) * BATCH
    assert min(counts.values()) > RECORDS // 100
    assert grown < 32 << 20


def _read_back(letter: OutboundRecord) -> InboundRecord:
    return InboundRecord("dead", 0, 0, -1, letter.key, letter.value, letter.headers)
