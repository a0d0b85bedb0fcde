"""The HTML report: one self-contained page, no script, no external host, light and dark.

A Report is a title, tiles and sections; each section is a piece of escaped Markup, so a demo
or a repair adds its own beside those made here from Findings. Text of conversations is in
the page only inside closed <details> elements, and the page's own policy forbids it to load
or send anything.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ares_stream import __version__
from ares_stream.detection.decide import DetectionPolicy, is_scored_high
from ares_stream.detection.ledger import EVERY, Ledger, LedgerPolicy
from ares_stream.records.base import Interval
from ares_stream.records.interaction import Interaction, Lane
from ares_stream.records.observation import observe
from ares_stream.records.rates import Figures, Rates
from ares_stream.records.verdict import FailureClass, Verdict
from ares_stream.reporting import charts
from ares_stream.visible import visible_value

_BINS = 40
_TEXT_LIMIT = 4_000  # Characters shown of one text: a page of megabytes helps nobody.

CLASS_TEXT: Mapping[FailureClass, str] = {
    FailureClass.CLEAN: "safe answer",
    FailureClass.REWARD_FAILURE: "safe answer, reward prefers a harmful one",
    FailureClass.POLICY_FAILURE: "harmful answer, reward dislikes it",
    FailureClass.COUPLED_FAILURE: "harmful answer, reward likes it",
    FailureClass.CONTESTED: "doubtful: people decide",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: what it is, its value, and a smaller line under it."""

    name: str
    value: str
    note: str = ""
    grave: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page. `body` is escaped already."""

    title: str
    body: Markup
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """A page. `provenance` says which inputs, models and policy made its figures."""

    title: str
    subtitle: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    provenance: Mapping[str, str] = field(default_factory=dict)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ares_stream.reporting", "templates"),
        autoescape=True,
        finalize=visible_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = charts.percent
    return environment


def render(report: Report, made_at: datetime) -> str:
    """The page as HTML. Equal arguments give equal pages."""
    stamp = made_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    template = _environment().get_template("report.html.j2")
    return template.render(report=report, made_at=stamp, version=__version__)


def _fragment(name: str, **values: Any) -> Markup:
    module = _environment().get_template("sections.html.j2").make_module()
    return Markup(getattr(module, name)(**values))  # noqa: S704 - an autoescaped macro's output


@dataclass(frozen=True, slots=True)
class Finding:
    """A coupled failure with its text, as the page shows it on request."""

    verdict: Verdict
    prompt: str
    response: str

    @property
    def gravity(self) -> float:
        """Harm probability times reward quantile."""
        return self.verdict.harm.probability * self.verdict.reward.quantile


EVERYTHING = LedgerPolicy(slices=None, review_shares={})
"""Slices by whatever attributes come; labels, where there are any, come with their verdicts."""


class Findings:
    """What a report needs to remember of a stream of verdicts, in bounded memory. Rates are the
    monitor's: `ledger` counts every lane and may be shared by Findings of several lanes, each of
    which is given its own lane's verdicts."""

    def __init__(
        self,
        policy: DetectionPolicy,
        *,
        lane: Lane = "production",
        ledger: Ledger | None = None,
        max_points: int = 1_500,
        max_failures: int = 20,
        seed: int = 0,
    ) -> None:
        self.policy = policy
        self.ledger = Ledger(EVERYTHING) if ledger is None else ledger
        self.lane: Lane = lane
        self._max_points = max_points
        self._max_failures = max_failures
        self._rng = random.Random(seed)  # noqa: S311 - which points are drawn is no secret
        self._points: list[charts.Point] = []
        self._failures: list[tuple[float, str, Finding]] = []
        self.seen = 0
        """Verdicts of the lane."""
        self._harm = [0] * _BINS
        self._reward = [0] * _BINS
        self._corners: dict[str, int] = {}
        self._releases: dict[str, set[str]] = {}

    def add(self, verdict: Verdict, interaction: Interaction, harmful: bool | None = None) -> None:
        """Count one verdict, with what people said of it where they were asked; keep its text if
        it is among the gravest failures."""
        source = verdict.source
        seen = observe(verdict, self.policy.scored_high_when)
        place = source.partition, source.offset
        self.ledger.add(seen, source.timestamp_ms, place, harmful)
        for model, digest in verdict.releases.items():
            self._releases.setdefault(model, set()).add(digest)
        if verdict.lane != self.lane:
            return
        self.seen += 1
        harm, quantile = verdict.harm.probability, verdict.reward.quantile
        self._harm[min(int(harm * _BINS), _BINS - 1)] += 1
        self._reward[min(int(quantile * _BINS), _BINS - 1)] += 1
        if verdict.failure_class is not FailureClass.CONTESTED:
            side = "harmful" if harm >= self.policy.harm_threshold else "safe"
            liked = "liked" if is_scored_high(verdict.scored_high, self.policy) else "disliked"
            corner = f"{side} {liked}"
            self._corners[corner] = self._corners.get(corner, 0) + 1
        self._sample(charts.Point(quantile, harm, verdict.failure_class.value))
        if verdict.failure_class is FailureClass.COUPLED_FAILURE:
            self._keep(verdict, interaction)

    def _sample(self, point: charts.Point) -> None:
        """Reservoir sampling: every point has the same chance, whatever the stream's length."""
        if len(self._points) < self._max_points:
            self._points.append(point)
        elif (place := self._rng.randrange(self.seen)) < self._max_points:
            self._points[place] = point

    def _keep(self, verdict: Verdict, interaction: Interaction) -> None:
        finding = Finding(
            verdict, interaction.prompt[:_TEXT_LIMIT], interaction.response[:_TEXT_LIMIT]
        )
        entry = (finding.gravity, verdict.id, finding)
        if len(self._failures) < self._max_failures:
            heapq.heappush(self._failures, entry)
        elif entry[:2] > self._failures[0][:2]:
            heapq.heapreplace(self._failures, entry)

    @property
    def worst(self) -> tuple[Finding, ...]:
        """The gravest coupled failures, gravest first."""
        ordered = sorted(self._failures, key=lambda entry: (-entry[0], entry[1]))
        return tuple(entry[2] for entry in ordered)

    @property
    def releases(self) -> dict[str, str]:
        """Model name to the digest, or digests, that made the verdicts."""
        return {name: ", ".join(sorted(self._releases[name])) for name in sorted(self._releases)}

    def total(self) -> Figures | None:
        """The lane as a whole; None before its first verdict."""
        whole = self.ledger.lane(self.lane)
        return None if whole is None else whole.figures()

    def tiles(self) -> tuple[Tile, ...]:
        """Headline figures."""
        whole = self.total()
        if whole is None:
            return (Tile("interactions", "0"),)
        contested = whole.classes[FailureClass.CONTESTED]
        tiles = [
            Tile("interactions", f"{whole.total:,}", f"{self.lane} lane"),
            _rate_tile("coupled-failure rate", whole.cfr, grave=True),
            _rate_tile("harmful answers", whole.harmful),
        ]
        if whole.lift is not None:
            lift = whole.lift
            note = f"{lift.low:.2f} to {lift.high:.2f}; 1 is independence; contested left out"
            tiles.append(Tile("coupling lift", f"{lift.value:.2f}", note))
        count = round(contested.value * contested.count)
        tiles.append(Tile("for people to decide", f"{count:,}", charts.percent(contested.value)))
        return tuple(tiles)

    def rates(self) -> list[Rates]:
        """Every lane as a whole, then its versions and slices."""
        self.ledger.fold_windows()
        wholes = [self.ledger.lane(lane) for lane in ("production", "probe")]
        return [item.record() for item in wholes if item is not None] + self.ledger.rates()

    def sections(self, reference: str = "") -> tuple[Section, ...]:
        """Everything that a report of verdicts shows, in reading order. `reference` says what a
        reward quantile is a place among."""
        whole = self.total()
        if whole is None:
            return ()
        counts = {name: round(share.value * share.count) for name, share in whole.classes.items()}
        return (
            classes_section(counts),
            self._quadrant(),
            rates_section(self.rates()),
            self._distributions(reference),
            failures_section(self.worst),
        )

    def _quadrant(self) -> Section:
        shares = {name: count / self.seen for name, count in self._corners.items()}
        note = (
            "Upper right is where policy and reward model fail together. The corners' shares are "
            "of all interactions; contested ones, in the band, are in no corner."
        )
        if self.seen > len(self._points):
            note += f" A random {len(self._points):,} of {self.seen:,} are drawn."
        return Section("Harm and reward", charts.quadrant(self._points, shares, self.policy), note)

    def _distributions(self, reference: str) -> Section:
        policy = self.policy
        harm_marks = sorted({policy.abstain_above, policy.harm_threshold, policy.abstain_below})
        body = _fragment(
            "pair",
            first=charts.histogram(self._harm, "harm probability", harm_marks),
            second=charts.histogram(self._reward, "reward quantile", [policy.reward_quantile]),
        )
        note = f"Lines mark the policy's thresholds. {reference}".rstrip()
        return Section("Scores", body, note)


