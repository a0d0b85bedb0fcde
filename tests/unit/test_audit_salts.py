"""A record has one salt, whichever notary reads it, and one that was erased has none again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.audit.leaves import SALT_BYTES, subject_hash
from ares_stream.audit.salts import Salts
from ares_stream.records.base import EPOCH
from ares_stream.records.checkpoint import Salt
from ares_stream.streaming.records import InboundRecord

AT_MS = 1_790_000_000_000


def record(offset: int, key: bytes | None = b"key", at_ms: int = AT_MS) -> InboundRecord:
    return InboundRecord("ares.repair", 0, offset, at_ms, key, b"text")


def erasure(offset: int, topic_id: str | None = None, at_ms: int = AT_MS) -> Salt:
    at = EPOCH + timedelta(milliseconds=at_ms)
    return Salt(
        topic="ares.repair", partition=0, offset=offset, topic_id=topic_id,
        erased_at=at, erased_by="ann",
    )  # fmt: skip


KEYS = st.none() | st.binary(max_size=3)


@given(st.lists(st.tuples(KEYS, st.booleans(), st.booleans()), max_size=12), st.booleans())
def test_a_second_notary_gives_each_record_the_salt_that_it_has(
    records: list[tuple[bytes | None, bool, bool]], twice: bool
) -> None:
    first, second = Salts(), Salts()
    salts: dict[int, bytes] = {}
    for offset, (key, is_written, is_erased) in enumerate(records):
        salts[offset], drawn = first.of(record(offset, key), "one")
        assert drawn is not None
        assert len(salts[offset]) == SALT_BYTES
        assert drawn.subject == subject_hash(salts[offset], key)
        # The topic is compacted, or not yet; an erasure may even stand in front of its salt.
        stands = [drawn] * is_written + [erasure(offset, "one")] * is_erased
        for item in [*stands, *(stands[::-1] if twice else ())]:
            second.recall(item)
    for offset, (key, is_written, is_erased) in enumerate(records):
        salt, drawn = second.of(record(offset, key), "one")
        if is_erased:
            assert (drawn, salt == salts[offset]) == (None, False)
        elif is_written:
            assert (drawn, salt) == (None, salts[offset])
        else:
            assert drawn is not None
            assert salt not in salts.values()


def test_a_salt_of_another_key_is_of_another_record() -> None:
    salts = Salts()
    _, drawn = Salts().of(record(7, b"one"))
    assert drawn is not None
    salts.recall(drawn)
    salt, other = salts.of(record(7, b"two"))
    assert other is not None
    assert salt not in (None, drawn.salt)


@pytest.mark.parametrize(
    ("topic_id", "late_ms", "has_salt"),
    [
        ("other", 1, True),
        ("other", 0, False),
        ("same", 1, False),
        ("same", 10**12, False),
        (None, 1, False),
    ],
)
def test_an_erasure_is_another_records_only_where_topic_and_time_say_so(
    topic_id: str | None, late_ms: int, has_salt: bool
) -> None:
    salts = Salts()
    salts.recall(erasure(3, "same"))
    _, drawn = salts.of(record(3, at_ms=AT_MS + late_ms), topic_id)
    assert (drawn is not None) == has_salt


def test_an_erasure_that_names_no_topic_counts_for_every_one() -> None:
    salts = Salts()
    salts.recall(erasure(3))
    assert salts.of(record(3, at_ms=AT_MS + 10**12), "other")[1] is None
