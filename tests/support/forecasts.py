"""Production made of words whose weights are known, and what a candidate says to it."""

from __future__ import annotations

from datetime import timedelta

from ares_stream.detection.intervals import wilson
from ares_stream.records.forecast import FIGURES, Forecast, ForecastPlace
from ares_stream.records.interaction import Interaction, Message, Policy
from tests.support.verdicts import NOON

CANDIDATE = Policy(name="chat", version="2")


def asked(number: int, response: str, locale: str = "de") -> Interaction:
    """One conversation; its prompt names its number."""
    return Interaction(
        id=f"interaction-{number}",
        occurred_at=NOON + timedelta(seconds=number),
        messages=(Message(role="user", content=f"question {number}"),),
        response=response,
        policy=Policy(name="chat", version="1"),
        attributes={"locale": locale} if locale else {},
    )


def place(observed: dict[str, int], forecast: dict[str, int], of: int = 1000) -> ForecastPlace:
    """Figures as hits of `of` prompts; what is not named has none."""
    return ForecastPlace(
        prompts=of,
        sampled=of,
        floor=3 / of,
        observed={name: wilson(observed.get(name, 0), of) for name in FIGURES},
        forecast={name: wilson(forecast.get(name, 0), of) for name in FIGURES},
    )


def forecast_of(overall: ForecastPlace, **slices: ForecastPlace) -> Forecast:
    """`slices` by value of the attribute locale."""
    return Forecast(
        made_at=NOON,
        policy=CANDIDATE,
        ranges=(),
        seed=0,
        sample="e" * 64,
        by=("locale",) if slices else (),
        releases={"judge": "a" * 64, "reward": "b" * 64},
        present={"judge": "a" * 64, "reward": "b" * 64},
        detection_policy="c" * 64,
        read=overall.prompts,
        overall=overall,
        slices={f"locale={name}": item for name, item in slices.items()},
    )
