"""Search methods: seeded, honest about probabilities, and better than chance on planted blocks."""

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.errors import SettingsError
from ares_stream.probes.archive import Archive
from ares_stream.probes.baselines import METHODS, make_selector
from ares_stream.probes.selection import Adaptive, AdaptivePolicy, Finding, Prior, Selector
from ares_stream.probes.space import Space

SMALL = Space.full(
    topic=[f"t{k}" for k in range(6)],
    persona=[f"p{k}" for k in range(3)],
    tactic=[f"k{k}" for k in range(5)],
    goal=["g0", "g1"],
)
MEDIUM = Space.full(
    topic=[f"t{k}" for k in range(16)],
    persona=[f"p{k}" for k in range(8)],
    tactic=[f"k{k}" for k in range(12)],
    goal=[f"g{k}" for k in range(3)],
)
LARGE = Space.full(
    topic=[f"t{k}" for k in range(40)],
    persona=[f"p{k}" for k in range(20)],
    tactic=[f"k{k}" for k in range(25)],
    goal=[f"g{k}" for k in range(5)],
)


def block(space: Space, tactic: str, topics: set[str]) -> set[int]:
    """A planted weakness: one tactic with a few topics."""
    return {
        int(number)
        for number in space.numbers
        if (ids := space.ids(int(number)))["tactic"] == tactic and ids["topic"] in topics
    }


def search(selector: Selector, weak: set[int], batches: int, size: int = 20) -> list[int]:
    """The numbers tried, in order, with truthful findings."""
    tried: list[int] = []
    for _ in range(batches):
        chosen = [choice.number for choice in selector.propose(size)]
        tried += chosen
        selector.observe(
            [Finding(n, float(n in weak), float(n in weak), n in weak) for n in chosen]
        )
    return tried


def taught(weak: set[int]) -> Prior:
    """What a search of SMALL learnt, without the failures that it confirmed."""
    teacher = Adaptive(SMALL, 1)
    search(teacher, weak, 8)
    return replace(teacher.export(), failures=())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_and_findings_give_the_same_choices(method: str) -> None:
    weak = block(SMALL, "k1", {"t0", "t1"})
    first, again = (search(make_selector(method, SMALL, 7), weak, 8) for _ in range(2))
    other = search(make_selector(method, SMALL, 8), weak, 8)
    assert first == again
    assert first != other


@pytest.mark.parametrize("method", METHODS)
def test_only_allowed_compositions_are_tried(method: str) -> None:
    allowed = np.ones(len(SMALL), dtype=bool)
    allowed[::3] = False
    space = Space(SMALL.axes, SMALL.components, allowed)
    tried = search(make_selector(method, space, 1), set(range(40)), 15)
    assert all(allowed[number] for number in tried)


@pytest.mark.parametrize("method", METHODS)
def test_every_choice_says_how_likely_it_was(method: str) -> None:
    weak = block(SMALL, "k1", {"t0", "t1"})
    selector = make_selector(method, SMALL, 3)
    for _ in range(12):
        choices = selector.propose(20)
        assert all(0 < choice.probability <= 1 for choice in choices)
        selector.observe([Finding(c.number, float(c.number in weak), 1.0, False) for c in choices])


@pytest.mark.parametrize("with_prior", [False, True])
def test_weighting_by_the_probability_gives_the_rate_over_the_whole_space(with_prior: bool) -> None:
    # Horvitz-Thompson: the mean of hit / (N p) is the true share, although the search draws
    # several times as many failures.
    weak = block(SMALL, "k1", {"t0", "t1"})
    policy = AdaptivePolicy(floor=0.3, clean_factor=1.0)
    prior = None
    if with_prior:
        # Half of the weakness is known, and the covering design is over soon.
        policy = replace(policy, promising=0.1)
        prior = taught(block(SMALL, "k1", {"t0"}))
    estimates, naive = [], []
    for seed in range(60):
        selector = Adaptive(SMALL, seed, policy, prior)
        for _ in range(3):
            tried = [choice.number for choice in selector.propose(20)]
            selector.observe([Finding(n, float(n in weak), 1.0, False) for n in tried])
        for choice in selector.propose(20):
            if choice.source == "cover":
                continue
            hit = choice.number in weak
            naive.append(hit)
            estimates.append(hit / (len(SMALL) * choice.probability))
    truth = len(weak) / len(SMALL)
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - truth) < 4 * error
    assert np.mean(naive) > 2 * truth


