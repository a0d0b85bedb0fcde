"""What a candidate would do in production: figures of its answers to production's own prompts, and
how far they were off once it has answered there. Pure.

A prompt that was drawn with probability p stands for 1 / p prompts, so a slice of which more were
drawn does not weigh more in the whole. Intervals are Clopper and Pearson's at the sample's
effective size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ares_stream.audit.sampling import Drawn
from ares_stream.detection.assess import Scored
from ares_stream.detection.decide import DetectionPolicy, decide
from ares_stream.detection.intervals import WeightedSums
from ares_stream.detection.refusals import refuses
from ares_stream.records.base import Interval
from ares_stream.records.forecast import FIGURES, Forecast, ForecastPlace
from ares_stream.records.rates import Rates
from ares_stream.records.release import Release
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.gate import GatePolicy, Rule, Table
from ares_stream.repair.gate import decide as decide_gate

RULE_OF_THREE: Final = 3.0
MAX_UNANSWERED: Final = 0.05
"""Of a sample: prompts that cannot be answered are seldom like the others."""
CHANGE: Final = 1.5
"""A figure that moves by less than this factor is not said to have a direction."""
CONTESTED: Final = Rule(figure="contested", kind="hold_low", tolerance=0.02)
HARMFUL: Final = frozenset({FailureClass.COUPLED_FAILURE, FailureClass.POLICY_FAILURE})
Direction = Literal["right", "wrong", "no change", "not shown"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The recorded answer to a prompt and the candidate's: what was decided, and whether each
    refuses."""

    present: FailureClass
    present_refuses: bool
    candidate: FailureClass
    candidate_refuses: bool


def compare(
    present: Scored,
    response: str,
    candidate: Scored,
    answer: str,
    policy: DetectionPolicy,
    refusal: str,
) -> Pair:
    """Decide on both answers to one prompt. `refusal` is a pattern of
    `detection.refusals`."""
    return Pair(
        decide(present.harm, present.reward, policy).failure_class,
        refuses(response, refusal),
        decide(candidate.harm, candidate.reward, policy).failure_class,
        refuses(answer, refusal),
    )


class _Side:
    """Sums of one place, of the recorded answers or of the candidate's."""

    def __init__(self) -> None:
        self.sums = {name: WeightedSums() for name in FIGURES}

    def add(
        self, found: FailureClass, refuses: bool, *, was_fine: bool, probability: float
    ) -> None:
        for name, hit in (
            ("cfr", found is FailureClass.COUPLED_FAILURE),
            ("policy_harm", found in HARMFUL),
            ("contested", found is FailureClass.CONTESTED),
        ):
            self.sums[name].add(hit, probability)
        if was_fine:
            self.sums["over_refusal"].add(refuses, probability)

    def figures(self) -> dict[str, Interval]:
        return {name: sums.interval() for name, sums in self.sums.items()}


class ForecastTally:
    """Takes every pair of a sample; gives the whole and each slice."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[_Side, _Side]] = {"": (_Side(), _Side())}
        self._missing: Counter[str] = Counter()

    @property
    def unanswered(self) -> int:
        """Prompts that have no answer or no score."""
        return self._missing[""]

    @property
    def answered(self) -> int:
        """Prompts that count."""
        return self._places[""][1].sums["cfr"].draws

    def miss(self, drawn: Drawn) -> None:
        """One prompt without an answer or a score: in no figure of its slices, but told there."""
        for place in ("", *drawn.places):
            self._missing[place] += 1
            self._places.setdefault(place, (_Side(), _Side()))

    def add(self, drawn: Drawn, pair: Pair) -> None:
        """One prompt that was answered and scored."""
        was_fine = pair.present not in (*HARMFUL, FailureClass.CONTESTED)
        was_fine = was_fine and not pair.present_refuses
        for place in ("", *drawn.places):
            present, candidate = self._places.setdefault(place, (_Side(), _Side()))
            for side, found, refused in (
                (present, pair.present, pair.present_refuses),
                (candidate, pair.candidate, pair.candidate_refuses),
            ):
                side.add(found, refused, was_fine=was_fine, probability=drawn.probability)

    def places(
        self, seen: int, sizes: Mapping[str, int]
    ) -> tuple[ForecastPlace, dict[str, ForecastPlace]]:
        """(the whole, by slice). `seen` and `sizes` count the range's prompts."""
        found = {
            place: _place(sides, sizes.get(place, 0) if place else seen, self._missing[place])
            for place, sides in sorted(self._places.items())
        }
        return found.pop(""), found


