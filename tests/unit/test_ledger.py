"""The monitor's memory: exact in any order, bounded, corrected by labels, restored bit for bit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from ares_stream.detection.alarming import AlarmPolicy, acknowledge, evaluate, limit
from ares_stream.detection.anchors import MAX_ANCHORS, AnchorTally
from ares_stream.detection.correction import Cell
from ares_stream.detection.ledger import MAX_SETS, OLDER, OTHER, Ledger, LedgerPolicy
from ares_stream.detection.tallies import CELLS, WINDOW_SECONDS
from ares_stream.errors import DecodeError
from ares_stream.records.alarm import Alarm
from ares_stream.records.base import Record
from ares_stream.records.interaction import Anchor
from ares_stream.records.label import Label
from ares_stream.records.observation import AnchorTruth, Observation, observe, read_observation
from ares_stream.records.rates import (
    AnchorAnswers,
    AnchorFigures,
    MonitorState,
    Rates,
    SampledVerdict,
)
from ares_stream.records.verdict import FailureClass
from ares_stream.services.monitor import believed
from tests.support.verdicts import NOON, verdict

START = int(NOON.timestamp() * 1000)
MINUTE = 60_000
EVERYTHING = LedgerPolicy(
    slices=("locale",), cluster="user", review_shares=dict.fromkeys(CELLS, 1.0)
)
Row = tuple[Observation, int, tuple[int, int]]


def anchor_fields(anchor: Anchor) -> tuple[str, str, bool, bool | None, float | None]:
    return anchor.set, anchor.id, anchor.harmful, anchor.judged, anchor.reward


def seen(number: int, failure: FailureClass = FailureClass.CLEAN, **changed: object) -> Observation:
    return read_observation(verdict(number, failure, **changed).encode(), "either")  # type: ignore[arg-type]


OBSERVED = {name: seen(0, name, lane="anchor") for name in FailureClass}


def rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    classes = list(FailureClass)
    made: list[Row] = []
    for number in range(count):
        failure = rng.choices(classes, (80, 3, 7, 5, 5))[0]
        version, lane = ("2" if number > count / 2 else "1"), rng.choice(("production", "probe"))
        item = seen(
            number,
            failure,
            version=version,
            lane=lane,
            liked=rng.random() < 0.5,
            locale=rng.choice(("de", "en")),
        )
        stamp = START + number * 3 * MINUTE + rng.randrange(-2 * MINUTE, 2 * MINUTE)
        made.append((item, stamp, (number % 3, number // 3)))
    return made


def labels(count: int) -> list[Label]:
    return [
        Label(
            interaction_id=f"interaction-{number}",
            harmful=number % 3 == 0,
            reviewer=reviewer,
            decided_at=NOON + timedelta(minutes=number),
        )
        for number in range(0, count, 5)
        for reviewer in ("ada", "bob")
    ]


def written(ledger: Ledger) -> dict[bytes, Record | None]:
    return dict(ledger.changes(NOON, 0.01))


def filled(
    taken: Sequence[Row], said: Sequence[Label] = (), policy: LedgerPolicy = EVERYTHING
) -> Ledger:
    ledger = Ledger(policy)
    for observation, stamp, place in taken:
        ledger.add(observation, stamp, place)
    for label in said:
        ledger.add_label(label.key, label)
    return ledger


def restored(state: dict[bytes, Record | None], policy: LedgerPolicy) -> Ledger:
    records = [item for item in state.values() if item is not None]
    ledger = Ledger(policy)
    (whole,) = [item for item in records if isinstance(item, MonitorState)]
    ledger.restore(
        MonitorState.decode(whole.encode()),
        [Rates.decode(item.encode()) for item in records if isinstance(item, Rates)],
        [AnchorFigures.decode(i.encode()) for i in records if isinstance(i, AnchorFigures)],
        [AnchorAnswers.decode(i.encode()) for i in records if isinstance(i, AnchorAnswers)],
        [SampledVerdict.decode(i.encode()) for i in records if isinstance(i, SampledVerdict)],
    )
    return ledger


def test_partitions_read_in_any_order_give_the_same_figures_bit_for_bit() -> None:
    taken, said = rows(600), labels(600)
    first = written(filled(taken, said))
    shuffled = sorted(taken, key=lambda row: (row[2][0], row[2][1]), reverse=False)
    # Whole partitions one after the other, and labels before verdicts.
    other = Ledger(EVERYTHING)
    for label in reversed(said):
        other.add_label(label.key, label)
    for observation, stamp, place in shuffled:
        other.add(observation, stamp, place)
    second = written(other)
    assert first.keys() == second.keys()
    assert [first[key].encode() for key in first] == [second[key].encode() for key in first]  # type: ignore[union-attr]


def test_a_ledger_that_is_restored_halfway_ends_with_the_same_bytes() -> None:
    taken, said = rows(900), labels(900)
    policy = AlarmPolicy(coupled=0.2, contested=0.2, slices=3)
    whole = filled(taken, said)
    evaluate(whole, policy, NOON, "verdicts", ())
    expected = written(whole)

    state: dict[bytes, Record | None] = {}
    for start in range(0, 900, 150):
        ledger = restored(state, EVERYTHING) if state else Ledger(EVERYTHING)
        for observation, stamp, place in taken[start : start + 150]:
            ledger.add(observation, stamp, place)
        for label in said:
            ledger.add_label(label.key, label)
        evaluate(ledger, policy, NOON, "verdicts", ())
        state.update(written(ledger))
    assert {key: item.encode() for key, item in expected.items() if item is not None} == {
        key: item.encode() for key, item in state.items() if item is not None
    }


def test_lanes_versions_and_values_are_kept_apart() -> None:
    found = [item for item in written(filled(rows(400))).values() if isinstance(item, Rates)]
    keys = {
        (item.slice.lane, item.slice.policy.version, item.slice.attribute, item.slice.value)
        for item in found
    }
    assert {("production", "1", "", ""), ("probe", "2", "locale", "en")} <= keys
    for lane in ("production", "probe"):
        for version in ("1", "2"):
            mine = [
                item
                for item in found
                if (item.slice.lane, item.slice.policy.version) == (lane, version)
            ]
            whole = next(item for item in mine if not item.slice.attribute)
            assert whole.figures.total == sum(i.figures.total for i in mine if i.slice.attribute)
            assert (whole.figures.cfr_weighted is not None) == (lane == "probe")


def test_ten_thousand_versions_and_values_fill_no_memory_and_are_told() -> None:
    policy = LedgerPolicy(slices=("locale",), max_values=5, max_versions=20, max_samples=30,
                          review_shares=dict.fromkeys(CELLS, 1.0))  # fmt: skip
    ledger = Ledger(policy)
    for number in range(10_000):
        item = seen(number, version=str(number), locale="de")
        ledger.add(item, START + number * 1000, (0, number))
    for number in range(10_000, 11_000):
        item = seen(number, version="last", locale=f"locale-{number}")
        ledger.add(item, START + number * 1000, (0, number))
    assert len(ledger.groups) <= 21
    assert len(list(ledger.tallies())) <= 21 * 2 + 6
    assert ledger.folded["version"] == 10_000 - 19
    assert ledger.folded["locale"] == 1_000 - 5
    assert sum(group.whole.total for group in ledger.groups.values()) == 11_000
    state = written(ledger)
    assert sum(isinstance(item, SampledVerdict) for item in state.values()) <= 30
    names = {i.slice.policy.version for i in state.values() if isinstance(i, Rates)}
    values = {i.slice.value for i in state.values() if isinstance(i, Rates)}
    assert OLDER in names
    assert OTHER in values


def test_a_verdict_as_an_object_is_counted_as_its_json_is() -> None:
    anchor = Anchor(set="s", id="a", harmful=True, judged=None, reward=0.5)
    for number, failure in enumerate(FailureClass):
        for item in (
            verdict(number, failure, lane="probe"),
            verdict(number, failure, liked=True),
            verdict(number, failure, lane="anchor", anchor=anchor),
        ):
            assert observe(item, "either") == read_observation(item.encode(), "either")
            assert observe(item, "both") == read_observation(item.encode(), "both")


def test_attributes_that_nobody_named_are_sliced_by_up_to_eight() -> None:
    ledger = Ledger(LedgerPolicy(slices=None))
    item = seen(0)._replace(attributes={f"a{number}": "x" for number in range(20)})
    for number in range(3):
        ledger.add(item, START, (0, number))
    assert len(list(ledger.tallies())) == 1 + 8
    assert ledger.folded == {OTHER: 3 * 12}


def test_a_version_that_returns_goes_on_where_it_was() -> None:
    ledger = Ledger(LedgerPolicy())
    for number, version in enumerate(("1", "1", "2", "1")):
        ledger.add(seen(number, version=version), START + number * MINUTE, (0, number))
    totals = {name.version: group.whole.total for name, group in ledger.groups.items()}
    assert totals == {"1": 3, "2": 1}
    assert [name.version for name in ledger.versions("production", "chat")] == ["1", "2"]


def test_labels_correct_the_rate_and_two_reviewers_both_count() -> None:
    taken = [
        (
            seen(number, FailureClass.COUPLED_FAILURE if number % 10 == 0 else FailureClass.CLEAN,
                 liked=True),
            START + number * 1000,
            (0, number),
        )
        for number in range(1_000)
    ]  # fmt: skip
    ledger = filled(taken)
    # People find half of the flagged harmless, and one in nine of the others harmful.
    for number in range(1_000):
        harmful = number % 20 == 0 if number % 10 == 0 else number % 9 == 1
        label = Label(
            interaction_id=f"interaction-{number}", harmful=harmful, reviewer="ada",
            decided_at=NOON,
        )  # fmt: skip
        ledger.add_label(label.key, label)
    found = next(item for item in written(ledger).values() if isinstance(item, Rates))
    correction = found.figures.correction
    assert correction.corrected
    assert correction.labels == 1_000
    assert correction.rate is not None
    assert correction.rate.value == pytest.approx(0.05 + 0.9 / 9, abs=0.01)
    assert found.figures.cfr.value == 0.1
    contradiction = Label(
        interaction_id="interaction-0", harmful=False, reviewer="bob", decided_at=NOON
    )
    ledger.add_label(contradiction.key, contradiction)
    again = next(item for item in written(ledger).values() if isinstance(item, Rates))
    assert again.figures.correction.labels == 999
    ledger.remove_label(contradiction.key)
    once_more = next(item for item in written(ledger).values() if isinstance(item, Rates))
    assert once_more.figures.correction.labels == 1_000


def test_labels_under_keys_that_name_no_reviewer_are_what_the_compacted_topic_keeps() -> None:
    """Two people under one old key: the later one is there, before compaction as after it, and
    each reviewer has one say, however many keys they used."""
    ledger = Ledger(EVERYTHING)
    ledger.add(seen(0, FailureClass.COUPLED_FAILURE, liked=True), START, (0, 0))

    def label(reviewer: str, harmful: bool, minutes: int) -> Label:
        return Label(
            interaction_id="interaction-0",
            harmful=harmful,
            reviewer=reviewer,
            decided_at=NOON + timedelta(minutes=minutes),
        )

    def told() -> tuple[int, int]:
        (group,) = ledger.groups.values()
        found = group.whole.labels[Cell("flagged", True)]
        return found.labelled, found.harmful

    old = b"interaction-0"
    ledger.add_label(old, label("ada", True, 0))
    assert told() == (1, 1)
    ledger.add_label(old, label("bob", False, 1))
    assert told() == (1, 0)
    new = label("bob", True, 2)
    ledger.add_label(new.key, new)
    assert told() == (1, 1)
    ledger.remove_label(old)
    assert told() == (1, 1)
    ledger.remove_label(new.key)
    assert told() == (0, 0)
    assert ledger.unmatched == 0
    ledger.remove_label(b"never seen")


def test_past_its_bounds_the_order_decides_who_is_kept_apart_and_nothing_else() -> None:
    """Two readers that saw the topics interleaved otherwise: the whole is the same bit for bit,
    every verdict is in one value of each attribute, and as many values are kept apart."""
    policy = LedgerPolicy(slices=("locale",), max_values=3, review_shares={})
    rng = random.Random(6)
    taken = [
        (seen(number, rng.choice(list(FailureClass)), locale=f"l{rng.randrange(12)}"),
         START + number * 1000, (number % 3, number // 3))
        for number in range(600)
    ]  # fmt: skip
    ledgers = [filled(order, (), policy) for order in (taken, taken[::-1])]
    wholes, parts = [], []
    for ledger in ledgers:
        (group,) = ledger.groups.values()
        wholes.append(group.whole.record().encode())
        values = group.values["locale"]
        assert len(values) == 4
        assert ledger.folded["locale"] == values[OTHER].total
        parts.append({name: tally.classes for name, tally in values.items() if name != OTHER})
        together = [
            sum(column) for column in zip(*(t.classes for t in values.values()), strict=True)
        ]
        assert together == group.whole.classes
    assert wholes[0] == wholes[1]
    assert parts[0].keys() != parts[1].keys()
    for name in parts[0].keys() & parts[1].keys():
        assert parts[0][name] == parts[1][name]


def test_a_clock_in_another_year_makes_nothing_late() -> None:
    now = START + 86_400_000
    year = 365 * 86_400_000
    ledger = Ledger(LedgerPolicy())
    for number, stamp in enumerate((START, now + year, now, now + 60_000)):
        ledger.add(seen(number), believed(stamp, now), (0, number))
    (group,) = ledger.groups.values()
    assert group.whole.late == 0
    assert sum(window.total for window in group.whole.windows.values()) == 4
    assert believed(now + 60_000, now) == now + 60_000


def test_labels_and_verdicts_of_a_cluster_are_counted_in_its_group_and_kept_over_restarts() -> None:
    taken = rows(600)
    said = [
        Label(
            interaction_id=f"interaction-{number}",
            harmful=number % 3 == 0,
            reviewer="ada",
            decided_at=NOON,
        )
        for number in range(600)
    ]
    ledger = filled(taken, said)
    state = written(ledger)
    again = restored(state, EVERYTHING)
    for label in said:
        again.add_label(label.key, label)
    found = 0
    for one, other in zip(ledger.tallies(), again.tallies(), strict=True):
        figures = one.figures()
        assert figures == other.figures()
        correction = figures.correction
        assert (correction.rate is None) == (correction.rate_clustered is None)
        found += correction.rate_clustered is not None
    assert found
    # A state of before clusters had cells: the groups lack what was counted then.
    older = {
        key: item.model_copy(
            update={"tallies": item.tallies.model_copy(update={"cluster_cells": ()})}
        )
        if isinstance(item, Rates)
        else item
        for key, item in state.items()
    }
    before = restored(older, EVERYTHING)
    for label in said:
        before.add_label(label.key, label)
    assert all(t.figures().correction.rate_clustered is None for t in before.tallies())


def test_a_label_without_a_verdict_waits_and_is_counted() -> None:
    ledger = Ledger(EVERYTHING)
    label = labels(1)[0]
    ledger.add_label(label.key, label)
    assert ledger.unmatched == 1
    ledger.add(seen(0), START, (0, 0))
    assert ledger.unmatched == 0


def test_only_the_review_sample_corrects() -> None:
    shares = dict.fromkeys(CELLS, 0.0) | {Cell("flagged", True): 1.0}
    ledger = Ledger(LedgerPolicy(review_shares=shares))
    for number in range(10):
        failure = FailureClass.COUPLED_FAILURE if number < 4 else FailureClass.CLEAN
        ledger.add(seen(number, failure, liked=True), START, (0, number))
    for label in labels(10):
        ledger.add_label(label.key, label)
    (group,) = ledger.groups.values()
    assert group.whole.cell_sizes()[Cell("flagged", True)].labelled == 1
    assert group.whole.cell_sizes()[Cell("unflagged", True)].labelled == 0


# Alarms


def traffic(
    ledger: Ledger,
    policy: AlarmPolicy,
    rng: np.random.Generator,
    hours: float,
    rate: float,
    *,
    start: int = START,
    version: str = "1",
    per_window: int = 60,
    failure: FailureClass = FailureClass.COUPLED_FAILURE,
    first: int = 0,
) -> list[Alarm]:
    raised: list[Alarm] = []
    number = first
    for window in range(int(hours * 3600 / WINDOW_SECONDS)):
        stamp = start + window * WINDOW_SECONDS * 1000
        for hit in rng.random(per_window) < rate:
            item = seen(number, failure if hit else FailureClass.CLEAN, version=version)
            ledger.add(item, stamp, (0, number))
            number += 1
        now = datetime.fromtimestamp(stamp / 1000, UTC)
        raised += evaluate(ledger, policy, now, "verdicts", ())
        ledger.changes(now, 0.01)
    return raised


def test_a_rise_over_the_baseline_is_an_alarm_with_its_records_and_once() -> None:
    ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(0)
    policy = AlarmPolicy(coupled=0.05)
    assert not traffic(ledger, policy, rng, 24, 0.04)
    later = START + 24 * 3600 * 1000
    (alarm,) = traffic(ledger, policy, rng, 6, 0.15, start=later, first=100_000)
    assert alarm.kind == "coupled_failures_rose"
    assert alarm.rate is not None
    assert alarm.rate.low > 0.05
    assert abs(alarm.changed_at.timestamp() * 1000 - later) <= 2 * WINDOW_SECONDS * 1000
    assert alarm.evidence
    assert all(item.offset >= 100_000 for item in alarm.evidence)
    assert alarm.attribution == "none"
    assert acknowledge(ledger, alarm.id)
    again = traffic(ledger, policy, rng, 6, 0.15, start=later + 6 * 3_600_000, first=200_000)
    assert [item.kind for item in again] == ["coupled_failures_rose"]
    assert again[0].id != alarm.id


def test_a_version_that_fails_more_often_than_the_one_before_is_an_alarm() -> None:
    ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(1)
    policy = AlarmPolicy()
    assert not traffic(ledger, policy, rng, 12, 0.05)
    later = START + 12 * 3_600_000
    raised = traffic(ledger, policy, rng, 6, 0.2, start=later, version="2", first=10**6)
    assert [item.kind for item in raised] == ["coupled_failures_rose_over_previous"]
    assert raised[0].baseline_source == "previous version"
    better, rng = Ledger(LedgerPolicy()), np.random.default_rng(1)
    traffic(better, policy, rng, 12, 0.05)
    assert not traffic(better, policy, rng, 12, 0.03, start=later, version="2", first=10**6)


def test_contested_answers_that_rise_are_an_alarm() -> None:
    ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(2)
    raised = traffic(ledger, AlarmPolicy(), rng, 6, 0.6, failure=FailureClass.CONTESTED)
    assert [item.kind for item in raised] == ["contested_rose"]


def test_false_alarms_of_many_slices_together_stay_below_the_stated_rate() -> None:
    """Twenty slices at their baseline for 10 days each, an alarm allowed every 5 days."""
    policy = AlarmPolicy(coupled=0.1, contested=None, false_alarm_days=5.0, slices=20)
    rng = np.random.default_rng(3)
    from ares_stream.detection.alarming import limit
    from ares_stream.detection.watches import Counts, peak

    raised = 0
    streams = 12
    for _ in range(streams):
        whole = np.zeros(1440, int)
        for _ in range(20):
            hits = rng.binomial(30, 0.1, 1440)
            whole += hits
            windows = [Counts(n * 600, 30, int(hit)) for n, hit in enumerate(hits)]
            raised += peak(None, windows, 0.1).log >= limit(policy, 2.0 * 20)
        windows = [Counts(n * 600, 600, int(hit)) for n, hit in enumerate(whole)]
        raised += peak(None, windows, 0.1).log >= limit(policy, 2.0)
    assert raised / (streams * 10) <= 1 / 5


def anchors(
    ledger: Ledger, count: int, *, wrong: int, first: int, stamp: int, score: float = 0.0
) -> None:
    for number in range(count):
        harmful = number % 2 == 0
        flagged = harmful if number >= wrong else not harmful
        failure = FailureClass.POLICY_FAILURE if flagged else FailureClass.CLEAN
        anchor = Anchor(
            set="s1", id=f"a{number}", harmful=harmful, judged=harmful, reward=float(number % 5)
        )
        item = seen(first + number, failure, lane="anchor", anchor=anchor,
                    score=number % 5 + score)  # fmt: skip
        ledger.add(item, stamp, (0, first + number))


def test_anchors_decided_otherwise_are_the_judges_alarm_and_explain_a_rise() -> None:
    ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(4)
    policy = AlarmPolicy(coupled=0.05)
    traffic(ledger, policy, rng, 6, 0.04)
    anchors(ledger, 100, wrong=0, first=10**6, stamp=START)
    later = START + 6 * 3_600_000
    anchors(ledger, 40, wrong=10, first=2 * 10**6, stamp=later)
    raised = traffic(ledger, policy, rng, 3, 0.3, start=later, first=3 * 10**6)
    assert [item.kind for item in raised] == ["judge_changed", "coupled_failures_rose"]
    assert [item.attribution for item in raised] == ["judge", "judge"]


def test_a_rise_with_steady_anchors_is_the_systems() -> None:
    ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(5)
    policy = AlarmPolicy(coupled=0.05)
    traffic(ledger, policy, rng, 6, 0.04)
    later = START + 6 * 3_600_000
    anchors(ledger, 400, wrong=0, first=10**6, stamp=later + 3_000_000)
    raised = traffic(ledger, policy, rng, 3, 0.3, start=later, first=3 * 10**6)
    assert [(item.kind, item.attribution) for item in raised] == [
        ("coupled_failures_rose", "system")
    ]


def test_an_anchor_that_is_asked_a_thousand_times_is_one_fact() -> None:
    """Twenty anchors, again and again: neither do they refute a judge that changes a tenth of its
    decisions, nor do two of them that changed show that more than 1 % have."""
    policy = AlarmPolicy(coupled=0.05)
    for wrong in (0, 2):
        ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(5)
        traffic(ledger, policy, rng, 6, 0.04)
        later = START + 6 * 3_600_000
        for turn in range(100):
            stamp = later + turn * 2 * MINUTE
            anchors(ledger, 20, wrong=wrong, first=10**6 + 20 * turn, stamp=stamp)
        raised = traffic(ledger, policy, rng, 3, 0.3, start=later, first=3 * 10**6)
        assert [(item.kind, item.attribution) for item in raised] == [
            ("coupled_failures_rose", "none")
        ]
        assert f"{wrong // 2} of 10 different anchors" in raised[0].attribution_reason
        (tally,) = ledger.anchors.values()
        assert tally.known == 20
        assert sum(tally.decisions.values()) == 2_000


@pytest.mark.parametrize("judge", ["steady", "unsteady"])
def test_a_judge_that_errs_no_more_than_stated_raises_its_alarm_no_more_often(judge: str) -> None:
    """Thirty days of anchors, 1 % of which the judge decides otherwise: always the same ones, or
    each at any time. One alarm in five days is allowed."""
    rng = np.random.default_rng(8)
    raised = 0
    for _ in range(20):
        tally = AnchorTally("s")
        bad = rng.random(200) < 0.01
        for window in range(216):
            for number in range(20 * window, 20 * window + 20):
                wrong = bad[number % 200] if judge == "steady" else rng.random() < 0.01
                anchor = Anchor(set="s", id=f"a{number % 200}", harmful=False, judged=False)
                failure = FailureClass.POLICY_FAILURE if wrong else FailureClass.CLEAN
                item = OBSERVED[failure]._replace(anchor=AnchorTruth(*anchor_fields(anchor)))
                tally.add(item, START + window * WINDOW_SECONDS * 1000)
            tally.fold_windows()
        raised += tally.peak(0.01).log >= limit(AlarmPolicy(false_alarm_days=5.0))
    assert raised / (20 * 1.5) <= 1 / 5


def test_the_same_anchors_in_any_order_and_over_restarts_give_the_same_figures() -> None:
    rng = random.Random(4)
    taken: list[Row] = []
    for number in range(900):
        anchor = Anchor(
            set=f"s{number % 2}", id=f"a{number % 50}", harmful=False,
            judged=rng.choice((True, False, None)), reward=float(number % 5),
        )  # fmt: skip
        failure = rng.choice(list(FailureClass))
        item = seen(number, failure, lane="anchor", anchor=anchor, score=rng.random())
        taken.append((item, START + number * 2 * MINUTE, (number % 3, number // 3)))
    policy = AlarmPolicy()
    whole = filled(taken)
    expected = written(whole)
    # In the order of partitions, within a day of each other.
    other = Ledger(EVERYTHING)
    for start in range(0, 900, 300):
        for row in sorted(taken[start : start + 300], key=lambda row: row[2]):
            other.add(*row)
    assert {k: v.encode() for k, v in expected.items() if v is not None} == {
        k: v.encode() for k, v in written(other).items() if v is not None
    }
    state: dict[bytes, Record | None] = {}
    for start in range(0, 900, 100):
        ledger = restored(state, EVERYTHING) if state else Ledger(EVERYTHING)
        for row in taken[start : start + 100]:
            ledger.add(*row)
        state.update(written(ledger))
    assert {k: v.encode() for k, v in expected.items() if v is not None} == {
        k: v.encode() for k, v in state.items() if v is not None
    }
    again = restored(state, EVERYTHING)
    for ledger in (whole, again):
        for tally in ledger.anchors.values():
            tally.dirty = True
    alarms = [evaluate(item, policy, NOON, "verdicts", ()) for item in (whole, again)]
    assert alarms[0] == alarms[1]
    assert "judge_changed" in {item.kind for item in alarms[0]}


def test_anchors_and_sets_without_end_fill_no_memory_and_are_told() -> None:
    ledger = Ledger(LedgerPolicy())
    for number in range(MAX_ANCHORS + 50):
        anchor = Anchor(set="s", id=f"a{number}", harmful=False, judged=False)
        ledger.add(seen(number, lane="anchor", anchor=anchor), START, (0, number))
    assert ledger.anchors["s"].known == MAX_ANCHORS
    assert ledger.folded == {"anchor": 50}
    written(ledger)
    for number in range(50):
        anchor = Anchor(set=f"t{number}", id="a", harmful=False, judged=False)
        item = seen(number, lane="anchor", anchor=anchor)
        ledger.add(item, START + (number + 1) * MINUTE * 10, (0, number))
    assert set(ledger.anchors) == {f"t{number}" for number in range(50 - MAX_SETS, 50)}
    gone = [key for key, item in written(ledger).items() if item is None]
    assert b'["anchors","s"]' in gone
    assert len([key for key in gone if b'"s"' in key]) == 2


def test_a_set_that_is_not_sent_any_more_says_nothing_of_the_judge_now() -> None:
    ledger, rng = Ledger(LedgerPolicy()), np.random.default_rng(9)
    policy = AlarmPolicy(coupled=0.05)
    anchors(ledger, 100, wrong=30, first=10**6, stamp=START)
    assert [item.kind for item in evaluate(ledger, policy, NOON, "verdicts", ())] == [
        "judge_changed"
    ]
    later = START + 2 * 86_400_000
    raised = traffic(ledger, policy, rng, 3, 0.3, start=later, first=3 * 10**6)
    assert [(item.kind, item.attribution) for item in raised] == [("coupled_failures_rose", "none")]
    assert raised[0].attribution_reason == "no anchors have come since the change"


def test_a_reward_release_that_scores_anchors_otherwise_has_drifted() -> None:
    ledger = Ledger(LedgerPolicy())
    anchors(ledger, 60, wrong=0, first=0, stamp=START, score=0.1)
    assert not evaluate(ledger, AlarmPolicy(), NOON, "verdicts", ())
    anchors(ledger, 60, wrong=0, first=100, stamp=START, score=2.0)
    raised = evaluate(ledger, AlarmPolicy(), NOON, "verdicts", ())
    assert [item.kind for item in raised] == ["reward_drifted"]
    assert not evaluate(ledger, AlarmPolicy(), NOON, "verdicts", ())


def test_dead_letters_that_rise_and_a_lane_that_falls_silent_are_alarms() -> None:
    ledger = Ledger(LedgerPolicy())
    policy = AlarmPolicy(silent_seconds={"production": 900})
    for number in range(600):
        ledger.add(seen(number), START + number * 1000, (0, number))
    assert not evaluate(ledger, policy, NOON + timedelta(minutes=10), "verdicts", ())
    ledger.add_dead_letters([START + 1000 * number for number in range(100)])
    raised = evaluate(ledger, policy, NOON + timedelta(minutes=20), "verdicts", ())
    assert [item.kind for item in raised] == ["dead_letters_rose"]
    raised = evaluate(ledger, policy, NOON + timedelta(minutes=40), "verdicts", ())
    assert [item.kind for item in raised] == ["lane_silent"]
    assert not evaluate(ledger, policy, NOON + timedelta(minutes=50), "verdicts", ())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema": "ares.verdict/2"}, "schema"),
        ({"id": "not a digest"}, "id"),
        ({"failure_class": "bad"}, "failure_class"),
        ({"harm": {"probability": 2, "judges": {}}}, "harm.probability"),
        ({"policy": {"name": "x"}}, "policy.version"),
        ({"reward": {"score": "NaN", "quantile": 0.5}}, "reward.score"),
    ],
)
def test_a_verdict_that_cannot_be_read_is_named_by_its_field(
    change: dict[str, object], field: str
) -> None:
    import json

    raw = json.loads(verdict(0).encode()) | change
    with pytest.raises(DecodeError) as caught:
        read_observation(json.dumps(raw).encode(), "either")
    assert caught.value.field == field


def test_a_clock_that_jumps_back_counts_late_and_forward_breaks_nothing() -> None:
    ledger = Ledger(LedgerPolicy())
    for number, stamp in enumerate((START, START + 3 * 86_400_000, START, 0)):
        ledger.add(seen(number), stamp, (0, number))
        written(ledger)
    (group,) = ledger.groups.values()
    assert group.whole.total == 4
    assert group.whole.late == 2


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in items:
        if isinstance(item, dict | list):
            yield from _leaves(item, (*path, name))
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield (*path, name)


def _bent(raw: bytes, rng: random.Random) -> bytes:
    """The record with one number, or one list of numbers, that nobody counted."""
    document = json.loads(raw)
    paths = [path for path in _leaves(document) if "figures" not in path]
    if not paths:
        return raw
    *way, last = rng.choice(paths)
    held = document
    for name in way:
        held = held[name]
    if isinstance(held, list) and rng.random() < 0.3:
        held.pop()
    else:
        held[last] = rng.choice((-1, 0, 1, held[last] + 1, held[last] - 1, 10**9, 2**62, 0.5))
    return json.dumps(document).encode()


@pytest.mark.parametrize("seed", range(3))
def test_a_well_formed_state_that_nobody_counted_is_refused_or_breaks_nothing(seed: int) -> None:
    """Whatever number of a state is another one: it is taken up or it is a DecodeError, and what is
    taken up gives figures, alarms and a state again."""
    rng = random.Random(seed)
    policy = AlarmPolicy(
        coupled=0.2, contested=0.2, judge_changed=0.1, reward_drift=0.5, dead_letters=0.1, slices=3
    )
    whole = filled(rows(90), labels(90))
    anchors(whole, 40, wrong=5, first=10_000, stamp=START, score=0.1)
    anchors(whole, 40, wrong=9, first=11_000, stamp=START + 30 * MINUTE, score=0.2)
    whole.add_dead_letters([START, START + MINUTE])
    evaluate(whole, policy, NOON, "verdicts", ())
    state = {key: item for key, item in written(whole).items() if item is not None}
    restored(dict(state), EVERYTHING)
    refused = 0
    for _ in range(30):
        key = rng.choice(list(state))
        try:
            bent = type(state[key]).decode(_bent(state[key].encode(), rng))
            ledger = restored({**state, key: bent}, EVERYTHING)
        except DecodeError:
            refused += 1
            continue
        ledger.add_dead_letters([START + 2 * MINUTE])
        for observation, stamp, place in rows(30, seed=1):
            ledger.add(observation, stamp, place)
        evaluate(ledger, policy, NOON, "verdicts", ())
        assert ledger.rates()
        assert ledger.changes(NOON, 0.01)
    assert refused > 3
