"""Forecasts of the releases in use, beside what the monitor measures."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import DecodeError
from ares_stream.records.forecast import Forecast
from ares_stream.records.observation import read_observation
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.verdict import FailureClass
from ares_stream.services.forecasts_followed import FollowedForecasts
from ares_stream.services.monitor_metrics import MonitorMetrics
from tests.support.forecasts import forecast_of, place
from tests.support.verdicts import NOON, verdict

FORECAST = forecast_of(place({"cfr": 100, "policy_harm": 200}, {"cfr": 50, "policy_harm": 100}))


def released(
    model: str = "chat",
    kind: str = "policy",
    state: ReleaseState = ReleaseState.ACTIVE,
    forecast: Forecast | None = FORECAST,
    plan: str | None = "plan",
) -> Release:
    return Release(
        model=model,
        kind=kind,  # type: ignore[arg-type]
        digest="d" * 64,
        uri="file:///registry/x",
        state=state,
        changed_at=NOON,
        changed_by="ada",
        plan_id=plan,
        forecast=forecast,
    )


def measured(version: str = "2", count: int = 400, every: int = 10) -> Ledger:
    """Every tenth verdict is a coupled failure."""
    ledger = Ledger(LedgerPolicy())
    for number in range(count):
        failure = FailureClass.CLEAN if number % every else FailureClass.COUPLED_FAILURE
        seen = read_observation(verdict(number, failure, version=version).encode(), "either")
        ledger.add(seen, int(NOON.timestamp() * 1000) + number, (0, number))
    return ledger


def following(*releases: Release) -> FollowedForecasts:
    found = FollowedForecasts()
    for item in releases:
        found.take(item.model.encode(), item.encode())
    return found


def test_the_error_is_told_for_the_release_in_use_and_shown() -> None:
    errors = following(released()).errors(measured())
    assert {(item.model, item.error.figure) for item in errors} == {
        ("chat", "cfr"), ("chat", "policy_harm"),
    }  # fmt: skip
    registry = CollectorRegistry()
    metrics = MonitorMetrics(registry)
    metrics.show_forecasts(errors)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(
            f"ares_monitor_forecast{name}", {"model": "chat", **labels}
        )

    assert value("_error_ratio", figure="cfr") == pytest.approx(0.5)
    for when, shown in (("before", 0.1), ("forecast", 0.05), ("measured", 0.1)):
        assert value("", figure="cfr", when=when, bound="value") == pytest.approx(shown)
    low = value("", figure="cfr", when="measured", bound="low")
    assert low is not None
    assert 0 < low < 0.1
    metrics.show_forecasts([])
    assert value("_error_ratio", figure="cfr") is None


def test_a_replica_that_no_longer_leads_shows_no_figures_of_the_time_when_it_did() -> None:
    metrics = MonitorMetrics(CollectorRegistry(), {"coupled_failure": 0.02})
    metrics.leading.set(1)
    metrics.lag.set(7)
    metrics.gaps.set(7)
    metrics.show(measured(), [])
    metrics.open.labels("coupled_failure", "system").set(1)
    metrics.show_forecasts(following(released()).errors(measured()))

    def shown() -> set[str]:
        samples = [item for family in metrics.registry.collect() for item in family.samples]
        return {item.name for item in samples if item.value != 0}

    assert {"ares_monitor_rate", "ares_monitor_forecast", "ares_monitor_open_alarms"} <= shown()
    metrics.stand_by()
    assert shown() == {"ares_monitor_objective"}


@pytest.mark.parametrize(
    ("release", "ledger"),
    [
        (released(state=ReleaseState.CANDIDATE), measured()),
        (released(state=ReleaseState.ROLLED_BACK), measured()),
        (released(forecast=None), measured()),
        (released(), measured(version="1")),
        (released(), measured(count=90)),
    ],
    ids=["a candidate", "taken back", "no forecast", "another version", "too few verdicts"],
)
def test_nothing_is_told_of_what_is_not_in_use_or_not_measured(
    release: Release, ledger: Ledger
) -> None:
    assert following(release).errors(ledger) == []


def test_what_was_repaired_together_is_told_once_by_its_policy() -> None:
    pair = (released("reward", "reward"), released())
    errors = following(*pair).errors(measured())
    assert {item.model for item in errors} == {"chat"}
    apart = (released("reward", "reward", plan=None), released(plan="other"))
    assert {item.model for item in following(*apart).errors(measured())} == {"chat", "reward"}


def test_a_release_that_contradicts_its_topic_is_named_and_tells_no_forecast() -> None:
    found = FollowedForecasts()
    release = released()
    with pytest.raises(DecodeError, match=r"key: release d{12} is active under a key that is not"):
        found.take(b"chat@" + release.digest.encode(), release.encode())
    assert found.errors(measured()) == []
    rejected = released(state=ReleaseState.REJECTED)
    found.take(b"chat@" + release.digest.encode(), rejected.encode())
    with pytest.raises(DecodeError, match="announced as active, and as rejected"):
        found.take(b"chat", release.encode())
    assert found.errors(measured()) == []
    found.take(b"chat@" + release.digest.encode(), None)
    assert {item.model for item in found.errors(measured())} == {"chat"}


def test_a_release_that_another_follows_is_forgotten() -> None:
    found = following(released(), released(forecast=None))
    assert found.errors(measured()) == []
    found = following(released())
    found.take(b"chat", None)
    assert found.errors(measured()) == []
    with pytest.raises(DecodeError):
        found.take(b"chat", b"{")
