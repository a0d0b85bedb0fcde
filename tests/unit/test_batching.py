"""Inputs are grouped so that nothing is lost and little is padded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.scoring.batching import CPU, GPU, BatchPolicy, padding_share, plan

lengths = st.lists(st.integers(1, 3000), max_size=200)
policies = st.builds(
    BatchPolicy,
    tokens=st.integers(1, 5000),
    records=st.integers(1, 64),
    padding=st.floats(0, 1),
) | st.sampled_from([CPU, GPU])


@given(lengths, policies)
def test_every_input_is_in_exactly_one_batch(lengths: list[int], policy: BatchPolicy) -> None:
    batches = plan(lengths, policy)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths, policies)
def test_a_batch_keeps_to_its_policy_or_is_one_long_input(
    lengths: list[int], policy: BatchPolicy
) -> None:
    for batch in plan(lengths, policy):
        inside = [lengths[index] for index in batch]
        assert len(batch) <= policy.records
        assert len(batch) * max(inside) <= policy.tokens or len(batch) == 1
        assert padding_share(inside) <= policy.padding + 1e-9


@given(lengths, policies)
def test_the_longest_runs_first_and_batches_do_not_overlap(
    lengths: list[int], policy: BatchPolicy
) -> None:
    order = [lengths[index] for batch in plan(lengths, policy) for index in batch]
    assert order == sorted(lengths, reverse=True)


@given(lengths, policies)
def test_the_order_of_arrival_does_not_change_the_shapes_run(
    lengths: list[int], policy: BatchPolicy
) -> None:
    def shapes(items: list[int]) -> list[tuple[int, int]]:
        return [(len(batch), items[batch[0]]) for batch in plan(items, policy)]

    assert shapes(lengths) == shapes(lengths[::-1])


def test_equal_lengths_fill_a_batch_to_its_bounds() -> None:
    assert [len(batch) for batch in plan([64] * 40, CPU)] == [4] * 10
    assert [len(batch) for batch in plan([8] * 70, CPU)] == [32, 32, 6]


def test_a_short_input_does_not_join_a_long_one_on_a_cpu() -> None:
    assert plan([200, 20], CPU) == [[0], [1]]
    assert plan([120, 115], CPU) == [[0, 1]]
    assert plan([200, 190, 20], GPU) == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("lengths", "share"), [([], 0.0), ([7], 0.0), ([4, 4], 0.0), ([4, 2], 0.25), ([9, 0], 0.5)]
)
def test_the_padding_share_is_padding_over_all(lengths: list[int], share: float) -> None:
    assert padding_share(lengths) == pytest.approx(share)
