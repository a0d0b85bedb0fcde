"""What a PromQL expression asks for, and what our services have."""

from __future__ import annotations

from functools import cache

import promql_parser
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from ares_stream.probes.metrics import ProberMetrics
from ares_stream.services.console_metrics import ConsoleMetrics
from ares_stream.services.metrics import RepairerMetrics, ScorerMetrics
from ares_stream.services.monitor_metrics import MonitorMetrics
from ares_stream.services.notary_metrics import NotaryMetrics
from ares_stream.services.renewals import RenewalMetrics

SERVICES = (
    *(ScorerMetrics, ProberMetrics, RepairerMetrics, MonitorMetrics),
    *(NotaryMetrics, ConsoleMetrics),
)
KUBERNETES = frozenset(
    {"kube_job_status_failed", "kube_job_status_succeeded",
     "kube_cronjob_status_last_successful_time", "kube_cronjob_created",
     "kube_deployment_spec_replicas", "kube_deployment_status_replicas_available",
     "keda_scaled_object_errors_total", "keda_scaled_object_paused"}
)  # fmt: skip
"""Of kube-state-metrics, which tells how Jobs end and what Deployments lack, and of KEDA."""
SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_count", "_sum"),
}


def metric_names(expression: promql_parser.Expr) -> set[str]:
    """Names of every selector in it. Raises AssertionError for a selector without a name."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, "a selector without a name"
            found.add(node.name)
        elif isinstance(node, promql_parser.MatrixSelector):
            assert node.vector_selector.name, "a selector without a name"
            found.add(node.vector_selector.name)
        return True

    promql_parser.walk(expression, visit)
    return found


def labels_of(expression: promql_parser.Expr) -> frozenset[str] | None:
    """Labels that the result of it has; None where they are those of its series."""
    if isinstance(expression, promql_parser.ParenExpr | promql_parser.UnaryExpr):
        return labels_of(expression.expr)
    if isinstance(expression, promql_parser.AggregateExpr):
        modifier = expression.modifier
        if modifier is None:
            return frozenset()
        by = modifier.type == promql_parser.AggModifierType.By
        return frozenset(modifier.labels) if by else None
    if isinstance(expression, promql_parser.Call):
        if expression.func.name.startswith("absent"):
            return frozenset()
        return next((labels_of(item) for item in expression.args if not _is_scalar(item)), None)
    if isinstance(expression, promql_parser.BinaryExpr):
        return _of_two(expression)
    return None


def _of_two(expression: promql_parser.BinaryExpr) -> frozenset[str] | None:
    left, right = expression.lhs, expression.rhs
    if _is_scalar(left):
        return labels_of(right)
    operator, modifier = str(expression.op), expression.modifier
    if operator == "or":
        both = [item for item in (labels_of(left), labels_of(right)) if item is not None]
        return frozenset.intersection(*both) if both else None
    if modifier is None or operator in ("and", "unless") or _is_scalar(right):
        return labels_of(left)
    matching = modifier.matching
    alone = modifier.card == promql_parser.VectorMatchCardinality.OneToOne
    # The type of what matches is not among the names that the module exports.
    if alone and matching is not None and str(matching.type).endswith("Include"):
        return frozenset(matching.labels)
    return labels_of(left)


def _is_scalar(expression: promql_parser.Expr) -> bool:
    if isinstance(expression, promql_parser.ParenExpr):
        return _is_scalar(expression.expr)
    if isinstance(expression, promql_parser.Call):
        return expression.func.name in ("time", "scalar")
    return isinstance(expression, promql_parser.NumberLiteral)


@cache
def known_metrics() -> frozenset[str]:
    """Every series name that a service can show, and `up`."""
    names = {"up"}
    for make in SERVICES:
        for metric in vars(make(CollectorRegistry())).values():
            if isinstance(metric, MetricWrapperBase):
                (family,) = metric.describe()
                names |= {family.name + suffix for suffix in SUFFIXES[family.type]}
    for collector in (RenewalMetrics(), ProcessCollector(registry=None)):
        for family in collector.collect():
            names |= {family.name + suffix for suffix in SUFFIXES[family.type]}
    return frozenset(names)
