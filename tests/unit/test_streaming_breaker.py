"""The breaker stops reading one topic when too much of it is refused, and says why."""

from hypothesis import given
from hypothesis import strategies as st

from ares_stream.streaming.breaker import Breaker, BreakerPolicy


def commit(breaker: Breaker, refusals: list[str | None], topic: str = "t", start: int = 0) -> None:
    for offset, refusal in enumerate(refusals, start):
        breaker.count(topic, 0, offset, refusal)


def test_a_run_of_refusals_opens_it_and_one_good_record_resets_the_run() -> None:
    breaker = Breaker(BreakerPolicy(window=1000, share=1.0, consecutive=3))
    commit(breaker, ["no", "no", None, "no", "no"])
    assert breaker.opened("t") is None
    commit(breaker, ["no"], start=5)
    assert breaker.opened("t") == "3 records in a row were refused (5 x no)"


def test_a_share_is_judged_on_a_full_window_only() -> None:
    breaker = Breaker(BreakerPolicy(window=4, share=0.5, consecutive=100))
    commit(breaker, ["a", "b", None])
    assert breaker.opened("t") is None
    commit(breaker, [None], start=3)
    assert breaker.opened("t") == "2 of the last 4 records were refused (1 x a; 1 x b)"


def test_the_most_frequent_reasons_are_said_first_and_three_at_most() -> None:
    breaker = Breaker(BreakerPolicy(consecutive=10))
    commit(breaker, ["a", "b", "c", "d", "d", "d", "c", "b", "d", "b"])
    opened = breaker.opened("t")
    assert opened is not None
    assert opened.endswith("(4 x d; 3 x b; 2 x c)")


def test_it_opens_for_the_topic_that_is_refused_and_for_no_other() -> None:
    breaker = Breaker(BreakerPolicy(consecutive=3))
    for offset in range(10):
        breaker.count("probe", 0, offset, "no")
        breaker.count("production", 0, offset, None)
    assert breaker.opened("probe") is not None
    assert breaker.opened("production") is None


def test_a_record_that_is_committed_again_after_an_unknown_outcome_counts_once() -> None:
    breaker = Breaker(BreakerPolicy(consecutive=5))
    commit(breaker, ["no"] * 4)
    commit(breaker, ["no"] * 4)
    assert breaker.opened("t") is None
    commit(breaker, ["no"], start=4)
    assert breaker.opened("t") is not None


def test_partitions_of_one_topic_count_together_each_by_its_own_offsets() -> None:
    breaker = Breaker(BreakerPolicy(consecutive=4))
    for partition in (0, 1):
        for offset in (0, 1):
            breaker.count("t", partition, offset, "no")
    assert breaker.opened("t") is not None


def test_who_accepts_dead_letters_is_never_stopped() -> None:
    breaker = Breaker(BreakerPolicy(consecutive=2, accept=True))
    commit(breaker, ["no"] * 1000)
    assert breaker.opened("t") is None


@given(
    outcomes=st.lists(st.booleans(), max_size=80),
    window=st.integers(1, 20),
    share=st.floats(0.1, 1.0),
    consecutive=st.integers(1, 20),
)
def test_it_agrees_with_counting_by_hand(
    outcomes: list[bool], window: int, share: float, consecutive: int
) -> None:
    breaker = Breaker(BreakerPolicy(window=window, share=share, consecutive=consecutive))
    opened = False
    for end in range(1, len(outcomes) + 1):
        last = outcomes[max(0, end - window) : end]
        run = outcomes[:end][-consecutive:]
        opened |= (len(run) == consecutive and all(run)) or (
            len(last) == window and sum(last) >= share * window
        )
        breaker.count("t", 0, end - 1, "no" if outcomes[end - 1] else None)
        assert (breaker.opened("t") is not None) == opened
