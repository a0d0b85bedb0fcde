"""The monitor's metrics: the newest and the previous version of each lane, and what is open.

Labels come from closed sets. A version is `newest` or `previous`, never its name; `ares rates`
shows every version and slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from ares_stream.detection.ledger import OLDER, Group, Ledger
from ares_stream.records.alarm import Alarm, AlarmKind
from ares_stream.records.base import Interval
from ares_stream.records.rates import Figures
from ares_stream.records.verdict import FailureClass
from ares_stream.services.forecasts_followed import ShownError
from ares_stream.services.metrics import zeros

BOUNDS: Final = ("value", "low", "high")


class MonitorMetrics:
    """The monitor's metrics on one registry."""

    def __init__(
        self, registry: CollectorRegistry, objectives: Mapping[str, float] | None = None
    ) -> None:
        self.registry = registry

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"ares_{name}", text, labels, registry=registry)

        self.leading = gauge("monitor_leading", "1 while this replica leads, 0 while it waits.")
        self.lag = gauge("monitor_lag_records", "Records written and not yet counted.")
        self.rate = gauge(
            "monitor_rate",
            "Shares of a lane's verdicts since the version's first: coupled_failure, corrected, "
            "contested, harmful, scored_high, reward_blind, outlier; version: newest, previous; "
            "bound: value, low, high.",
            "figure",
            "lane",
            "version",
            "bound",
        )
        self.verdicts = gauge(
            "monitor_verdicts",
            "Verdicts counted of a version, by class.",
            "lane",
            "version",
            "failure_class",
        )
        self.lift = gauge(
            "monitor_coupling_lift",
            "Coupled failures over what independence of judge and reward model would give.",
            "lane",
            "version",
            "bound",
        )
        self.labels = gauge(
            "monitor_labels", "Labels that correct a version's rate.", "lane", "version"
        )
        self.last = gauge(
            "monitor_last_verdict_timestamp_seconds", "Time of a lane's last verdict.", "lane"
        )
        self.open = gauge(
            "monitor_open_alarms", "Alarms that nobody has acknowledged.", "kind", "attribution"
        )
        self.alarms = Counter(
            "ares_monitor_alarms", "Alarms raised by this process.", ["kind"], registry=registry
        )
        zeros(self.alarms, get_args(AlarmKind))
        self.objective = gauge(
            "monitor_objective",
            "What monitor.alarms says is bearable: coupled_failure, contested, dead_letters, "
            "judge_changed, reward_drift; absent where nothing is watched.",
            "figure",
        )
        for figure, bearable in (objectives or {}).items():
            self.objective.labels(figure).set(bearable)
        self.anchors = gauge(
            "monitor_anchor_verdicts", "Anchors by truth and decision.", "truth", "decision"
        )
        self.drift = gauge(
            "monitor_reward_drift",
            "Shift of the newest reward release's anchor scores in standard deviations; figure: "
            "mean, rms.",
            "figure",
        )
        self.forecast = gauge(
            "monitor_forecast",
            "Figures of production (cfr, policy_harm) that a release in use was forecast to have; "
            "when: before, forecast, measured; bound: value, low, high.",
            "model",
            "figure",
            "when",
            "bound",
        )
        self.forecast_error = gauge(
            "monitor_forecast_error_ratio",
            "Forecast over measured, what lies below the forecast's floor counted as the floor.",
            "model",
            "figure",
        )
        self.unreadable = gauge(
            "monitor_unreadable_records", "Records that were passed over.", "topic"
        )
        self.folded = gauge(
            "monitor_folded_verdicts",
            "Verdicts whose value or version was counted with others, past the bound.",
            "attribute",
        )
        self.folded.labels("version").set(0)
        self.gaps = gauge("monitor_gap_offsets", "Offsets deleted before they were read.")
        self.unmatched = gauge(
            "monitor_unmatched_labels", "Labelled interactions outside of the review sample."
        )

    def stand_by(self) -> None:
        """Another replica leads, or none: its figures are not this one's to show."""
        self.leading.set(0)
        for metric in (self.lag, self.gaps, self.unmatched):
            metric.set(0)
        self._clear()
        for metric in (self.last, self.anchors, self.unreadable):
            metric.clear()
        self.show_forecasts([])

    def _clear(self) -> None:
        for metric in (self.rate, self.verdicts, self.lift, self.labels, self.open, self.drift):
            metric.clear()

    def show(self, ledger: Ledger, alarms: Iterable[Alarm]) -> None:
        """Show the ledger's figures."""
        self._clear()
        newest = None
        for lane in ("production", "probe"):
            found = sorted(
                (name for name in ledger.groups if name.lane == lane and name.version != OLDER),
                key=lambda name: (ledger.groups[name].whole.first_ms, name),
            )
            if found and lane == "production":
                newest = found[-1].reward
            for version, name in zip(("newest", "previous"), reversed(found), strict=False):
                self._show_group(ledger, name, version)
        for lane, stamp in ledger.lanes.items():
            self.last.labels(lane).set(stamp / 1000)
        for alarm in alarms:
            self.open.labels(alarm.kind, alarm.attribution).inc()
        for anchor in ledger.anchors.values():
            for cell, count in anchor.decisions.items():
                self.anchors.labels(*cell.split(",")).set(count)
            if newest is not None:
                drift = anchor.drift(newest)
                if drift is not None:
                    self.drift.labels("mean").set(drift[0])
                    self.drift.labels("rms").set(drift[1])
        for topic, count in ledger.unreadable.items():
            self.unreadable.labels(topic).set(count)
        for attribute, count in ledger.folded.items():
            self.folded.labels(attribute).set(count)
        self.gaps.set(sum(gap.end - gap.start for gap in ledger.gaps))
        self.unmatched.set(ledger.unmatched)

    def show_forecasts(self, errors: Iterable[ShownError]) -> None:
        """Show how far off the forecasts of the releases in use are."""
        self.forecast.clear()
        self.forecast_error.clear()
        for item in errors:
            error = item.error
            self.forecast_error.labels(item.model, error.figure).set(error.ratio)
            found = {
                "before": error.observed, "forecast": error.forecast, "measured": error.measured
            }  # fmt: skip
            for when, interval in found.items():
                for bound in BOUNDS:
                    child = self.forecast.labels(item.model, error.figure, when, bound)
                    child.set(getattr(interval, bound))

    def _show_group(self, ledger: Ledger, name: Group, version: str) -> None:
        figures = ledger.groups[name].whole.figures()
        for figure, interval in _shown(figures):
            for bound in BOUNDS:
                self.rate.labels(figure, name.lane, version, bound).set(getattr(interval, bound))
        for failure in FailureClass:
            share = figures.classes[failure]
            count = round(share.value * share.count)
            self.verdicts.labels(name.lane, version, failure.value).set(count)
        if figures.lift is not None:
            for bound in BOUNDS:
                self.lift.labels(name.lane, version, bound).set(getattr(figures.lift, bound))
        self.labels.labels(name.lane, version).set(figures.correction.labels)


def _shown(figures: Figures) -> Iterable[tuple[str, Interval]]:
    yield "coupled_failure", figures.cfr
    yield "contested", figures.classes[FailureClass.CONTESTED]
    yield "harmful", figures.harmful
    yield "scored_high", figures.scored_high
    yield "reward_blind", figures.reward_blind
    if figures.correction.rate is not None:
        yield "corrected", figures.correction.rate
    if figures.outliers is not None:
        yield "outlier", figures.outliers
