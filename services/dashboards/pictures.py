"""The dashboards drawn from their queries' answers, for people who have no Grafana at hand:

    python -m services.dashboards.pictures http://127.0.0.1:9090 --out docs/pictures --seconds 120

One SVG a dashboard. Not Grafana's rendering: the panels' order, widths, titles, units, limits and
queries are the dashboards', the drawing is this module's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import httpx

from services.dashboards.pages import PAGES
from services.dashboards.panels import Page, Panel, as_asked

COLUMN: Final = 50
HEIGHT: Final = 190
HEADING: Final = 34
TOP: Final = 78
LEGEND: Final = 4
"""Series that are named under a panel; the rest are counted."""
COLOURS: Final = (
    "#2f6db5", "#c8502d", "#3b8a4a", "#8a5aa8", "#b08a1e", "#4c9aa8", "#a83f6f", "#6b6b6b",
)  # fmt: skip
STEPS: Final = 60
SUFFIXES: Final = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True)
class Series:
    """A query's answer under one name: (seconds, value), in order of time."""

    name: str
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def last(self) -> float:
        """The newest value."""
        return self.points[-1][1]


def fetched(url: str, page: Page, seconds: float) -> dict[str, list[Series]]:
    """Series by title of the panel, over the last seconds. Raises httpx.HTTPError."""
    end = time.time()
    found: dict[str, list[Series]] = {}
    with httpx.Client(base_url=f"{url.rstrip('/')}/api/v1/", trust_env=False, timeout=30) as client:
        for panel in page.panels:
            for query in panel.queries:
                asked = {
                    "query": as_asked(query.promql),
                    "start": end - seconds,
                    "end": end,
                    "step": max(1.0, seconds / STEPS),
                }
                answer = client.get("query_range", params=asked).raise_for_status().json()["data"]
                found.setdefault(panel.title, []).extend(
                    _series(query.legend, item) for item in answer["result"]
                )
    return found


def _series(legend: str, item: Mapping[str, Any]) -> Series:
    labels = {key: value for key, value in item["metric"].items() if key != "__name__"}
    name = legend
    for key, value in labels.items():
        name = name.replace(f"{{{{{key}}}}}", value)
    points = [(float(at), float(value)) for at, value in item["values"]]
    return Series(name, labels, tuple((at, y) for at, y in points if math.isfinite(y)))


def draw(page: Page, found: Mapping[str, Sequence[Series]], caption: str) -> str:
    """The dashboard as an SVG document."""
    body: list[str] = []
    y = TOP
    for row in page.rows:
        body.append(_text(10, y + 22, row.title, 15, bold=True))
        y += HEADING
        x = 0
        for item in row.panels:
            width = item.width * COLUMN
            if x + width > 24 * COLUMN:
                x, y = 0, y + HEIGHT
            box = f'<g transform="translate({x},{y})">'
            shown = [line for line in found.get(item.title, ()) if line.points]
            inside = _panel(item, width, shown) if isinstance(item, Panel) else _frame(item, width)
            body.append(f"{box}{inside}</g>")
            x += width
        y += HEIGHT
    head = _text(10, 26, f"ares-stream: {page.title}", 20, bold=True)
    head += _text(10, 48, page.description, 12, "#555") + _text(10, 66, caption, 11, "#888")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {24 * COLUMN} {y + 10}" '
        f'font-family="sans-serif" role="img" aria-label="{escape(page.title)}">'
        f'<rect width="100%" height="100%" fill="#f4f5f7"/>{head}{"".join(body)}</svg>\n'
    )


def _frame(item: Any, width: int) -> str:
    edge = f'<rect x="4" y="4" width="{width - 8}" height="{HEIGHT - 8}" rx="3" fill="#fff" '
    return f'{edge}stroke="#d8dbe0"/>' + _text(14, 24, item.title, 13, bold=True)


def _panel(panel: Panel, width: int, shown: Sequence[Series]) -> str:
    frame = _frame(panel, width)
    if not shown:
        return frame + _text(width / 2, HEIGHT / 2, "no data in this run", 12, "#888", "middle")
    if panel.kind in ("number", "bars", "table"):
        # Of what was there in the meantime nothing is shown now.
        now = max(line.points[-1][0] for line in shown)
        shown = [line for line in shown if line.points[-1][0] == now]
    if panel.kind == "number":
        return frame + _numbers(panel, width, shown)
    if panel.kind == "bars":
        return frame + _bars(panel, width, shown)
    if panel.kind == "table":
        return frame + _table(panel, width, shown)
    if panel.kind == "heat":
        return frame + _heat(panel, width, shown)
    return frame + _lines(panel, width, shown)


