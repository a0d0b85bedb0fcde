"""A forecast: which prompts are drawn, what is said of them, and how right it was."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.audit.forecast import (
    ForecastTally,
    Pair,
    error_of,
    errors_of,
    forecast_lines,
    objections,
    remix,
)
from ares_stream.audit.kept_answers import KeptAnswers
from ares_stream.audit.sampling import MAX_STRATA, PromptSample, sample_digest
from ares_stream.audit.simulate import Candidate, Production, Survey, simulate, survey
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.intervals import exact_effective, wilson
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import InputError, RegistryError, ScoringError, TargetError
from ares_stream.models.releases import Author, Log, approval, forecasted, rejection
from ares_stream.probes.targets import Answer, Query, Result, Target
from ares_stream.records.base import OffsetRange, digest
from ares_stream.records.forecast import Forecast
from ares_stream.records.interaction import Interaction, Policy
from ares_stream.records.observation import read_observation
from ares_stream.records.rates import Rates
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.verdict import FailureClass, Harm, Reward
from ares_stream.repair.gate import GatePolicy, Rule
from ares_stream.services.settings import Settings
from ares_stream.streaming.records import InboundRecord
from tests.support.forecasts import CANDIDATE, asked, forecast_of, place
from tests.support.verdicts import NOON, verdict

ANN = Author("ann", NOON, "forecast")
REFUSAL = "^I cannot"


# The sample


def draw(items: Sequence[tuple[int, Interaction]], **options: object) -> PromptSample:
    sample = PromptSample(**options)  # type: ignore[arg-type]
    for offset, item in items:
        sample.add(item, ("in", 0, offset))
    return sample


@given(st.permutations(range(60)), st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_a_sample_does_not_depend_on_the_order_of_reading(
    order: list[int], each: int, seed: int
) -> None:
    rows = [(k, asked(k, "yes", "de" if k % 3 else "en")) for k in range(60)]
    straight = draw(rows, by=("locale",), each=each, seed=seed)
    mixed = draw([rows[k] for k in order], by=("locale",), each=each, seed=seed)
    assert straight.drawn() == mixed.drawn()
    assert sample_digest(straight.drawn()) == sample_digest(mixed.drawn())


def test_another_seed_draws_other_prompts_and_a_slice_gives_as_many_as_it_has() -> None:
    rows = [(k, asked(k, "yes", "en" if k < 5 else "de")) for k in range(1000)]
    one, two = (draw(rows, by=("locale",), each=50, seed=seed) for seed in (1, 2))
    assert sample_digest(one.drawn()) != sample_digest(two.drawn())
    found = Counter(item.places for item in one.drawn())
    assert found == {("locale=de",): 50, ("locale=en",): 5}
    assert one.sizes() == {"locale=de": 995, "locale=en": 5}
    assert {item.probability for item in one.drawn()} == {50 / 995, 1.0}


def test_every_prompt_is_drawn_as_often_as_any_other() -> None:
    rows = [(k, asked(k, "yes")) for k in range(40)]
    times = Counter(
        item.coordinates[2]
        for seed in range(400)
        for item in draw(rows, each=10, seed=seed).drawn()
    )
    # 400 draws of a quarter: 100 expected with a standard deviation of 8.7; the seeds are fixed.
    assert min(times.values()) > 65
    assert max(times.values()) < 135


def test_an_attribute_of_many_values_is_folded_and_a_missing_one_is_no_slice() -> None:
    rows = [(k, asked(k, "yes", f"l{k}")) for k in range(MAX_STRATA + 50)]
    sample = draw([*rows, (9999, asked(9999, "yes", ""))], by=("locale",), each=3)
    sizes = sample.sizes()
    assert len(sizes) == MAX_STRATA + 1
    assert sizes["locale=(other)"] == 51
    assert sample.seen == MAX_STRATA + 51


def test_a_sample_of_too_much_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ares_stream.audit.sampling.MAX_BYTES", 1000)
    with pytest.raises(InputError, match="take fewer prompts"):
        draw([(k, asked(k, "y" * 300)) for k in range(10)])


# Answering and scoring


@dataclass(frozen=True)
class Said:
    """Scores chosen by the words of an answer."""

    harm: Harm
    reward: Reward
    releases: Mapping[str, str] = field(default_factory=dict)


class Words:
    """Harmful is what says poison, liked what says nice; broken cannot be scored."""

    def __init__(self, name: str = "d") -> None:
        self.releases = {"judge": "a" * 64, "reward": name * 64}
        self.scored: list[str] = []

    async def score(self, interactions: Sequence[Interaction]) -> list[Said | ScoringError]:
        self.scored += [item.response for item in interactions]
        return [
            ScoringError("not a number") if "broken" in item.response else Said(
                Harm(probability=0.99 if "poison" in item.response else 0.01, judges={}),
                Reward(score=1.0, quantile=0.9 if "nice" in item.response else 0.1),
            )
            for item in interactions
        ]  # fmt: skip


class Says:
    """A policy that answers by a rule; None gives no answer."""

    def __init__(self, rule: Callable[[str], str | None]) -> None:
        self.policy = CANDIDATE
        self._rule = rule
        self.seeds: list[int] = []

    async def ask(self, queries: Sequence[Query]) -> list[Result]:
        self.seeds += [query.seed for query in queries]
        said = [self._rule(query.messages[-1].content) for query in queries]
        return [TargetError("is away") if item is None else Answer(item) for item in said]

    async def aclose(self) -> None: ...


def simulated(
    rows: Sequence[Interaction],
    rule: Callable[[str], str | None] | None,
    *,
    each: int = 10_000,
    by: tuple[str, ...] = ("locale",),
    present: Words | None = None,
    scorer: Words | None = None,
) -> Forecast:
    sample = draw(list(enumerate(rows)), by=by, each=each)
    present = present or Words()
    candidate = Candidate(
        CANDIDATE, None if rule is None else Says(rule), scorer or present, present
    )
    return asyncio.run(
        simulate(
            Survey(sample, read=len(rows)), (), candidate, by=by, seed=0, made_at=NOON,
            detection=DetectionPolicy(), refusal=REFUSAL,
        )
    )  # fmt: skip


def number(prompt: str) -> int:
    return int(prompt.split()[1])


def test_figures_are_those_of_the_recorded_answers_and_of_the_candidates_to_the_same_prompts() -> (
    None
):
    rows = [asked(k, "poison nice" if k % 4 == 0 else "bread") for k in range(400)]
    found = simulated(rows, lambda prompt: "poison" if number(prompt) % 10 == 0 else "bread")
    whole = found.overall
    assert whole.observed["cfr"] == exact_effective(0.25, 400, 400)
    assert whole.observed["policy_harm"] == exact_effective(0.25, 400, 400)
    assert whole.forecast["cfr"].value == 0.0
    assert whole.forecast["policy_harm"] == exact_effective(0.1, 400, 400)
    assert (whole.prompts, whole.sampled, whole.floor) == (400, 400, 3 / 400)
    assert found.policy == CANDIDATE


def test_over_refusal_counts_refusals_of_what_was_answered_harmlessly_alone() -> None:
    rows = [asked(k, ("poison nice", "I cannot", "bread", "bread")[k % 4]) for k in range(400)]
    found = simulated(rows, lambda prompt: "I cannot" if number(prompt) % 8 < 3 else "bread")
    said = found.overall.forecast["over_refusal"]
    # Of the 200 that were answered harmlessly, those with number % 8 == 2: a quarter of them.
    assert (said.value, said.count) == (0.25, 200)
    assert found.overall.observed["over_refusal"].value == 0.0


def test_a_rare_slice_does_not_weigh_more_in_the_whole_than_it_is() -> None:
    rows = [asked(k, "bread", "en" if k < 40 else "de") for k in range(4000)]
    found = simulated(
        rows, lambda prompt: "poison nice" if number(prompt) < 40 else "bread", each=40
    )
    assert found.slices["locale=en"].forecast["cfr"].value == 1.0
    assert found.slices["locale=de"].forecast["cfr"].value == 0.0
    whole = found.overall
    assert whole.sampled == 80
    assert whole.forecast["cfr"].value == pytest.approx(0.01)
    # 80 draws of such weights are worth 41: the floor says so.
    assert whole.floor == pytest.approx(3 / 40.8, rel=0.01)
    assert found.slices["locale=en"].floor == pytest.approx(3 / 40)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    chooser = random.Random(5)
    held = 0
    rows = [asked(k, "bread", "en" if k % 10 == 0 else "de") for k in range(600)]
    for trial in range(200):
        harmful = {k for k in range(600) if chooser.random() < (0.3 if k % 10 == 0 else 0.05)}
        sample = draw(list(enumerate(rows)), by=("locale",), each=40, seed=trial)
        tally = ForecastTally()
        for item in sample.drawn():
            hit = item.coordinates[2] in harmful
            clean, coupled = FailureClass.CLEAN, FailureClass.COUPLED_FAILURE
            tally.add(item, Pair(clean, False, coupled if hit else clean, False))
        whole, _ = tally.places(sample.seen, sample.sizes())
        said = whole.forecast["cfr"]
        held += said.low <= len(harmful) / 600 <= said.high
    assert held >= 185  # of 200 at 95 %


def test_a_new_reward_model_alone_is_forecast_from_the_recorded_answers() -> None:
    rows = [asked(k, "poison nice") for k in range(50)]
    present, scorer = Words("d"), Words("f")
    found = simulated(rows, None, present=present, scorer=scorer)
    assert scorer.scored == present.scored == ["poison nice"] * 50
    assert found.releases["reward"] == "f" * 64
    assert found.present["reward"] == "d" * 64


def test_every_prompt_is_sampled_and_none_answered_greedily() -> None:
    target = Says(lambda _: "bread")
    sample = draw([(k, asked(k, "bread")) for k in range(100)])
    candidate = Candidate(CANDIDATE, target, Words(), Words())
    asyncio.run(
        simulate(Survey(sample), (), candidate, by=(), seed=0, made_at=NOON,
                 detection=DetectionPolicy(), refusal=REFUSAL)
    )  # fmt: skip
    assert 0 not in target.seeds
    assert len(set(target.seeds)) == 100


def test_prompts_without_an_answer_or_a_score_are_counted_and_in_no_figure() -> None:
    rows = [asked(k, "broken" if k == 7 else "bread") for k in range(100)]
    found = simulated(rows, lambda prompt: None if number(prompt) < 3 else "bread")
    assert found.unanswered == 4
    assert found.overall.sampled == 96
    assert found.overall.prompts == 100


def test_a_candidate_that_seldom_answers_has_no_forecast() -> None:
    rows = [asked(k, "bread") for k in range(100)]
    with pytest.raises(TargetError, match="no answer or no score; the first reason: is away"):
        simulated(rows, lambda prompt: None if number(prompt) % 10 == 0 else "bread")


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_answer_without_text_is_no_answer_and_not_harmless(text: str, tmp_path: Path) -> None:
    rows = [asked(k, "poison nice") for k in range(100)]
    found = simulated(rows, lambda prompt: text if number(prompt) < 5 else "poison nice")
    assert (found.unanswered, found.overall.unanswered, found.overall.sampled) == (5, 5, 95)
    assert found.overall.forecast["cfr"].value == 1.0
    with pytest.raises(TargetError, match=r"first reason: the answer is empty \(stop\)"):
        simulated(rows, lambda prompt: text if number(prompt) < 6 else "poison nice")
    # It is not kept either: the next forecast asks again.
    file, query = tmp_path / "answers.jsonl", Query(rows[0].messages, 1)
    asyncio.run(KeptAnswers(Says(lambda _: text), file).ask([query]))
    again = Says(lambda _: "bread")
    assert asyncio.run(KeptAnswers(again, file).ask([query])) == [Answer("bread")]


def test_a_slice_without_answers_is_told_and_not_approved_though_the_whole_would_be() -> None:
    rows = [asked(k, "poison nice", "en" if k < 20 else "de") for k in range(1000)]
    found = simulated(rows, lambda prompt: None if number(prompt) < 20 else "bread")
    english, german = found.slices["locale=en"], found.slices["locale=de"]
    assert (english.sampled, english.unanswered, english.prompts) == (0, 20, 20)
    assert (german.sampled, german.unanswered) == (980, 0)
    assert "locale=en: 0 prompts, floor 100.00%, 20 without an answer" in "\n".join(
        forecast_lines(found)
    )
    (item,) = candidates("policy", forecast=found).releases
    rules = GatePolicy(rules=(Rule(figure="cfr", kind="fall"),))
    assert objections(item, rules) == (
        "locale=en: 20 of 20 drawn prompts have no answer or no score",
    )
    rates = [
        row.model_copy(update={"slice": row.slice.model_copy(update={"value": "en"})})
        if row.slice.attribute else row for row in rates_of("2", 1, 400)
    ]  # fmt: skip
    assert "locale=en" not in {error.place for error in errors_of(found, rates)}


def test_of_a_candidate_that_answers_nothing_no_more_than_the_first_prompts_are_asked() -> None:
    target = Says(lambda _: None)
    sample = draw([(k, asked(k, "bread")) for k in range(2000)], each=2000)
    candidate = Candidate(CANDIDATE, target, Words(), Words())
    with pytest.raises(TargetError, match="32 of the first 32 prompts have no answer"):
        asyncio.run(
            simulate(Survey(sample), (), candidate, by=(), seed=0, made_at=NOON,
                     detection=DetectionPolicy(), refusal=REFUSAL)
        )  # fmt: skip
    assert len(target.seeds) == 32


def test_a_forecast_of_fewer_answers_than_it_needs_prompts_is_refused() -> None:
    rows = [asked(k, "bread") for k in range(30)]
    with pytest.raises(TargetError, match="29 of 30 prompts have an answer and a score"):
        simulated(rows, lambda prompt: None if number(prompt) == 3 else "bread")


def test_a_forecast_that_was_killed_asks_nothing_twice_and_says_the_same(tmp_path: Path) -> None:
    rows = [asked(k, "bread") for k in range(600)]
    file = tmp_path / "answers.jsonl"
    rule = {k: "poison nice" if k % 7 == 0 else "bread" for k in range(600)}

    def forecast(target: Target) -> Forecast:
        sample = draw(list(enumerate(rows)))
        candidate = Candidate(CANDIDATE, KeptAnswers(target, file), Words(), Words())
        return asyncio.run(
            simulate(Survey(sample), (), candidate, by=(), seed=0, made_at=NOON,
                     detection=DetectionPolicy(), refusal=REFUSAL)
        )  # fmt: skip

    class Killed(Says):
        async def ask(self, queries: Sequence[Query]) -> list[Result]:
            if self.seeds:
                raise KeyboardInterrupt
            return await super().ask(queries)

    first = Killed(lambda prompt: rule[number(prompt)])
    with pytest.raises(KeyboardInterrupt):
        forecast(first)
    with file.open("ab") as stream:
        stream.write(b'{"key": "cut sho')  # What a kill leaves of a line.
    second = Says(lambda prompt: rule[number(prompt)])
    found = forecast(second)
    assert len(second.seeds) == 400 - len(first.seeds) > 0
    assert set(second.seeds).isdisjoint(first.seeds)
    third = Says(lambda _: None)
    assert forecast(third) == found
    assert third.seeds == []
    assert file.stat().st_mode & 0o077 == 0
    # Another candidate finds nothing of it.
    other = Says(lambda _: "bread")
    other.policy = Policy(name="chat", version="3")
    assert forecast(other).overall.forecast["policy_harm"].value == 0.0
    file.write_text("[]\n")
    with pytest.raises(InputError, match=r"answers\.jsonl:1: no kept answer"):
        forecast(third)


def test_a_handful_of_prompts_is_no_forecast() -> None:
    with pytest.raises(InputError, match="12 prompts in this range"):
        simulated([asked(k, "bread") for k in range(12)], lambda _: "bread")


def test_what_the_scorer_would_refuse_and_what_came_too_late_is_no_prompt() -> None:
    class Memory:
        async def snapshot(self, *_: object, **__: object) -> tuple[OffsetRange, ...]:
            raise NotImplementedError

        async def read(self, ranges: Sequence[OffsetRange]) -> AsyncIterator[InboundRecord]:
            values = [asked(k, "bread").encode() for k in range(8)]
            for offset, value in enumerate([*values, b"{", None]):
                yield InboundRecord("in", 0, offset, 1000 + offset, b"k", value)

    ranges = (OffsetRange(topic="in", partition=0, start=0, end=10),)
    every = asyncio.run(survey(Memory(), Production(ranges), PromptSample()))
    assert (every.read, every.undecodable, every.sample.seen) == (10, 2, 8)
    early = asyncio.run(survey(Memory(), Production(ranges, until_ms=1003), PromptSample()))
    assert (early.read, early.sample.seen) == (3, 3)


def test_a_forecast_shows_its_figures_and_no_text() -> None:
    rows = [asked(k, "poison nice secret") for k in range(60)]
    found = simulated(rows, lambda _: "bread secret")
    raw = found.model_dump_json()
    assert "secret" not in raw
    assert "question" not in raw
    shown = "\n".join(forecast_lines(found))
    assert "60 of 60 prompts of production" in shown
    assert "cfr           100.00%" in shown
    assert "locale=de" in shown


# In the registry


def candidates(*kinds: str, plan: str | None = "plan-1", **fields: object) -> Log:
    made = tuple(
        Release.model_validate(
            {
                "model": "policy" if kind == "policy" else "reward",
                "kind": kind,
                "digest": digest([kind]),
                "uri": "x",
                "state": "candidate",
                "changed_at": NOON,
                "changed_by": "repairer",
                "plan_id": plan,
                "previous": "1" * 64,
            }
            | fields
        )
        for kind in kinds
    )
    return Log((made,), None)


GOOD = forecast_of(place({"cfr": 100}, {"cfr": 2}))


def test_a_forecast_is_a_step_that_leaves_both_candidates_and_stays_with_them() -> None:
    log = candidates("policy", "reward")
    step = forecasted(log, "plan-1", GOOD, ANN)
    after = Log((*log.steps, step), None)
    assert {item.state for item in after.releases} == {ReleaseState.CANDIDATE}
    assert [item.forecast for item in after.releases] == [GOOD, GOOD]
    rejected = rejection(after, "plan-1", ANN)
    assert [item.forecast for item in rejected] == [GOOD, GOOD]
    assert Release.decode(rejected[0].encode()).forecast == GOOD


@pytest.mark.parametrize("state", ["active", "superseded", "rejected", "rolled_back"])
def test_what_is_decided_gets_no_forecast(state: str) -> None:
    log = candidates("policy", state=state)
    with pytest.raises(RegistryError, match="only a candidate gets a forecast"):
        forecasted(log, "plan-1", GOOD, ANN)


RULES = GatePolicy(
    rules=(
        Rule(figure="cfr", kind="fall"),
        Rule(figure="over_refusal", kind="hold_low", tolerance=0.02),
    )
)


@pytest.mark.parametrize(
    ("forecast", "reason"),
    [
        (GOOD, None),
        (None, "it has none"),
        (forecast_of(place({"cfr": 100}, {"cfr": 60})), "cfr: upper bound"),
        (forecast_of(place({"cfr": 100}, {"over_refusal": 50})), "over_refusal: upper bound"),
        (
            forecast_of(place({"cfr": 100}, {"cfr": 2}), de=place({"cfr": 0}, {"cfr": 12}, 60)),
            "cfr of locale=de",
        ),
    ],
)
def test_a_rule_on_the_forecast_is_the_gates_with_the_recorded_answers_as_the_incumbent(
    forecast: Forecast | None, reason: str | None
) -> None:
    (item,) = candidates("policy", forecast=forecast).releases
    said = objections(item, RULES)
    assert (reason is None) == (said == ())
    assert reason is None or any(reason in line for line in said), said


@pytest.mark.parametrize(
    ("forecast", "reason"),
    [
        (forecast_of(place({"cfr": 100}, {"contested": 900})), "contested: upper bound"),
        (
            forecast_of(
                place({"cfr": 100}, {"cfr": 2}), de=place({"cfr": 6}, {"contested": 60}, 60)
            ),
            "locale=de: 100.00% ",
        ),
    ],
    ids=["of the whole", "of a slice"],
)
def test_a_candidate_whose_answers_people_must_decide_on_clears_no_rule_of_harm(
    forecast: Forecast, reason: str
) -> None:
    (item,) = candidates("policy", forecast=forecast).releases
    said = objections(item, RULES)
    assert any(line.startswith(reason) for line in said), said
    allowed = Rule(figure="contested", kind="stay_below", ceiling=1.0)
    assert objections(item, GatePolicy(rules=(*RULES.rules, allowed))) == ()


def test_a_first_reward_model_and_a_judge_need_no_forecast() -> None:
    (first,) = candidates("reward", previous=None).releases
    (judge,) = candidates("harm").releases
    assert objections(first, RULES) == objections(judge, RULES) == ()


def test_settings_refuse_rules_on_figures_that_no_forecast_has_and_approval_before_it() -> None:
    rules = {"rules": [{"figure": "drift_fixed", "kind": "hold_low"}]}
    with pytest.raises(ValueError, match="drift_fixed: not a forecast's figure; there are cfr"):
        Settings.model_validate({"registry": {"forecast": rules}})
    rules = {"rules": [{"figure": "cfr", "kind": "fall"}]}
    with pytest.raises(ValueError, match=r"repairer\.approval: automatic would approve before"):
        Settings.model_validate(
            {"registry": {"forecast": rules}, "repairer": {"approval": "automatic"}}
        )
    assert Settings.model_validate({"registry": {"forecast": rules}}).registry.store()


def test_approval_says_nothing_of_forecasts_unless_the_store_asks() -> None:
    assert approval(candidates("policy", previous=None), "plan-1", ANN)


# What came


@pytest.mark.parametrize(
    ("observed", "forecast", "measured", "ratio", "direction"),
    [
        (100, 20, 25, 0.8, "right"),
        (100, 120, 25, 4.8, "wrong"),
        (20, 100, 80, 1.25, "right"),
        (20, 20, 80, 0.25, "wrong"),
        (100, 60, 90, 2 / 3, "no change"),
        (4, 4, 7, 4 / 7, "not shown"),
        (100, 0, 0, 1.0, "right"),  # both below the floor of 3 in 1000
        (100, 0, 6, 0.5, "right"),
    ],
)
def test_an_error_is_a_ratio_down_to_the_floor_and_a_direction(
    observed: int, forecast: int, measured: int, ratio: float, direction: str
) -> None:
    said = place({"cfr": observed}, {"cfr": forecast})
    found = error_of("", "cfr", said, wilson(measured, 1000))
    assert found.ratio == pytest.approx(ratio)
    assert found.direction == direction
    assert found.factor == pytest.approx(max(ratio, 1 / ratio))


def rates_of(version: str, failures: int, count: int, name: str = "chat") -> list[Rates]:
    ledger = Ledger(LedgerPolicy(slices=("locale",)))
    for k in range(count):
        kind = FailureClass.COUPLED_FAILURE if k < failures else FailureClass.CLEAN
        item = verdict(k, kind, version=version, locale="de" if k % 2 else "en", liked=k < failures)
        item = item.model_copy(update={"policy": Policy(name=name, version=version)})
        seen = read_observation(item.encode(), "either")
        ledger.add(seen, int(NOON.timestamp() * 1000) + k, (0, k))
    return [item for _, item in ledger.changes(NOON, 0.01) if isinstance(item, Rates)]


def test_a_release_is_compared_with_the_rates_of_its_own_version_and_reward_model() -> None:
    said = forecast_of(place({"cfr": 100}, {"cfr": 20}), de=place({"cfr": 50}, {"cfr": 10}, 500))
    rates = [*rates_of("1", 50, 500), *rates_of("2", 12, 400), *rates_of("2", 90, 400, "other")]
    found = errors_of(said, rates)
    assert [(item.place, item.figure) for item in found] == [
        ("", "cfr"), ("", "policy_harm"), ("locale=de", "cfr"), ("locale=de", "policy_harm"),
    ]  # fmt: skip
    assert found[0].measured.value == pytest.approx(12 / 400)
    assert found[0].ratio == pytest.approx(0.02 / 0.03)
    assert found[0].direction == "right"
    stranger = said.model_copy(update={"releases": {"reward": "9" * 64}})
    assert errors_of(stranger, rates) == []


@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(3, 900), st.integers(0, 100)), min_size=1,
             max_size=5),
)  # fmt: skip
def test_the_whole_is_weighed_anew_by_the_mix_that_came(
    rows: list[tuple[int, int, int]],
) -> None:
    slices = {f"v{k}": place({}, {"cfr": min(hits, count)}, count)
              for k, (_, count, hits) in enumerate(rows)}  # fmt: skip
    said = forecast_of(place({"cfr": 5}, {"cfr": 5}), **slices)
    came = {f"v{k}": many for k, (many, _, _) in enumerate(rows)}
    found = remix(said, "cfr", "locale", came, wilson(10, 1000))
    assert found is not None
    rates = [min(hits, count) / count for _, count, hits in rows]
    total = sum(came.values())
    expected = sum(many * rate for many, rate in zip(came.values(), rates, strict=True)) / total
    assert found.forecast.value == pytest.approx(expected)
    assert 0.0 <= found.forecast.low <= found.forecast.value <= found.forecast.high <= 1.0
    assert found.unseen == 0.0
    other = remix(said, "cfr", "locale", came | {"new": total}, wilson(10, 1000))
    assert other is not None
    assert other.forecast == found.forecast
    assert other.unseen == pytest.approx(0.5)
    assert remix(said, "cfr", "locale", {"new": 5}, wilson(10, 1000)) is None


def test_traffic_that_shifts_is_told_from_answers_that_were_forecast_wrongly() -> None:
    # One locale fails ten times as often; half of the sample was of each, a tenth of what came.
    said = forecast_of(
        place({"cfr": 200}, {"cfr": 55}, 1000),
        de=place({"cfr": 180}, {"cfr": 50}, 500), en=place({"cfr": 20}, {"cfr": 5}, 500),
    ).model_copy(update={"by": ("locale",)})  # fmt: skip
    ledger = Ledger(LedgerPolicy(slices=("locale",)))
    for k in range(1000):
        german = k % 10 == 0
        failed = k % 100 == 0 if german else k % 100 == 1
        kind = FailureClass.COUPLED_FAILURE if failed else FailureClass.CLEAN
        item = verdict(k, kind, version="2", locale="de" if german else "en", liked=failed)
        seen = read_observation(item.encode(), "either")
        ledger.add(seen, int(NOON.timestamp() * 1000) + k, (0, k))
    rates = [item for _, item in ledger.changes(NOON, 0.01) if isinstance(item, Rates)]
    whole = next(item for item in errors_of(said, rates) if not item.place)
    (mix,) = whole.remixes
    assert whole.ratio == pytest.approx(55 / 20)
    assert (mix.attribute, mix.unseen) == ("locale", 0.0)
    assert mix.ratio == pytest.approx((0.1 * 0.1 + 0.9 * 0.01) / 0.02)
    assert whole.document()["remixes"] == [mix.document()]
    (line,) = [line for line in forecast_lines(said) if "mix" in line]
    assert "by locale" in line
    assert "says nothing" in "".join(forecast_lines(forecast_of(place({"cfr": 1}, {"cfr": 1}))))


def test_a_version_with_few_verdicts_says_nothing_of_its_forecast_yet() -> None:
    assert errors_of(forecast_of(place({"cfr": 100}, {"cfr": 20})), rates_of("2", 5, 60)) == []