def test_the_covering_design_tries_each_topic_with_each_tactic_once() -> None:
    selector = Adaptive(SMALL, 11)
    chosen = [SMALL.ids(choice.number) for choice in selector.propose(30)]
    assert len({(ids["topic"], ids["tactic"]) for ids in chosen}) == 30
    personas = Counter(ids["persona"] for ids in chosen)
    assert max(personas.values()) - min(personas.values()) <= 6


def test_adaptive_finds_more_than_uniform() -> None:
    weak = block(MEDIUM, "k3", {"t1", "t5", "t8"}) | block(MEDIUM, "k9", {"t2", "t11"})
    adaptive = set(search(Adaptive(MEDIUM, 1), weak, 8, 50)) & weak
    uniform = set(search(make_selector("uniform", MEDIUM, 1), weak, 8, 50)) & weak
    assert len(adaptive) > 3 * len(uniform)


def test_a_solved_cell_is_left_to_the_floor() -> None:
    weak = block(SMALL, "k1", {"t0"})
    selector = Adaptive(SMALL, 5)
    search(selector, weak, 10)
    solved = {SMALL.ids(n)["persona"] for n in search(selector, weak, 0) or weak}
    learnt = [c for c in selector.propose(40) if c.source == "learnt"]
    assert solved == {"p0", "p1", "p2"}
    assert not any(choice.number in weak for choice in learnt)


def test_a_new_release_opens_solved_cells_again() -> None:
    weak = block(SMALL, "k1", {"t0", "t3"})
    selector = Adaptive(SMALL, 5)
    search(selector, weak, 10)
    selector.new_release()
    learnt = [c for c in selector.propose(20) if c.source == "learnt"]
    assert any(choice.number in weak for choice in learnt)


def test_a_prior_finds_the_same_weakness_sooner() -> None:
    weak = block(MEDIUM, "k3", {"t1", "t5"})
    teacher = Adaptive(MEDIUM, 1)
    search(teacher, weak, 8, 50)
    warm = search(Adaptive(MEDIUM, 2, prior=teacher.export()), weak, 1, 50)
    cold = search(Adaptive(MEDIUM, 2), weak, 1, 50)
    assert sum(n in weak for n in warm) > 4 * sum(n in weak for n in cold)


def test_failures_of_another_campaign_are_tried_first_and_strangers_among_them_ignored() -> None:
    weak = block(MEDIUM, "k3", {"t1", "t5"})
    teacher = Adaptive(MEDIUM, 1)
    search(teacher, weak, 8, 50)
    prior = teacher.export()
    known = [MEDIUM.number(ids) for ids in prior.failures]
    assert set(known) <= weak
    assert known
    strangers = ({"topic": "t1", "persona": "p1", "tactic": "unknown", "goal": "g1"}, {"topic": ""})
    prior = replace(prior, failures=(*strangers, *prior.failures))
    first = Adaptive(MEDIUM, 2, prior=prior).propose(len(known) * 2)
    again = [choice for choice in first if choice.source == "elites"]
    assert [choice.number for choice in again] == known
    assert all(choice.probability == 1.0 for choice in again)


def test_with_a_prior_what_it_expects_most_of_is_tried_first_and_the_rest_later() -> None:
    prior = taught(block(SMALL, "k1", {"t0", "t1"}))
    pupil = Adaptive(SMALL, 2, AdaptivePolicy(cover_share=0.6, promising=0.4, known=2.0), prior)

    def covered() -> list[tuple[str, str]]:
        chosen = [choice for choice in pupil.propose(20) if choice.source == "cover"]
        assert all(choice.probability == 1.0 for choice in chosen)
        pupil.observe([Finding(choice.number, 0.0, 0.0, False) for choice in chosen])
        return [(ids["topic"], ids["tactic"]) for ids in (SMALL.ids(c.number) for c in chosen)]

    promising = covered()
    assert len(set(promising)) == len(promising) == 12
    assert {("t0", "k1"), ("t1", "k1")} <= set(promising)
    rest = {cell for _ in range(3) for cell in covered()}
    assert rest | set(promising) == set(itertools.product(SMALL.components[0], SMALL.components[2]))


