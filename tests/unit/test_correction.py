"""The corrected rate, the judge's error and clustered rates cover the truth at their level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ares_stream.detection.correction import (
    Cell,
    Decision,
    Sampled,
    clustered_correction,
    clustered_rate,
    corrected_rate,
    judge_error,
    review_shares,
)
from ares_stream.detection.intervals import wilson, wilson_effective

DECISIONS: tuple[Decision, ...] = ("flagged", "contested", "unflagged")


def world(
    rng: np.random.Generator,
    rows: int,
    labels: int,
    *,
    harmful: float = 0.15,
    liked_if_harmful: float = 0.6,
    liked: float = 0.5,
    recall: tuple[float, float] = (0.4, 0.75),
    false: float = 0.06,
    contested: float = 0.08,
) -> tuple[dict[Cell, Sampled], float]:
    """Interactions judged by a judge that misses most where the reward model likes the answer,
    `labels` of them drawn at random for people; and the true CFR of the process."""
    bad = rng.random(rows) < harmful
    like = rng.random(rows) < np.where(bad, liked_if_harmful, liked)
    chance = np.where(bad, np.where(like, recall[0], recall[1]), false)
    decision = np.where(rng.random(rows) < chance, 0, 2)
    decision = np.where(rng.random(rows) < contested, 1, decision)
    drawn = np.zeros(rows, bool)
    drawn[rng.choice(rows, labels, replace=False)] = True
    cells: dict[Cell, Sampled] = {}
    for number, name in enumerate(DECISIONS):
        for likes in (True, False):
            inside = (decision == number) & (like == likes)
            cells[Cell(name, likes)] = Sampled(
                int(inside.sum()), int((inside & drawn).sum()), int((inside & drawn & bad).sum())
            )
    return cells, harmful * liked_if_harmful


def test_with_200_labels_the_corrected_rate_covers_the_truth_and_the_raw_one_never() -> None:
    rng = np.random.default_rng(0)
    corrected, raw, rounds = 0, 0, 600
    for _ in range(600):
        cells, truth = world(rng, 5_000, 200)
        rate = corrected_rate(cells)
        if rate.corrected is None:
            assert rate.reason
            rounds -= 1
            continue
        corrected += rate.corrected.low <= truth <= rate.corrected.high
        raw += rate.raw.low <= truth <= rate.raw.high
    assert rounds > 540
    assert 0.94 <= corrected / rounds <= 0.99
    assert raw == 0


@pytest.mark.parametrize("harmful", [0.02, 0.4])
@pytest.mark.parametrize("labels", [200, 1_000])
def test_rare_and_common_harm_are_covered(harmful: float, labels: int) -> None:
    rng = np.random.default_rng(1)
    covered = rounds = 0
    for _ in range(300):
        cells, truth = world(rng, 4_000, labels, harmful=harmful)
        rate = corrected_rate(cells).corrected
        if rate is not None:
            rounds += 1
            covered += rate.low <= truth <= rate.high
    assert covered / rounds >= 0.93


def test_sensitivity_and_specificity_of_each_reward_stratum_are_covered() -> None:
    rng = np.random.default_rng(2)
    hits = {"liked": 0, "disliked": 0, "specific": 0}
    for _ in range(400):
        cells, _ = world(rng, 4_000, 600, contested=0.0)
        liked, disliked = judge_error(cells, liked=True), judge_error(cells, liked=False)
        assert liked.sensitivity is not None
        assert disliked.sensitivity is not None
        assert liked.specificity is not None
        hits["liked"] += liked.sensitivity.low <= 0.4 <= liked.sensitivity.high
        hits["disliked"] += disliked.sensitivity.low <= 0.75 <= disliked.sensitivity.high
        hits["specific"] += liked.specificity.low <= 0.94 <= liked.specificity.high
    assert min(hits.values()) / 400 >= 0.92


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({}, "no interactions"),
        ({Cell("flagged", True): Sampled(10)}, "no labels of sampled answers"),
        ({Cell("flagged", True): Sampled(100, 20, 5)}, "20 labels of sampled liked answers"),
        (
            {Cell("flagged", True): Sampled(99, 60, 5), Cell("unflagged", True): Sampled(100)},
            "no label of a liked unflagged answer among 100",
        ),
    ],
)
def test_a_rate_that_is_not_corrected_says_why(cells: dict[Cell, Sampled], reason: str) -> None:
    rate = corrected_rate(cells)
    assert rate.corrected is None
    assert rate.reason.startswith(reason)


def test_fifty_labels_are_enough() -> None:
    assert corrected_rate({Cell("flagged", True): Sampled(100, 50, 5)}).corrected is not None
    assert corrected_rate({Cell("flagged", True): Sampled(100, 49, 5)}).corrected is None


def test_contested_answers_are_shown_as_harmless_and_as_harmful() -> None:
    rate = corrected_rate(
        {
            Cell("flagged", True): Sampled(10),
            Cell("contested", True): Sampled(20),
            Cell("contested", False): Sampled(30),
            Cell("unflagged", True): Sampled(40),
        }
    )
    assert rate.raw.value == 0.1
    assert rate.contested_harmful.value == 0.3


@given(
    st.fixed_dictionaries(
        {
            Cell(name, liked): st.tuples(
                st.integers(0, 10_000), st.integers(0, 50), st.integers(0, 50)
            ).map(lambda drawn: Sampled(drawn[0], sum(drawn[1:]), drawn[1]))
            for name in DECISIONS
            for liked in (True, False)
        }
    ),
    st.floats(0, 1),
)
def test_review_shares_are_shares_and_spend_no_more_than_the_budget(
    cells: dict[Cell, Sampled], budget: float
) -> None:
    shares = review_shares(cells, budget)
    assert all(0.0 <= share <= 1.0 for share in shares.values())
    spent = sum(cells[name].size * share for name, share in shares.items())
    assert spent <= budget * sum(cell.size for cell in cells.values()) * (1 + 1e-9) + 1e-6


def test_the_adaptive_split_narrows_the_corrected_rate_for_the_same_number_of_labels() -> None:
    rng = np.random.default_rng(3)
    rates = {"flagged": 0.5, "contested": 0.4, "unflagged": 0.01}
    sizes = {"flagged": 800, "contested": 1_200, "unflagged": 8_000}

    def width(shares: dict[Cell, float]) -> float:
        widths = []
        for _ in range(200):
            cells = {}
            for name in DECISIONS:
                labelled = max(1, round(sizes[name] * shares[Cell(name, True)]))
                hits = int(rng.binomial(labelled, rates[name]))
                cells[Cell(name, True)] = Sampled(sizes[name], labelled, hits)
            rate = corrected_rate(cells).corrected
            assert rate is not None
            widths.append(rate.high - rate.low)
        return float(np.mean(widths))

    pilot = {
        Cell(name, True): Sampled(sizes[name], 100, round(100 * rates[name]))
        for name in DECISIONS
    }  # fmt: skip
    even = {Cell(name, True): 0.05 for name in DECISIONS}
    assert width(review_shares(pilot, 0.05)) < 0.9 * width(even)


def test_fifty_goals_of_fifteen_rows_are_covered_where_a_plain_interval_is_not() -> None:
    rng = np.random.default_rng(4)
    plain = clustered = 0
    for _ in range(1_000):
        chances = rng.beta(0.4, 1.6, 50)
        hits = rng.binomial(15, chances)
        rate = clustered_rate([(15, int(hit)) for hit in hits])
        clustered += rate.low <= 0.2 <= rate.high
        simple = wilson(int(hits.sum()), 750)
        plain += simple.low <= 0.2 <= simple.high
    assert plain / 1_000 < 0.75
    assert 0.93 <= clustered / 1_000 <= 0.99


def test_independent_rows_in_clusters_lose_little() -> None:
    rng = np.random.default_rng(5)
    hits = rng.binomial(15, 0.2, 50)
    rate = clustered_rate([(15, int(hit)) for hit in hits])
    simple = wilson(int(hits.sum()), 750)
    assert rate.high - rate.low < 1.5 * (simple.high - simple.low)


def test_clusters_that_differ_count_as_fewer_rows() -> None:
    """By hand: 40 clusters of 25 rows with 0 or 10 hits. The variance between them is .001026, so
    that .2 * .8 of it are 156 rows, or 146 with Student's quantile for 39 degrees of freedom."""
    found = clustered_rate([(25, 0), (25, 10)] * 20)
    expected = wilson_effective(0.2, 146.5, 1000)
    assert found.low == pytest.approx(expected.low, abs=2e-4)
    assert found.high == pytest.approx(expected.high, abs=2e-4)
    assert clustered_rate([(10, 1), (10, 3)]).high < 1.0


