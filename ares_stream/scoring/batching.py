"""Which inputs run through a model together. Pure.

On a CPU padding costs more than batching gains, so only inputs of near-equal length share a run;
on a GPU a large sorted batch wins. The figures are in docs/scoring.md (`make bench`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Bounds of one run: tokens with padding, inputs, and the share of padding allowed."""

    tokens: int
    records: int
    padding: float


CPU = BatchPolicy(tokens=256, records=32, padding=0.08)
"""Short inputs gain from company; past some hundred tokens a run's activations leave the cache."""
GPU = BatchPolicy(tokens=32_768, records=512, padding=0.5)


def plan(lengths: Sequence[int], policy: BatchPolicy) -> list[list[int]]:
    """Batches of indices into `lengths` (tokens of each input), longest inputs first.

    Every index appears once. A batch keeps to the policy, except that one input larger than the
    token budget runs alone.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    width = used = 0
    for index in order:
        length = lengths[index]
        if batches and _fits(len(batches[-1]), width, used, length, policy):
            batches[-1].append(index)
            used += length
        else:
            batches.append([index])
            width, used = length, length
    return batches


def _fits(count: int, width: int, used: int, length: int, policy: BatchPolicy) -> bool:
    padded = (count + 1) * width
    return (
        count < policy.records
        and padded <= policy.tokens
        and (padded - used - length) <= policy.padding * padded
    )


def padding_share(lengths: Sequence[int]) -> float:
    """Share of a batch's tokens that are padding, 0 to 1."""
    padded = len(lengths) * max(lengths, default=0)
    return 1.0 - sum(lengths) / padded if padded else 0.0