def _rate_tile(name: str, rate: Interval, grave: bool = False) -> Tile:
    note = f"{charts.span(rate)}; contested counted as harmless"
    return Tile(name, charts.percent(rate.value), note, grave and rate.value > 0)


def classes_section(counts: Mapping[FailureClass, int]) -> Section:
    """How many interactions are in each class."""
    total = sum(counts.values()) or 1
    rows = [(name.value, CLASS_TEXT[name], count, count / total) for name, count in counts.items()]
    bar = charts.shares_bar({name.value: count for name, count in counts.items()})
    return Section("Classes", _fragment("classes", bar=bar, rows=rows))


def rates_section(rates: Sequence[Rates], max_rows: int = 60) -> Section:
    """CFR by lane, policy version and attribute, with intervals on one scale."""
    shown = rates[:max_rows]
    ceiling = min(1.0, max((item.figures.cfr.high for item in shown), default=1.0))
    rows = [
        (item.slice, item.figures, item.slice.policy.version == EVERY,
         charts.whisker(item.figures.cfr, ceiling))
        for item in shown
    ]  # fmt: skip
    note = (
        "The monitor's figures: 95 % confidence sequences, which hold however often one looks and "
        "are wider than an interval for one look; rows taken for independent, contested counted as "
        "harmless. Lanes are never added together: probes look for failures."
    )
    if len(rates) > len(shown):
        note += f" {len(rates) - len(shown):,} more slices are in the JSON summary."
    body = _fragment(
        "rates",
        rows=rows,
        ceiling=charts.percent(ceiling),
        weighted=any(item.figures.cfr_weighted is not None for item in shown),
        corrected=any(item.figures.correction.rate is not None for item in shown),
        outliers=any(item.figures.outliers is not None for item in shown),
    )
    return Section("Coupled-failure rate by slice", body, note)


def failures_section(findings: Sequence[Finding]) -> Section:
    """The gravest failures; their text stays closed until someone opens it."""
    note = "By harm probability times reward quantile. Open a row to read its text."
    return Section("Gravest coupled failures", _fragment("failures", findings=findings), note)


def table_section(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> Section:
    """Any table of text, such as a gate's figures before and after."""
    return Section(title, _fragment("table", header=header, rows=rows), note)


def curve_section(
    title: str, series: Sequence[charts.Series], steps: Sequence[str], note: str = ""
) -> Section:
    """Rates over rounds or releases."""
    return Section(title, charts.curve(series, steps, title), note)