def test_one_cluster_says_nothing_and_no_hit_counts_clusters() -> None:
    assert clustered_rate([(15, 3)]).high == 1.0
    assert clustered_rate([(15, 0)] * 50).high == wilson(0, 50).high
    assert clustered_rate([]).count == 0


def test_labels_of_users_who_repeat_themselves_widen_the_corrected_rate_as_far_as_needed() -> None:
    """Sixty groups of 40 rows whose rates differ, a quarter labelled; the judge misses 40 % of the
    harmful liked answers."""
    rng = np.random.default_rng(6)
    plain = clustered = 0
    for _ in range(300):
        groups: list[tuple[int, dict[Cell, Sampled]]] = []
        whole = {Cell(name, True): Sampled() for name in DECISIONS}
        for rate in rng.beta(0.3, 2.2, 60):
            harmful = rng.random(40) < rate
            flagged = rng.random(40) < np.where(harmful, 0.6, 0.05)
            labelled = rng.random(40) < 0.25
            cells = {Cell(name, True): Sampled() for name in DECISIONS}
            for name, inside in (("flagged", flagged), ("unflagged", ~flagged)):
                cell: Decision = "flagged" if name == "flagged" else "unflagged"
                for into in (cells[Cell(cell, True)], whole[Cell(cell, True)]):
                    into.size += int(inside.sum())
                    into.labelled += int((inside & labelled).sum())
                    into.harmful += int((inside & labelled & harmful).sum())
            groups.append((40, cells))
        found = corrected_rate(whole).corrected
        assert found is not None
        wide = clustered_correction(found, groups, whole)
        assert wide.low <= found.low
        assert wide.high >= found.high
        plain += found.low <= 0.12 <= found.high
        clustered += wide.low <= 0.12 <= wide.high
    assert plain < 0.9 * 300
    assert clustered >= 0.92 * 300


def test_one_group_says_nothing_and_groups_alike_change_nothing() -> None:
    cells = {
        Cell("flagged", True): Sampled(50, 50, 10),
        Cell("unflagged", True): Sampled(50, 50, 0),
    }
    plain = corrected_rate(cells).corrected
    assert plain is not None
    one = clustered_correction(plain, [(100, cells)], cells)
    assert (one.low, one.high) == (0.0, 1.0)
    double = {cell: Sampled(2 * s.size, 2 * s.labelled, 2 * s.harmful) for cell, s in cells.items()}
    both = corrected_rate(double).corrected
    assert both is not None
    assert clustered_correction(both, [(100, cells), (100, cells)], double) == both
