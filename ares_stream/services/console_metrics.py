"""The console's metrics. Labels come from closed sets."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from ares_stream.services.metrics import zeros

DECISIONS: Final = (
    "labelled", "undone", "text shown", "release decided", "alarm acknowledged", "causes sought",
    "log-in refused",
)  # fmt: skip


class ConsoleMetrics:
    """The console's metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.waiting = Gauge(
            "ares_console_waiting_items",
            "Items that lack an opinion.",
            registry=registry,
        )
        self.decisions = Counter(
            "ares_console_decisions",
            "What people did; kind: labelled, others shown, undone, text shown, release decided, "
            "alarm acknowledged, log-in refused.",
            ["kind"],
            registry=registry,
        )
        self.lag = Gauge(
            "ares_console_lag_records",
            "Records written and not read yet.",
            registry=registry,
        )
        zeros(self.decisions, DECISIONS)
