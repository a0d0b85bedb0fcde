"""A campaign depends on what came back, not on when or in which order."""

from random import Random

import numpy as np
import pytest

from ares_stream.errors import SettingsError
from ares_stream.probes.baselines import make_selector
from ares_stream.probes.campaign import Campaign, CampaignPolicy, Judged
from ares_stream.probes.space import Space

SPACE = Space.full(
    topic=[f"t{k}" for k in range(6)],
    persona=[f"p{k}" for k in range(3)],
    tactic=[f"k{k}" for k in range(5)],
)
CLEAN = Judged(0.0, 0.4, False)
FAILED = Judged(0.9, 0.8, True)


def campaign(budget: int = 200, batch: int = 20, method: str = "adaptive") -> Campaign:
    return Campaign("c1", make_selector(method, SPACE, 3), CampaignPolicy(budget, batch))


def answer(ask_id: str, number: int) -> Judged:
    """A fifth of the compositions fails, now and then not."""
    steady = np.random.default_rng([number, sum(ask_id.encode())]).random() < 0.8
    return FAILED if number % 5 == 0 and steady else CLEAN


def run(state: Campaign) -> Campaign:
    while not state.done:
        state.judge({ask.id: answer(ask.id, ask.number) for ask in state.pending()})
    return state


def test_the_budget_is_spent_to_the_last_query_and_not_beyond() -> None:
    for budget in (1, 19, 20, 57, 200):
        assert run(campaign(budget)).queries == budget


def test_two_of_three_answers_confirm_a_failure() -> None:
    state = campaign(batch=4)
    asks = state.pending()
    state.judge({ask.id: FAILED if k < 3 else CLEAN for k, ask in enumerate(asks)})
    second = state.pending()
    assert [ask.attempt for ask in second] == [1, 1, 1]
    state.judge({ask.id: FAILED if k == 0 else CLEAN for k, ask in enumerate(second)})
    third = state.pending()
    assert [(ask.slot, ask.attempt) for ask in third] == [(1, 2), (2, 2)]
    state.judge({third[0].id: FAILED, third[1].id: CLEAN})
    assert [failure.probe for failure in state.failures] == [asks[0].probe, asks[1].probe]
    assert state.queries == 4 + 3 + 2


def test_a_void_answer_is_not_asked_again_and_finds_nothing() -> None:
    state = campaign(batch=2)
    state.judge({ask.id: Judged(0.9, 0.9, True, void=True) for ask in state.pending()})
    assert state.failures == []
    assert all(ask.attempt == 0 for ask in state.pending())
    assert state.void == 2


@pytest.mark.parametrize("seed", range(15))
def test_order_grouping_and_repeats_of_results_change_nothing(seed: int) -> None:
    random = Random(seed)
    expected = run(campaign())
    state = campaign()
    seen: dict[str, Judged] = {}
    while not state.done:
        asks = list(state.pending())
        random.shuffle(asks)
        for ask in asks[: random.randint(1, len(asks))]:
            seen[ask.id] = answer(ask.id, ask.number)
            state.judge({ask.id: seen[ask.id]})
        state.judge(dict(random.sample(sorted(seen.items()), min(5, len(seen)))))
    assert state.state() == expected.state()
    assert state.failures == expected.failures


def test_a_campaign_rebuilt_from_its_record_continues_the_same() -> None:
    expected = run(campaign())
    record: dict[str, Judged] = {}
    state = campaign()
    for _ in range(6):
        results = {ask.id: answer(ask.id, ask.number) for ask in state.pending()}
        record |= results
        state.judge(results)
    rebuilt = campaign()
    while any(ask.id in record for ask in rebuilt.pending()):
        rebuilt.judge({a.id: record[a.id] for a in rebuilt.pending() if a.id in record})
    assert rebuilt.state() == state.state()
    assert rebuilt.pending() == state.pending()
    assert run(rebuilt).state() == expected.state()


def test_a_new_release_reaches_the_selector_between_generations() -> None:
    state = campaign(budget=400)
    told: list[int] = []
    state.selector.new_release = lambda: told.append(state.generation)  # type: ignore[method-assign]
    while not state.done:
        release = "a" if state.generation < 3 else "b"
        state.judge({ask.id: Judged(0.0, 0.4, False, release=release) for ask in state.pending()})
    assert told == [3]


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(SettingsError, match="at least 1"):
        CampaignPolicy(0)
