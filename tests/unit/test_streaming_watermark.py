"""Results come in any order; commits are contiguous prefixes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.streaming.watermark import Watermark

OFFSETS = st.sets(st.integers(0, 10_000), min_size=1, max_size=60).map(sorted)


@given(offsets=OFFSETS, data=st.data())
def test_only_the_contiguous_prefix_of_completed_offsets_is_ever_taken(
    offsets: list[int], data: st.DataObject
) -> None:
    watermark: Watermark[str] = Watermark()
    for offset in offsets:
        watermark.add(offset, 1)
    order = data.draw(st.permutations(offsets))
    completed: set[int] = set()
    taken: list[int] = []

    for offset in order:
        watermark.complete(offset, f"r{offset}")
        completed.add(offset)
        limit = data.draw(st.integers(0, 5))
        batch = watermark.take(limit)
        assert len(batch) <= limit
        assert all(result == f"r{number}" for number, result in batch)
        taken += [number for number, _ in batch]
        assert taken == offsets[: len(taken)]
        assert set(taken) <= completed
        prefix = next((i for i, number in enumerate(offsets) if number not in completed), None)
        assert len(taken) + watermark.ready == (len(offsets) if prefix is None else prefix)

    taken += [number for number, _ in watermark.take(len(offsets))]
    assert taken == offsets
    assert watermark.idle


@given(sizes=st.lists(st.integers(0, 1 << 20), min_size=1, max_size=50), limit=st.integers(1, 50))
def test_its_bytes_and_count_are_those_of_what_was_added_and_not_taken(
    sizes: list[int], limit: int
) -> None:
    watermark: Watermark[int] = Watermark()
    for offset, size in enumerate(sizes):
        watermark.add(offset, size)
        watermark.complete(offset, size)

    taken = watermark.take(limit)

    assert watermark.bytes == sum(sizes) - sum(size for _, size in taken)
    assert len(watermark) == len(sizes) - len(taken)


def test_one_missing_result_holds_back_all_that_come_after_it() -> None:
    watermark: Watermark[str] = Watermark()
    for offset in (5, 6, 9):
        watermark.add(offset, 10)
    watermark.complete(6, "b")
    watermark.complete(9, "c")

    assert (watermark.ready, watermark.take(9)) == (0, [])

    watermark.complete(5, "a")
    assert watermark.take(2) == [(5, "a"), (6, "b")]
    assert watermark.take(2) == [(9, "c")]


def test_an_offset_that_was_read_before_is_refused() -> None:
    watermark: Watermark[str] = Watermark()
    watermark.add(5, 1)
    with pytest.raises(ValueError, match="offset 5 follows 5"):
        watermark.add(5, 1)


def test_a_second_result_for_an_offset_is_refused() -> None:
    watermark: Watermark[str] = Watermark()
    watermark.add(5, 1)
    watermark.complete(5, "a")
    with pytest.raises(KeyError):
        watermark.complete(5, "b")


def test_no_offset_lies_below_the_first_of_a_partition() -> None:
    watermark: Watermark[str] = Watermark()
    with pytest.raises(ValueError, match="offset -1 follows -1"):
        watermark.add(-1, 1)
    watermark.add(0, 1)
