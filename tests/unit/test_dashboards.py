"""Grafana's dashboards: current, readable, of metrics that exist; and every metric is on one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from services.dashboards.__main__ import OUT, made
from services.dashboards.pages import PAGES
from services.dashboards.panels import RUNBOOK, Page, Panel, as_asked
from tests.support.promql import known_metrics, metric_names

ROOT = Path(__file__).resolve().parents[2]
PANELS = [(page, panel) for page in PAGES for panel in page.panels]
RULES = (ROOT / "helm/ares-stream/rules").rglob("*.yaml")
ALERTS = {
    rule["alert"]
    for file in RULES
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def dashboards() -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted(OUT.glob("*.json"))}


def values(item: Any, key: str) -> Iterator[Any]:
    """Every value of that key, anywhere inside."""
    if isinstance(item, dict):
        for name, value in item.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(item, list):
        for value in item:
            yield from values(value, key)


def test_the_files_are_what_make_dashboards_makes() -> None:
    files = made()
    assert {path: path.read_text() for path in OUT.glob("*.json")} == files
    assert len(files) == len(PAGES) == 7


@pytest.mark.parametrize("name", [page.name for page in PAGES])
def test_a_dashboard_has_one_choice_of_prometheus_and_names_no_other(name: str) -> None:
    board = dashboards()[name]
    variables = board["templating"]["list"]
    assert [item["name"] for item in variables] == ["datasource", "job", "instance"]
    assert [item["type"] for item in variables] == ["datasource", "query", "query"]
    assert {item["uid"] for item in values(board, "datasource")} == {"${datasource}"}
    assert board["editable"] is False
    assert board["uid"] == f"ares-{name}"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_dashboards_lead_to_each_other_and_to_the_runbook() -> None:
    boards = dashboards()
    for name, board in boards.items():
        urls = {link["url"] for link in board["links"]}
        assert urls == {RUNBOOK, *(f"/d/ares-{other}" for other in boards if other != name)}


@pytest.mark.parametrize(("page", "panel"), PANELS, ids=lambda item: getattr(item, "title", ""))
def test_a_panel_says_what_it_shows_and_in_which_unit(page: Page, panel: Panel) -> None:
    assert panel.title
    assert panel.unit
    assert panel.description.endswith(".")
    assert not panel.alert or panel.alert in ALERTS
    assert [item.title for item in page.panels].count(panel.title) == 1
    names = [query.legend for query in panel.queries]
    assert len(set(names)) == len(names)
    assert panel.kind == "table" or all(names), "a series without a name"


@pytest.mark.parametrize(("page", "panel"), PANELS, ids=lambda item: getattr(item, "title", ""))
def test_a_query_parses_keeps_the_filters_and_asks_for_metrics_that_exist(
    page: Page, panel: Panel
) -> None:
    for query in panel.queries:
        assert metric_names(promql_parser.parse(as_asked(query.promql))) <= known_metrics()
        # A selector without the filters would show other installations' figures.
        selectors = re.findall(r"\b(?:ares_\w+|process_\w+|up)\{([^}]*)\}?", query.promql)
        assert selectors
        assert all('job=~"$job", instance=~"$instance"' in item for item in selectors)
        assert not re.search(r"(?<!by \()\b(?:ares|process)_\w+(?![\w{])", query.promql), (
            "no filters"
        )
        if re.search(r"\brate\(", query.promql):
            assert "$__rate_interval" in query.promql


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {
        name
        for _, panel in PANELS
        for query in panel.queries
        for name in metric_names(promql_parser.parse(as_asked(query.promql)))
    }
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown}
    wanted = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known_metrics()}
    told = "put it on a page of services/dashboards/pages.py, then `make dashboards`"
    assert wanted - families == set(), told
