"""Dashboards as Grafana reads them, from a few plain values.

In an expression `@` stands for the filters by job and instance, so that no panel can forget them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import prometheus as prometheus_models

RUNBOOK: Final = "https://github.com/ares-stream/ares-stream/blob/main/docs/runbook.md"
METRICS: Final = "https://github.com/ares-stream/ares-stream/blob/main/docs/metrics.md"
SOURCE: Final = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
FILTERS: Final = 'job=~"$job", instance=~"$instance"'
WIDTH: Final = 24

Kind = Literal["lines", "stacked", "number", "bars", "heat", "table"]


@dataclass(frozen=True)
class Query:
    """PromQL, and how a series is named."""

    expr: str
    legend: str = ""

    @property
    def promql(self) -> str:
        """With the filters."""
        return self.expr.replace("@", FILTERS)


def as_asked(promql: str) -> str:
    """A query with what Grafana fills in: every job, a short interval."""
    return (
        promql.replace("$__rate_interval", "15s")
        .replace("$job", "ares-.+")
        .replace("$instance", ".+")
    )


@dataclass(frozen=True)
class Panel:
    """What it shows, in which unit (Grafana's id), where its alert is explained."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Kind = "lines"
    alert: str = ""
    width: int = 8
    limit: float | None = None
    """Red from here on."""


@dataclass(frozen=True)
class Note:
    """Words in the place of a panel."""

    title: str
    markdown: str
    width: int = WIDTH


@dataclass(frozen=True)
class Row:
    """A heading, and what is under it."""

    title: str
    panels: tuple[Panel | Note, ...]


@dataclass(frozen=True)
class Page:
    """A dashboard. `name` is its file and the end of its uid."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]

    @property
    def panels(self) -> list[Panel]:
        """Those with queries."""
        return [item for row in self.rows for item in row.panels if isinstance(item, Panel)]


def encoded(page: Page, pages: Sequence[Page]) -> str:
    """The JSON that Grafana imports; the other pages are linked."""
    made = (
        dashboard.Dashboard(f"ares-stream: {page.title}")
        .uid(f"ares-{page.name}")
        .description(page.description)
        .tags(["ares-stream"])
        .readonly()
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        )
        .with_variable(_variable("job", 'label_values(up{job=~"ares-.+"}, job)'))
        .with_variable(_variable("instance", 'label_values(up{job=~"$job"}, instance)'))
        .link(dashboard.DashboardLink("Runbook").type(models.DashboardLinkType.LINK).url(RUNBOOK))
    )
    for other in pages:
        if other is not page:
            link = dashboard.DashboardLink(other.title).type(models.DashboardLinkType.LINK)
            made.link(link.url(f"/d/ares-{other.name}").keep_time(True).include_vars(True))
    number = 0
    for row in page.rows:
        number += 1
        made.with_row(dashboard.Row(row.title).id(number))
        for item in row.panels:
            number += 1
            built = _note(item) if isinstance(item, Note) else _panel(item)
            made.with_panel(built.id(number))
    return json.dumps(made.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value("ares-.+" if name == "job" else ".+")
        .current(models.VariableOption(text="All", value="$__all"))
    )


def _note(note: Note) -> text.Panel:
    return (
        text.Panel().title(note.title).description(note.title).content(note.markdown)
        .span(note.width).height(4)
    )  # fmt: skip


def _panel(panel: Panel) -> Any:
    made: Any
    if panel.kind in ("lines", "stacked"):
        made = timeseries.Panel().legend(
            common.VizLegendOptions()
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        if panel.kind == "stacked":
            stacking = common.StackingConfig().mode(common_models.StackingMode.NORMAL)
            made.stacking(stacking.group("A")).fill_opacity(30)
        if panel.limit is not None:
            style = common_models.GraphTresholdsStyleMode.LINE
            made.thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
    elif panel.kind == "number":
        made = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    elif panel.kind == "bars":
        made = bargauge.Panel().orientation(common_models.VizOrientation.HORIZONTAL)
        made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    elif panel.kind == "heat":
        made = heatmap.Panel()
    else:
        made = table.Panel()
    made.title(panel.title).description(panel.description).unit(panel.unit)
    made.datasource(SOURCE).span(panel.width).height(8)
    if panel.limit is not None:
        steps = [
            models.Threshold(value=None, color="green"),
            models.Threshold(value=panel.limit, color="red"),
        ]
        made.thresholds(
            dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
        )
    where = f"{RUNBOOK}#{panel.alert.lower()}" if panel.alert else METRICS
    made.links([dashboard.DashboardLink(panel.alert or "Metrics").url(where).target_blank(True)])
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).expr(query.promql)
        target.datasource(SOURCE).legend_format(query.legend or "__auto")
        if panel.kind == "heat":
            target.format(prometheus_models.PromQueryFormat.HEATMAP)
        if panel.kind == "table":
            target.format(prometheus_models.PromQueryFormat.TABLE)
        if panel.kind in ("table", "bars"):
            target.instant()
        else:
            target.range()
        made.with_target(target)
    return made
