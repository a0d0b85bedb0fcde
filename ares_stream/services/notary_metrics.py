"""The notary's metrics. Labels come from closed sets."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class NotaryMetrics:
    """The notary's metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.leading = Gauge(
            "ares_notary_leading",
            "1 while this replica leads, 0 while it waits.",
            registry=registry,
        )
        self.lag = Gauge(
            "ares_notary_lag_records",
            "Records written and in no tree yet.",
            registry=registry,
        )
        self.leaves = Gauge(
            "ares_notary_leaves",
            "Leaves of the trees of a topic's partitions.",
            ["topic"],
            registry=registry,
        )
        self.checkpoints = Counter(
            "ares_notary_checkpoints",
            "Signed heads that this process has published.",
            registry=registry,
        )
        self.last = Gauge(
            "ares_notary_checkpoint_timestamp_seconds",
            "Time until which all that was read is signed.",
            registry=registry,
        )
        self.lost = Counter(
            "ares_notary_lost_offsets",
            "Offsets that were deleted before they were read.",
            ["topic"],
            registry=registry,
        )
        self.forgotten = Counter(
            "ares_notary_forgotten_states",
            "States of partitions that continued no signed head and were not taken up.",
            registry=registry,
        )
        self.stamps = Counter(
            "ares_notary_stamps",
            "Time stamps of heads that an authority gave.",
            registry=registry,
        )
        self.unstamped = Counter(
            "ares_notary_stamp_failures",
            "Time stamps that an authority did not give, or that did not hold.",
            registry=registry,
        )

    def stand_by(self) -> None:
        """Another replica leads, or none: its figures are not this one's to show."""
        self.leading.set(0)
        self.lag.set(0)
        self.leaves.clear()
