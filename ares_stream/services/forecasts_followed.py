"""What the monitor knows of forecasts: those of the releases in use, beside what came."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ares_stream.detection.ledger import Ledger
from ares_stream.errors import DecodeError
from ares_stream.models.releases import Announced
from ares_stream.records.interaction import Policy
from ares_stream.records.rates import Rates
from ares_stream.records.release import Release, ReleaseState

if TYPE_CHECKING:
    from ares_stream.audit.forecast import ForecastError


@dataclass(frozen=True, slots=True)
class ShownError:
    """A figure of a model's release, as forecast and as measured."""

    model: str
    error: ForecastError


class FollowedForecasts:
    """Forecasts by what the releases topic says is active."""

    def __init__(self) -> None:
        self._active: dict[bytes, Release] = {}
        self._announced = Announced()

    def take(self, key: bytes, raw: bytes | None) -> None:
        """A record of the releases topic. Raises DecodeError for one that cannot be read or
        contradicts others."""
        self._active.pop(key, None)
        release = self._announced.take(key, raw)
        if release is None:
            return
        self._announced.check_key(key, release)
        if release.state is ReleaseState.ACTIVE and release.forecast is not None:
            self._active[key] = release
        self._announced.check(release)

    def _holds(self, release: Release) -> bool:
        try:
            self._announced.check(release)
        except DecodeError:
            return False  # It was told as it came.
        return True

    def errors(self, ledger: Ledger) -> list[ShownError]:
        """Of the whole of production, for each active release that has answered there. What was
        repaired together has one forecast, and is told by its policy where there is one."""
        if not self._active:
            return []
        # Most monitors follow no forecast.
        from ares_stream.audit.forecast import errors_of

        found: list[ShownError] = []
        told: set[str] = set()
        for release in sorted(filter(self._holds, self._active.values()), key=_policies_first):
            forecast, plan = release.forecast, release.plan_id or release.digest
            if forecast is None or plan in told:
                continue
            errors = errors_of(forecast, _measured(ledger, forecast.policy))
            found += [ShownError(release.model, error) for error in errors]
            if errors:
                told.add(plan)
        return found


def _policies_first(release: Release) -> tuple[bool, str]:
    return release.kind != "policy", release.model


def _measured(ledger: Ledger, served: Policy) -> Iterator[Rates]:
    for name, group in ledger.groups.items():
        if (name.lane, name.policy, name.version) == ("production", served.name, served.version):
            yield group.whole.record()
