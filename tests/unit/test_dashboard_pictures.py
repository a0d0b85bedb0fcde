"""The drawing of a dashboard: every panel, every kind, and what has no data."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from services.dashboards.pages import PAGES
from services.dashboards.panels import Page, Panel, Query, Row
from services.dashboards.pictures import Series, draw

KINDS = ("lines", "stacked", "number", "bars", "heat", "table")


def page(**panel: object) -> Page:
    made = Panel("One <panel>", "short", "What it shows.", (Query("up{@}", "{{job}}"),), **panel)  # type: ignore[arg-type]
    return Page("x", "a page", "About it.", (Row("A row", (made,)),))


def texts(document: str) -> list[str]:
    tree = ElementTree.fromstring(document)  # noqa: S314 - of our own making
    return [item.text for item in tree.iter() if item.text]


def series(name: str, *values: float, **labels: str) -> Series:
    return Series(name, labels, tuple((1000.0 + at, y) for at, y in enumerate(values)))


@pytest.mark.parametrize("one", PAGES, ids=lambda one: one.name)
def test_a_dashboard_is_drawn_whole_and_says_where_there_is_no_data(one: Page) -> None:
    shown = texts(draw(one, {}, "No Grafana."))
    assert [panel.title for panel in one.panels if panel.title not in shown] == []
    assert shown.count("no data in this run") == len(one.panels)
    assert any("No Grafana." in text for text in shown)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_panel_shows_its_series(kind: str) -> None:
    found = [
        series("a & b", 1.0, 2.0, le="0.5", job="a & b"),
        series("other", 3.0, 1500.0, le="+Inf", job="other"),
    ]
    shown = texts(draw(page(kind=kind), {"One <panel>": found}, ""))
    assert "no data in this run" not in shown
    assert "One <panel>" in shown
    wanted = "≤ 0.5" if kind == "heat" else "a & b"
    assert wanted in shown
    if kind in ("number", "bars", "table"):
        assert "1.5 k" in shown


def test_a_limit_that_is_near_is_drawn_and_one_that_is_far_is_not() -> None:
    def dashed(limit: float) -> bool:
        found = {"One <panel>": [series("a", 1.0, 2.0)]}
        return "stroke-dasharray" in draw(page(limit=limit), found, "")

    assert dashed(3.0)
    assert not dashed(100.0)


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        ("percentunit", 0.0123, "1.2%"), ("percentunit", 0.5, "50%"), ("s", 0.25, "0.25 s"),
        ("bytes", 3.2e6, "3.2 MB"), ("ops", 12.0, "12/s"), ("bool", 1.0, "yes"),
        ("short", 4200.0, "4.2 k"),
    ],
)  # fmt: skip
def test_values_have_their_unit(unit: str, value: float, text: str) -> None:
    one = Panel("P", unit, "D.", (Query("up{@}", "a"),), kind="number")
    made = Page("x", "t", "d", (Row("r", (one,)),))
    assert text in texts(draw(made, {"P": [series("a", value)]}, ""))


@pytest.mark.parametrize("kind", ["number", "bars", "table"])
def test_what_is_gone_by_now_is_not_shown_as_present(kind: str) -> None:
    found = [series("gone", 1.0, job="gone"), series("here", 1.0, 2.0, job="here")]
    shown = texts(draw(page(kind=kind), {"One <panel>": found}, ""))
    assert "here" in shown
    assert "gone" not in shown


def test_a_legend_leaves_out_what_all_its_series_begin_with() -> None:
    found = [series(f"ares.interactions.{lane}", 1.0, 2.0) for lane in ("probe", "production")]
    one = page(kind="lines")
    shown = texts(draw(one, {"One <panel>": found}, ""))
    assert {"probe", "production"} <= set(shown)
    alone = texts(draw(one, {"One <panel>": found[:1]}, ""))
    assert "ares.interactions.probe" in " ".join(alone)


def test_between_yes_and_no_an_axis_has_nothing() -> None:
    panel = Panel("One", "bool", "What it shows.", (Query("up{@}", "{{job}}"),))
    one = Page("x", "a page", "About it.", (Row("A row", (panel,)),))
    shown = texts(draw(one, {"One": [series("a", 0.0, 1.0)]}, ""))
    assert (shown.count("yes"), shown.count("no")) == (1, 1)