def test_what_is_tried_promises_most_or_was_tried_least() -> None:
    prior = taught(
        {n for n in range(len(SMALL)) if SMALL.ids(n)["persona"] == "p1"}
        & block(SMALL, "k1", {"t0", "t1", "t2"})
    )

    def covered(novelty: float) -> list[dict[str, str]]:
        policy = AdaptivePolicy(cover_share=1.0, promising=1.0, known=2.0, novelty=novelty)
        return [SMALL.ids(c.number) for c in Adaptive(SMALL, 2, policy, prior).propose(30)]

    promising = {("t0", "k1"), ("t1", "k1"), ("t2", "k1")}
    by_worth = [i for i in covered(0.0) if (i["topic"], i["tactic"]) in promising]
    assert [ids["persona"] for ids in by_worth] == ["p1"] * 3
    by_novelty = covered(1e6)
    for axes in itertools.combinations(("persona", "tactic", "goal"), 2):
        times = Counter(tuple(ids[axis] for axis in axes) for ids in by_novelty)
        assert max(times.values()) - min(times.values()) <= 2, axes


def test_a_cell_that_is_known_to_fail_is_left_to_the_draws() -> None:
    weak = block(SMALL, "k1", {"t0", "t1"})
    chosen = Adaptive(SMALL, 2, AdaptivePolicy(cover_share=0.5), taught(weak)).propose(30)
    assert not any(choice.number in weak for choice in chosen if choice.source == "cover")
    assert any(choice.number in weak for choice in chosen if choice.source == "learnt")


@given(st.lists(st.integers(0, len(SMALL) - 1), max_size=40))
def test_failures_carried_over_are_few_unlike_and_bring_every_pair(confirmed: list[int]) -> None:
    teacher = Adaptive(SMALL, 1, AdaptivePolicy(carried=len(SMALL)))
    teacher.observe([Finding(number, 1.0, 1.0, True) for number in confirmed])

    def pairs(ids: Mapping[str, str]) -> set[tuple[tuple[str, str], ...]]:
        return set(itertools.combinations(sorted(ids.items()), 2))

    carried = teacher.export().failures
    seen: set[tuple[tuple[str, str], ...]] = set()
    for ids in carried:
        assert not pairs(ids) <= seen
        seen |= pairs(ids)
    assert seen == {pair for number in confirmed for pair in pairs(SMALL.ids(number))}
    few = Adaptive(SMALL, 1, AdaptivePolicy(carried=2))
    few.observe([Finding(number, 1.0, 1.0, True) for number in confirmed])
    assert few.export().failures == carried[:2]


def test_a_batch_among_100_000_compositions_after_10_000_probes_is_whole_and_new() -> None:
    # What it costs is measured by `ares bench probes` (selection_cost).
    assert len(LARGE) == 100_000
    rng = np.random.default_rng(0)
    selector = Adaptive(LARGE, 1)
    selector.propose(1000)
    numbers = rng.integers(len(LARGE), size=10_000)
    selector.observe([Finding(int(n), float(n % 20 == 0), 1.0, False) for n in numbers])
    choices = selector.propose(50)
    assert len({choice.number for choice in choices}) == 50
    assert all(0 < choice.probability <= 1 for choice in choices)


def test_an_unknown_method_and_a_prior_without_use_are_refused() -> None:
    with pytest.raises(SettingsError, match="unknown; one of adaptive"):
        make_selector("genetic", SMALL, 1)
    with pytest.raises(SettingsError, match="takes no prior"):
        make_selector("uniform", SMALL, 1, Adaptive(SMALL, 1).export())


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.floats(0, 1)), max_size=60))
@settings(max_examples=60)
def test_an_archive_keeps_the_best_few_of_each_cell(offers: list[tuple[int, int, float]]) -> None:
    archive: Archive[int, int] = Archive(depth=3)
    for cell, solution, fitness in offers:
        archive.add(cell, solution, fitness)
    by_cell: dict[int, list[float]] = {}
    for cell, elite in archive.elites():
        by_cell.setdefault(cell, []).append(elite.fitness)
    for cell, kept in by_cell.items():
        offered = [fitness for place, _, fitness in offers if place == cell and fitness > 0]
        assert len(kept) <= 3
        assert kept == sorted(kept, reverse=True)
        assert kept[0] == max(offered)
    assert archive.coverage == len(by_cell)
