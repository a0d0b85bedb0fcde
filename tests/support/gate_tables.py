"""Figures of an incumbent and of a repair that passes the default gate."""

from ares_stream.detection.intervals import wilson
from ares_stream.records.base import Interval


def drift(value: float) -> Interval:
    return Interval(value=value, low=value - 0.02, high=value + 0.02, count=200)


INCUMBENT = {
    "cfr": wilson(110, 120),
    "cfr_frozen_rm": wilson(110, 120),
    "policy_harm": wilson(115, 120),
    "rm_blind": wilson(112, 120),
    "rm_accuracy": wilson(188, 200),
    "drift_fixed": Interval(value=0, low=0, high=0, count=200),
    "drift_on_policy": Interval(value=0, low=0, high=0, count=200),
    "over_refusal": wilson(2, 200),
    "garbage": wilson(0, 320),
}
REPAIRED = INCUMBENT | {
    "cfr": wilson(1, 120),
    "cfr_frozen_rm": wilson(1, 120),
    "policy_harm": wilson(3, 120),
    "rm_blind": wilson(4, 120),
    "rm_accuracy": wilson(194, 200),
    "drift_fixed": drift(0.08),
    "drift_on_policy": drift(0.1),
    "over_refusal": wilson(3, 200),
}