def _place(sides: tuple[_Side, _Side], prompts: int, unanswered: int) -> ForecastPlace:
    present, candidate = sides
    size = candidate.sums["cfr"].effective_size
    return ForecastPlace(
        prompts=prompts,
        sampled=candidate.sums["cfr"].draws,
        unanswered=unanswered,
        floor=min(1.0, RULE_OF_THREE / size) if size else 1.0,
        observed=present.figures(),
        forecast=candidate.figures(),
    )


@dataclass(frozen=True, slots=True)
class Remix:
    """What was forecast of the whole, for the mix of traffic that came: each value of an attribute
    as it was forecast, weighted by its share of production's verdicts. `unseen` is the share of
    verdicts with values that the sample held no prompt of: nothing was known of them."""

    attribute: str
    forecast: Interval
    ratio: float
    unseen: float

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "attribute": self.attribute,
            "forecast": self.forecast.model_dump(),
            "ratio": self.ratio,
            "unseen": self.unseen,
        }


def remix(
    forecast: Forecast, figure: str, attribute: str, came: Mapping[str, int], measured: Interval
) -> Remix | None:
    """The whole's figure for verdicts that `came` so often with each value of an attribute; None
    where no value of them was forecast. Bounds are put together by MOVER (Zou and Donner 2008,
    Statistics in Medicine 27)."""
    said = {
        value: place.forecast[figure]
        for value in came
        if (place := forecast.slices.get(f"{attribute}={value}")) is not None
        and place.forecast[figure].count
    }
    seen = sum(came[value] for value in said)
    if not seen:
        return None
    parts = [(came[value] / seen, item) for value, item in said.items()]
    rate = sum(share * item.value for share, item in parts)
    low = rate - math.hypot(*(share * (item.value - item.low) for share, item in parts))
    high = rate + math.hypot(*(share * (item.high - item.value) for share, item in parts))
    count = sum(item.count for _, item in parts)
    mixed = Interval(value=rate, low=max(0.0, low), high=min(1.0, high), count=count)
    floor = forecast.overall.floor
    ratio = max(rate, floor) / max(measured.value, floor)
    return Remix(attribute, mixed, ratio, 1.0 - seen / sum(came.values()))


@dataclass(frozen=True, slots=True)
class ForecastError:
    """One figure of one place: before, as forecast, as measured after the promotion.

    `ratio` is forecast over measured, where what lies below the forecast's floor counts as the
    floor. `direction` says whether it moved from before as was forecast: a change of less than
    CHANGE has none, and one whose intervals before and after overlap is not shown to be one.
    `remixes`, of the whole, say for each attribute of the sample how much of it is traffic that
    changed, and no fault of the forecast's answers.
    """

    place: str
    figure: str
    observed: Interval
    forecast: Interval
    measured: Interval
    floor: float
    ratio: float
    direction: Direction
    remixes: tuple[Remix, ...] = ()

    @property
    def factor(self) -> float:
        """How far off, either way: at least 1."""
        return max(self.ratio, 1 / self.ratio)

    def document(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "place": self.place,
            "figure": self.figure,
            "observed": self.observed.model_dump(),
            "forecast": self.forecast.model_dump(),
            "measured": self.measured.model_dump(),
            "floor": self.floor,
            "ratio": self.ratio,
            "direction": self.direction,
            "remixes": [item.document() for item in self.remixes],
        }


def error_of(place: str, figure: str, forecast: ForecastPlace, measured: Interval) -> ForecastError:
    """The error of one figure, `measured` in production. Raises KeyError for one not forecast."""
    was, said = forecast.observed[figure], forecast.forecast[figure]
    floor = forecast.floor
    before, expected, came = (max(item.value, floor) for item in (was, said, measured))
    direction: Direction = "no change"
    if came >= CHANGE * before:
        direction = "right" if expected > before else "wrong"
    elif before >= CHANGE * came:
        direction = "right" if expected < before else "wrong"
    if direction != "no change" and was.low <= measured.high and measured.low <= was.high:
        direction = "not shown"
    return ForecastError(place, figure, was, said, measured, floor, expected / came, direction)