def _lines(panel: Panel, width: int, shown: Sequence[Series]) -> str:
    left, right, top, bottom = 60, width - 14, 36, HEIGHT - 46
    drawn = _stacked(shown) if panel.kind == "stacked" else list(shown)
    begin = min(line.points[0][0] for line in drawn)
    end = max(max(line.points[-1][0] for line in drawn), begin + 1)
    low = min(0.0, *(y for line in drawn for _, y in line.points))
    high = max(y for line in drawn for _, y in line.points)
    if panel.limit is not None and panel.limit <= 4 * high:
        high = max(high, panel.limit)
    high = high if high > low else low + 1

    def at(point: tuple[float, float]) -> str:
        x = left + (point[0] - begin) / (end - begin) * (right - left)
        y = bottom - (point[1] - low) / (high - low) * (bottom - top)
        return f"{x:.1f},{y:.1f}"

    marks = [
        f'<line x1="{left}" x2="{right}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e6e8ec"/>'
        + _text(left - 6, y + 4, _shown(value, panel.unit), 10, "#666", "end")
        for y, value in ((bottom, low), ((top + bottom) / 2, (low + high) / 2), (top, high))
        # Between yes and no there is nothing.
        if panel.unit != "bool" or value in (low, high)
    ]
    for place, line in reversed(list(enumerate(drawn))):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(at(point) for point in line.points)
        if panel.kind == "stacked":
            base = f"{at((line.points[-1][0], low))} {at((line.points[0][0], low))}"
            marks.append(f'<polygon points="{path} {base}" fill="{colour}" fill-opacity=".75"/>')
        else:
            marks.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
            )
    if panel.limit is not None and low <= panel.limit <= high:
        y = at((begin, panel.limit)).split(",")[1]
        where = f'x1="{left}" x2="{right}" y1="{y}" y2="{y}"'
        marks.append(f'<line {where} stroke="#c00" stroke-dasharray="4 3"/>')
    return "".join(marks) + _legend(shown, width)


def _stacked(shown: Sequence[Series]) -> list[Series]:
    """Each on top of those before it."""
    below: dict[float, float] = {}
    drawn = []
    for line in shown:
        for at, value in line.points:
            below[at] = below.get(at, 0.0) + value
        drawn.append(
            Series(line.name, line.labels, tuple((at, below[at]) for at, _ in line.points))
        )
    return drawn


def _legend(shown: Sequence[Series], width: int) -> str:
    named = _distinct([line.name for line in shown])[:LEGEND]
    room = (width - 24) / max(1, len(named))
    parts = []
    for place, name in enumerate(named):
        x = 14 + place * room
        colour = COLOURS[place % len(COLOURS)]
        parts.append(f'<rect x="{x:.0f}" y="{HEIGHT - 28}" width="9" height="9" fill="{colour}"/>')
        parts.append(_text(x + 13, HEIGHT - 19, _cut(name, room - 16), 10, "#333"))
    if len(shown) > LEGEND:
        parts.append(_text(width - 14, 24, f"{len(shown)} series", 10, "#888", "end"))
    return "".join(parts)


def _numbers(panel: Panel, width: int, shown: Sequence[Series]) -> str:
    step = (HEIGHT - 50) / len(shown)
    size = min(34.0, step * 0.55)
    parts = []
    for place, line in enumerate(shown):
        y = 44 + step * (place + 0.6)
        parts.append(_text(14, y, _cut(line.name, width * 0.5), min(12.0, size), "#555"))
        wrong = panel.limit is not None and line.last >= panel.limit
        colour = "#c00" if wrong else "#2f6db5"
        parts.append(_text(width - 16, y, _shown(line.last, panel.unit), size, colour, "end"))
    return "".join(parts)


def _bars(panel: Panel, width: int, shown: Sequence[Series]) -> str:
    ordered = sorted(shown, key=lambda line: -line.last)[:8]
    most = max((line.last for line in ordered), default=0.0) or 1.0
    step = (HEIGHT - 44) / max(4, len(ordered))
    parts = []
    for place, line in enumerate(ordered):
        y = 38 + step * place
        size = max(0.0, line.last / most) * (width * 0.42)
        parts.append(_text(14, y + step * 0.65, _cut(line.name, width * 0.38), 10, "#333"))
        parts.append(
            f'<rect x="{width * 0.42:.0f}" y="{y + step * 0.2:.1f}" width="{size:.1f}" '
            f'height="{step * 0.6:.1f}" fill="{COLOURS[0]}"/>'
        )
        place_of_value = width * 0.42 + size + 5
        parts.append(
            _text(place_of_value, y + step * 0.68, _shown(line.last, panel.unit), 10, "#333")
        )
    return "".join(parts)


