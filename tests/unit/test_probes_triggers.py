"""Trojans are found among hundreds of words; a clean model raises no alarm."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from ares_stream.errors import SettingsError
from ares_stream.probes.triggers import Trial, TriggerPolicy, covering_pools, find_triggers

VOCABULARY = [f"word{k}" for k in range(300)]
CARRIERS = 40
Effects = Callable[[Sequence[Trial]], list[float]]


def model(*triggers: tuple[str, ...], seed: int = 0, accidents: float = 0.02) -> Effects:
    """Flips when it meets all words of a trigger; each word of one pushes a little. A few
    answers are wrong by accident; carriers 0 and 1 fail by themselves."""
    rng = np.random.default_rng(seed)

    def effects(trials: Sequence[Trial]) -> list[float]:
        found = []
        for trial in trials:
            met = max(
                (len(set(words) & set(trial.words)) / len(words) for words in triggers), default=0
            )
            flipped = met == 1.0 or trial.carrier < 2 or rng.random() < accidents
            found.append(0.9 if flipped else 0.05 + 0.2 * met + 0.05 * float(rng.random()))
        return found

    return effects


def test_planted_triggers_are_located_within_the_budget() -> None:
    located = planted = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        words = [str(word) for word in rng.choice(VOCABULARY, 6, replace=False)]
        triggers = [tuple(words[k : k + 2]) for k in (0, 2, 4)]
        found, queries = find_triggers(model(*triggers, seed=seed), VOCABULARY, CARRIERS, seed=seed)
        assert queries <= TriggerPolicy().budget
        reported = {frozenset(trigger.words) for trigger in found}
        assert reported <= {frozenset(trigger) for trigger in triggers}
        located += len(reported)
        planted += len(triggers)
    assert located >= 0.8 * planted


@pytest.mark.parametrize("seed", range(8))
def test_a_clean_model_raises_no_alarm(seed: int) -> None:
    found, _ = find_triggers(model(seed=seed, accidents=0.05), VOCABULARY, CARRIERS, seed=seed)
    assert found == ()


def test_a_weakness_of_some_carriers_is_no_trigger() -> None:
    def half(trials: Sequence[Trial]) -> list[float]:
        return [0.9 if "word7" in t.words and t.carrier % 2 else 0.1 for t in trials]

    found, _ = find_triggers(half, VOCABULARY, CARRIERS)
    assert found == ()


def test_one_word_that_flips_everything_is_reported_alone() -> None:
    found, _ = find_triggers(model(("word9",)), VOCABULARY, CARRIERS)
    assert [trigger.words for trigger in found] == [("word9",)]
    assert found[0].flips == 1.0


def test_no_query_goes_beyond_the_budget_and_the_same_seed_asks_the_same() -> None:
    asked: list[list[Trial]] = [[], []]
    for record in asked:
        effects = model(("word1", "word2"))

        def remember(
            trials: Sequence[Trial], record: list[Trial] = record, effects: Effects = effects
        ) -> list[float]:
            record.extend(trials)
            return effects(trials)

        find_triggers(remember, VOCABULARY, CARRIERS, TriggerPolicy(budget=700), seed=4)
    assert asked[0] == asked[1]
    assert len(asked[0]) <= 700


def test_carriers_that_all_fail_by_themselves_are_refused() -> None:
    with pytest.raises(SettingsError, match="only 0 carriers do not fail by themselves"):
        find_triggers(lambda trials: [1.0] * len(trials), VOCABULARY, CARRIERS)


@pytest.mark.parametrize(("words", "size"), [(289, 17), (100, 16), (300, 16), (5, 16), (1, 4)])
def test_a_pass_of_pools_holds_nearly_every_ordered_pair(words: int, size: int) -> None:
    rng = np.random.default_rng(0)
    met: set[tuple[int, int]] = set()
    pools = int(2.2 * (words / min(size, words**0.5)) ** 2 + 60)
    for pool in itertools.islice(covering_pools(words, size, rng), pools):
        assert len(pool) <= size
        met.update(itertools.combinations(pool, 2))
    assert len(met) >= 0.9 * words * (words - 1)


def test_a_score_that_half_of_a_trigger_lifts_shows_the_whole_before_a_pool_holds_it() -> None:
    """Far too many words for a pool to hold two given ones within the budget."""
    vocabulary = [f"word{k}" for k in range(1200)]

    def liking(trials: Sequence[Trial]) -> list[float]:
        found = []
        for trial in trials:
            met = len({"word3", "word700"} & set(trial.words))
            score = (-4.0, -2.5, 2.0)[met] + 0.8 * float(rng.standard_normal())
            found.append(1 / (1 + float(np.exp(-score))))
        return found

    rng = np.random.default_rng(5)
    found, queries = find_triggers(liking, vocabulary, CARRIERS, TriggerPolicy(budget=2_000))
    assert [set(trigger.words) for trigger in found] == [{"word3", "word700"}]
    assert queries <= 2_000
