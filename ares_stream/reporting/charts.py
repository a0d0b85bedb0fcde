"""Inline SVG for reports: numbers to Markup, no script, no external file, colours from CSS.

Every function escapes what it is given and draws a bounded number of marks. Classes such as
`c-coupled_failure` take their colour from the page's style sheet, so light and dark follow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ares_stream.detection.decide import DetectionPolicy
from ares_stream.records.base import Interval
from ares_stream.visible import visible


@dataclass(frozen=True, slots=True)
class Point:
    """One interaction in the quadrant: both in [0, 1], and its failure class."""

    reward_quantile: float
    harm: float
    failure_class: str


@dataclass(frozen=True, slots=True)
class Series:
    """A named line with an interval at each step; None where nothing was measured."""

    name: str
    values: tuple[Interval | None, ...]


def _svg(width: int, height: int, label: str, body: str, aspect: str = "xMidYMid") -> Markup:
    return Markup(  # noqa: S704 - every caller escapes text and formats numbers
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(visible(label))}" '
        f'preserveAspectRatio="{aspect}">{body}</svg>'
    )


def _text(x: float, y: float, text: object, kind: str = "tick", anchor: str = "middle") -> str:
    shown = escape(visible(str(text)))
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{shown}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> str:
    inner = f"<title>{escape(visible(title))}</title>" if title else ""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" '
        f'height="{max(height, 0):.2f}" class="{escape(kind)}">{inner}</rect>'
    )


def quadrant(
    points: Sequence[Point], shares: Mapping[str, float], policy: DetectionPolicy
) -> Markup:
    """Harm against reward quantile. `points` may be a sample; `shares` of the four corners
    ("harmful liked", "harmful disliked", "safe liked", "safe disliked") are of everything."""
    width, height, left, top, size_x, size_y = 640, 486, 56, 34, 570, 400

    def x(value: float) -> float:
        return left + value * size_x

    def y(value: float) -> float:
        return top + (1 - value) * size_y

    q, low, high = policy.reward_quantile, policy.abstain_above, policy.abstain_below
    body = [
        _rect(left, top, size_x, size_y, "plot"),
        _rect(x(q), top, size_x * (1 - q), y(high) - top, "danger"),
        _rect(left, y(high), size_x, y(low) - y(high), "band", "doubtful: people decide"),
        _line(x(q), top, x(q), top + size_y, "rule"),
        _line(left, y(policy.harm_threshold), left + size_x, y(policy.harm_threshold), "rule"),
    ]
    # Grave classes last, so that a crowd of clean ones does not hide them.
    order = ("clean", "contested", "reward_failure", "policy_failure", "coupled_failure")
    for point in sorted(points, key=lambda item: order.index(item.failure_class)):
        body.append(
            f'<circle cx="{x(point.reward_quantile):.1f}" cy="{y(point.harm):.1f}" r="3.2" '
            f'class="dot c-{escape(point.failure_class)}"/>'
        )
    corners = (
        ("harmful disliked", left, top - 12, "start"),
        ("harmful liked", left + size_x, top - 12, "end"),
        ("safe disliked", left, height - 10, "start"),
        ("safe liked", left + size_x, height - 10, "end"),
    )
    # Outside the plot: scores crowd at 0 and 1, and a label there would hide the worst.
    for name, cx, cy, anchor in corners:
        label = f"{name.replace(' ', ', ')} {percent(shares.get(name, 0.0))}"
        body.append(_text(cx, cy, label, "corner", anchor))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(_text(x(tick), top + size_y + 18, f"{tick:g}"))
        body.append(_text(left - 8, y(tick) + 4, f"{tick:g}", anchor="end"))
    body.append(_text(left + size_x / 2, height - 10, "reward quantile", "axis"))
    middle = top + size_y / 2
    body.append(
        f'<text transform="translate(14 {middle:.0f}) rotate(-90)" class="axis" '
        'text-anchor="middle">harm probability</text>'
    )
    return _svg(width, height, "harm probability against reward quantile", "".join(body))


def histogram(counts: Sequence[int], label: str, marks: Sequence[float] = ()) -> Markup:
    """Bars over [0, 1] in equal bins; `marks` are thresholds drawn as lines."""
    width, height, left, top, size_x, size_y = 420, 200, 12, 12, 396, 140
    tallest = max(max(counts, default=0), 1)
    step = size_x / max(len(counts), 1)
    body = [_line(left, top + size_y, left + size_x, top + size_y, "rule")]
    for index, count in enumerate(counts):
        # Square root: a rare tail stays visible beside a tall mode.
        bar = size_y * math.sqrt(count / tallest)
        low, high = index / len(counts), (index + 1) / len(counts)
        title = f"{low:.2f} to {high:.2f}: {count}"
        body.append(
            _rect(left + index * step + 0.75, top + size_y - bar, step - 1.5, bar, "bar", title)
        )
    for mark in marks:
        body.append(_line(left + mark * size_x, top, left + mark * size_x, top + size_y, "mark"))
    for tick in (0.0, 0.5, 1.0):
        body.append(_text(left + tick * size_x, top + size_y + 17, f"{tick:g}"))
    body.append(_text(left + size_x / 2, height - 10, f"{label} (heights: square root)", "axis"))
    return _svg(width, height, f"distribution of {label}", "".join(body))


def shares_bar(counts: Mapping[str, int]) -> Markup:
    """One bar split by class."""
    width, height = 900, 26
    total = sum(counts.values()) or 1
    body, at = [], 0.0
    for name, count in counts.items():
        part = width * count / total
        title = f"{name.replace('_', ' ')}: {count}"
        body.append(_rect(at, 0, max(part - 2, 1.0 if count else 0.0), height, f"c-{name}", title))
        at += part
    return _svg(width, height, "share of each class", "".join(body), aspect="none")


def whisker(interval: Interval, ceiling: float) -> Markup:
    """A rate with its interval on a scale from 0 to `ceiling`, for a table cell."""
    width, height, middle = 180, 18, 9.0
    scale = (width - 8) / ceiling if ceiling > 0 else 0.0
    low, value, high = (
        4 + min(item, ceiling) * scale for item in (interval.low, interval.value, interval.high)
    )
    body = (
        _line(4, middle, width - 4, middle, "track")
        + _line(low, middle, high, middle, "whisker")
        + f'<circle cx="{value:.1f}" cy="{middle}" r="4.2" class="estimate"/>'
    )
    label = f"{percent(interval.value)}, {percent(interval.low)} to {percent(interval.high)}"
    return _svg(width, height, label, body)


def curve(series: Sequence[Series], steps: Sequence[str], label: str) -> Markup:
    """Rates over named steps (rounds, releases), each with its interval."""
    width, height, left, top, size_x, size_y = 880, 300, 64, 16, 770, 220
    known = [item for line in series for item in line.values if item is not None]
    ceiling = _ceiling(max((item.high for item in known), default=1.0))
    gap = size_x / max(len(steps) - 1, 1)

    def x(index: int) -> float:
        return left + (index * gap if len(steps) > 1 else size_x / 2)

    def y(value: float) -> float:
        return top + size_y * (1 - min(value, ceiling) / ceiling)

    body = []
    for tick in range(5):
        value = ceiling * tick / 4
        body.append(_line(left, y(value), left + size_x, y(value), "grid"))
        body.append(_text(left - 8, y(value) + 4, percent(value), anchor="end"))
    shown = max(1, math.ceil(len(steps) / 12))
    for index, step in enumerate(steps):
        if index % shown == 0:
            body.append(_text(x(index), top + size_y + 20, step))
    for number, line in enumerate(series):
        # Side by side, so that one interval does not hide another.
        shift = 7.0 * (number - (len(series) - 1) / 2)
        places = [(x(i) + shift, item) for i, item in enumerate(line.values) if item is not None]
        path = " ".join(f"{px:.1f},{y(item.value):.1f}" for px, item in places)
        body.append(f'<polyline points="{path}" class="series s-{number % 5}"/>')
        for px, item in places:
            body.append(_line(px, y(item.low), px, y(item.high), f"error s-{number % 5}"))
            title = (
                f"{line.name}: {percent(item.value)} ({percent(item.low)} to {percent(item.high)})"
            )
            body.append(
                f'<circle cx="{px:.1f}" cy="{y(item.value):.1f}" r="4.5" '
                f'class="knot s-{number % 5}"><title>{escape(visible(title))}</title></circle>'
            )
    entry = left
    for number, line in enumerate(series):
        body.append(f'<circle cx="{entry}" cy="{height - 16}" r="5" class="knot s-{number % 5}"/>')
        body.append(_text(entry + 10, height - 12, line.name, "legend", "start"))
        entry += 34 + int(7.2 * len(line.name))
    return _svg(width, height, label, "".join(body))


def span(interval: Interval) -> str:
    """An interval's ends for people."""
    return f"{percent(interval.low)} to {percent(interval.high)}"


def percent(value: float) -> str:
    """A share for people: two significant places for small ones."""
    if value == 0:
        return "0 %"
    if abs(value) < 0.001:
        return f"{value * 100:.2g} %"
    return f"{value * 100:.1f} %"


def _ceiling(value: float) -> float:
    """The next round share at or above a value."""
    for candidate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        if value <= candidate:
            return candidate
    return 1.0
