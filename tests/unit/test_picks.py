"""Which rows a training step takes."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from ares_stream.records.base import stable_seed
from ares_stream.repair.picks import rows_of_step

STREAMS = (
    "failures", "prompts-failures", "benign", "prompts-benign", "over_refusal", "validated",
    "anchor",
)  # fmt: skip


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5), st.sampled_from(STREAMS))
def test_every_row_is_taken_once_per_epoch(count: int, size: int, seed: int, stream: str) -> None:
    taken = [
        row
        for step in range(count)
        for row in rows_of_step(count, size, step, seed=seed, stream=stream)
    ]
    for epoch in range(size):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(st.integers(40, 400), st.integers(0, 10_000))
def test_no_two_streams_take_the_rows_of_a_step_alike(count: int, seed: int) -> None:
    taken = {
        stream: rows_of_step(count, 16, 3, seed=seed, stream=stream)
        for stream in (*STREAMS, "a-failures", "b-failures")
    }
    for one, other in combinations(taken, 2):
        assert taken[one] != taken[other], (one, other)


@given(st.lists(st.text(max_size=30), min_size=2, max_size=30, unique=True))
def test_a_seed_depends_on_the_whole_name(names: list[str]) -> None:
    assert len({stable_seed(name) for name in names}) == len(names)