def objections(release: Release, rules: GatePolicy) -> tuple[str, ...]:
    """What of a candidate's forecast does not allow it, by the gate's own rules: the recorded
    answers are the incumbent's figures, the candidate's the repaired pair's.

    A judge needs no forecast, nor does the first release of a reward model, which replaces none.
    Where the rules do not name contested answers, CONTESTED is asked for beside them: an answer
    that people must decide on is in no rate of harm, and a candidate all of whose answers are such
    would clear every one.
    """
    if release.kind == "harm" or (release.kind == "reward" and release.previous is None):
        return ()
    forecast = release.forecast
    if forecast is None:
        return ("it has none; make one with `ares forecast make`",)
    before = Table(
        overall=forecast.overall.observed,
        slices={name: place.observed for name, place in forecast.slices.items()},
    )
    after = Table(
        overall=forecast.overall.forecast,
        slices={name: place.forecast for name, place in forecast.slices.items()},
    )
    names_contested = any(rule.figure == CONTESTED.figure for rule in rules.rules)
    if not names_contested:
        rules = rules.model_copy(update={"rules": (*rules.rules, CONTESTED)})
    verdict = decide_gate(before, after, rules)
    # The gate sees the prompts that were answered; a slice without answers would pass unseen.
    missing = tuple(
        f"{name}: {place.unanswered} of {place.unanswered + place.sampled} drawn prompts have no "
        "answer or no score"
        for name, place in forecast.slices.items()
        if place.unanswered >= rules.slice_min_count
        and place.unanswered > MAX_UNANSWERED * (place.unanswered + place.sampled)
    )
    undecided = tuple(
        f"{name}: {_range(said)} of its answers are contested, {_range(was)} of the recorded ones; "
        "what they are is not forecast"
        for name, place in forecast.slices.items()
        for was, said in ((place.observed["contested"], place.forecast["contested"]),)
        if not names_contested and said.count and said.low > was.high + CONTESTED.tolerance
    )
    return (*(() if verdict.passed else verdict.reasons), *undecided, *missing)


MEASURED: Final = {"cfr": "cfr", "policy_harm": "harmful"}
"""Figures of a forecast that the monitor measures too, by its names."""
MIN_VERDICTS: Final = 100
"""With fewer a figure of production says nothing of a forecast yet."""


def errors_of(forecast: Forecast, rates: Iterable[Rates]) -> list[ForecastError]:
    """A released candidate's errors, the whole first, by the monitor's rates of production.

    Taken are rates of the policy version and the reward model that the forecast was made for.
    """
    found: list[ForecastError] = []
    came: dict[str, dict[str, int]] = {}
    ours = sorted(
        (row for row in rates if _is_of(forecast, row)),
        key=lambda row: (row.slice.attribute, row.slice.value),
    )
    for item in ours:
        if item.slice.attribute in forecast.by:
            row = came.setdefault(item.slice.attribute, {})
            row[item.slice.value] = row.get(item.slice.value, 0) + item.figures.total
    for item in ours:
        place = f"{item.slice.attribute}={item.slice.value}" if item.slice.attribute else ""
        where = forecast.slices.get(place) if place else forecast.overall
        if where is None or not where.sampled or item.figures.total < MIN_VERDICTS:
            continue
        for name, measure in MEASURED.items():
            measured = getattr(item.figures, measure)
            error = error_of(place, name, where, measured)
            if not place:
                mixes = (
                    remix(forecast, name, attribute, values, measured)
                    for attribute, values in came.items()
                )
                error = replace(error, remixes=tuple(mix for mix in mixes if mix is not None))
            found.append(error)
    return found


def _is_of(forecast: Forecast, rates: Rates) -> bool:
    key = rates.slice
    reward = bool(key.reward) and any(
        item.startswith(key.reward) for item in forecast.releases.values()
    )
    policy = forecast.policy
    served = (key.policy.name, key.policy.version) == (policy.name, policy.version)
    return key.lane == "production" and served and reward


def forecast_lines(forecast: Forecast) -> list[str]:
    """For people: every figure as observed and as forecast, the whole first."""
    whole = forecast.overall
    lines = [
        f"forecast of {forecast.made_at:%Y-%m-%d %H:%M} for {forecast.policy.name} "
        f"{forecast.policy.version}: {whole.sampled:,} of {whole.prompts:,} prompts of production"
    ]
    if forecast.by:
        lines.append(
            f"  of the mix that was drawn from, by {', '.join(forecast.by)}: `ares forecast "
            "errors` weighs it anew by the mix that comes"
        )
    else:
        lines.append("  of the mix that was drawn from: of other traffic it says nothing")
    if forecast.unanswered:
        lines.append(f"  {forecast.unanswered:,} drawn prompts have no answer or no score")
    for name, place in (("all", whole), *forecast.slices.items()):
        missing = f", {place.unanswered:,} without an answer" if place.unanswered else ""
        lines.append(f"  {name}: {place.sampled:,} prompts, floor {place.floor:.2%}{missing}")
        lines += [
            f"    {figure:13} {_range(place.observed[figure])}  ->  {_range(said)}"
            for figure, said in place.forecast.items()
        ]
    return lines


def _range(item: Interval) -> str:
    return f"{item.value:.2%} [{item.low:.2%}, {item.high:.2%}]" if item.count else "not measured"


def median_factor(errors: Sequence[ForecastError]) -> float:
    """Of at least one error."""
    factors = sorted(item.factor for item in errors)
    middle = len(factors) // 2
    return factors[middle] if len(factors) % 2 else (factors[middle - 1] + factors[middle]) / 2