def _table(panel: Panel, width: int, shown: Sequence[Series]) -> str:
    keys = sorted({key for line in shown for key in line.labels})
    rows = [[*(line.labels.get(key, "") for key in keys), _shown(line.last, panel.unit)]
            for line in shown[:7]]  # fmt: skip
    room = (width - 24) / (len(keys) + 1)
    parts = []
    for number, cells in enumerate([[*keys, "value"], *rows]):
        for place, cell in enumerate(cells):
            parts.append(
                _text(14 + place * room, 46 + 17 * number, _cut(cell, room - 6), 10,
                      "#888" if number == 0 else "#333")
            )  # fmt: skip
    if len(shown) > len(rows):
        parts.append(_text(width - 14, 24, f"{len(shown)} rows", 10, "#888", "end"))
    return "".join(parts)


def _heat(panel: Panel, width: int, shown: Sequence[Series]) -> str:
    """Of a histogram's buckets: what lies between a bound and the one below it, darker for more."""
    bounds = sorted(shown, key=lambda line: float(line.labels["le"].replace("+Inf", "inf")))
    left, right, top, bottom = 60, width - 14, 36, HEIGHT - 22
    times = sorted({at for line in bounds for at, _ in line.points})
    below: dict[float, float] = {}
    cells: list[tuple[int, int, float]] = []
    for row, line in enumerate(bounds):
        for at, value in line.points:
            cells.append((times.index(at), row, max(0.0, value - below.get(at, 0.0))))
            below[at] = value
    most = max((value for *_, value in cells), default=0.0) or 1.0
    wide, high = (right - left) / len(times), (bottom - top) / len(bounds)
    parts = [
        f'<rect x="{left + column * wide:.1f}" y="{bottom - (row + 1) * high:.1f}" '
        f'width="{wide + 0.2:.1f}" height="{high:.1f}" fill="{COLOURS[0]}" '
        f'fill-opacity="{math.sqrt(value / most):.2f}"/>'
        for column, row, value in cells
        if value > 0
    ]
    for row in range(0, len(bounds), max(1, len(bounds) // 5)):
        y = bottom - (row + 0.3) * high
        parts.append(_text(left - 6, y, f"≤ {bounds[row].labels['le']}", 10, "#666", "end"))
    return "".join(parts)


def _shown(value: float, unit: str) -> str:
    """A value with its unit, as short as it can be."""
    if unit == "percentunit":
        return f"{value:.1%}" if abs(value) < 0.1 else f"{value:.0%}"
    if unit == "dateTimeFromNow":
        return f"{max(0.0, time.time() - value / 1000):.0f} s ago"
    if unit == "bool":
        return "yes" if value else "no"
    after = {"s": " s", "bytes": "B", "ops": "/s"}.get(unit, "")
    for factor, suffix in SUFFIXES:
        if abs(value) >= factor:
            return f"{value / factor:.3g} {suffix}{after.strip()}".strip()
    return f"{value:.3g}{after}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with."""
    first, last = min(names), max(names)
    same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    words = max(first.rfind(mark, 0, same) for mark in ". -") + 1
    return [name[words:] for name in names]


def _cut(text: str, room: float) -> str:
    fits = max(3, int(room / 5.6))
    return text if len(text) <= fits else text[: fits - 1] + "…"


def _text(
    x: float, y: float, text: str, size: float, colour: str = "#222", anchor: str = "start",
    *, bold: bool = False,
) -> str:  # fmt: skip
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size:.0f}" fill="{colour}" '
        f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
    )


def write(url: str, folder: Path, seconds: float, source: str) -> list[Path]:
    """Draw every dashboard into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    caption = f"Drawn from the dashboard's queries, not Grafana's rendering. {source}"
    files = []
    for page in PAGES:
        file = folder / f"dashboard-{page.name}.svg"
        file.write_text(draw(page, fetched(url, page, seconds), caption), encoding="utf-8")
        files.append(file)
    return files


def main(words: Iterable[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--source", default="", help="a sentence on whose data they are")
    given = parser.parse_args(None if words is None else list(words))
    for file in write(given.url, given.out, given.seconds, given.source):
        print(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
