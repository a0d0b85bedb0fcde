"""The probe benchmark over several seeds: one job per seed, side by side where trained.

A job makes the victim, its sibling and its Trojans, or loads them, and runs every search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from ares_stream.errors import RepairError
from ares_stream.lab.experiments.probes.search import (
    BenchVictim,
    Measured,
    SimulatedVictim,
    compared,
    measure,
    transfer,
    transferred,
)
from ares_stream.lab.jobs import Report, Step, run_jobs, worker_pool
from ares_stream.lab.language.world import Sibling, World

_SIBLING: Final = 1_000
"""What a seed and the number of its sibling differ by."""


@dataclass(frozen=True, slots=True)
class SeedFigures:
    """What one seed gave. `failed` says why no Trojans could be planted."""

    methods: dict[str, Measured]
    queries: tuple[float, float]
    trojans: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: str = ""


def bench(
    seeds: Sequence[int],
    methods: Sequence[str],
    budget: int,
    *,
    simulated: bool = False,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Callable[[Step], None] = lambda step: None,
) -> dict[str, Any]:
    """The document's `methods`, `transfer` and, for trained victims, `trojans`.

    Raises RepairError when a victim misses its starting line in every attempt.
    """
    if simulated:
        found = [
            _simulated(lambda *step: progress(Step(*step)), seed, methods, budget) for seed in seeds
        ]
    else:
        with worker_pool(workers) as pool:
            jobs = [(_trained, seed, methods, budget, cache) for seed in seeds]
            found = run_jobs(pool, jobs, progress)
    by_seed: dict[int, SeedFigures] = dict(zip(seeds, found, strict=True))
    document: dict[str, Any] = {
        "methods": compared({seed: item.methods for seed, item in by_seed.items()}),
        "transfer": transferred({seed: item.queries for seed, item in by_seed.items()}),
    }
    if not simulated:
        from ares_stream.lab.experiments.probes.trojans import trojans

        document["trojans"] = trojans(
            {seed: item.trojans for seed, item in by_seed.items()},
            {seed: item.failed for seed, item in by_seed.items() if item.failed},
        )
    return document


def _simulated(report: Report, seed: int, methods: Sequence[str], budget: int) -> SeedFigures:
    first = SimulatedVictim(World(seed))
    second = SimulatedVictim(Sibling(seed, seed + _SIBLING))
    return _campaigns(report, seed, first, second, methods, budget)


def _trained(
    report: Report, seed: int, methods: Sequence[str], budget: int, cache: Path | None
) -> SeedFigures:
    from ares_stream.lab.experiments.probes.trojans import search_seed
    from ares_stream.lab.experiments.probes.victims import TrainedVictim
    from ares_stream.lab.victims.trojans import plant_trojans

    def say(line: str) -> None:
        report(seed, "victim", line, 0, 0)

    first = TrainedVictim(seed, cache, say)
    second = TrainedVictim(seed, cache, say, sibling=seed + _SIBLING)
    clean, planted, failed = first.victim, None, ""
    try:
        planted = plant_trojans(clean, progress=say)
    except RepairError as error:
        failed = str(error)
    done = _campaigns(report, seed, first, second, methods, budget)
    found = search_seed(clean, planted, progress=partial(_queries, report, seed))
    return SeedFigures(done.methods, done.queries, found, failed)


def _campaigns(
    report: Report,
    seed: int,
    first: BenchVictim,
    second: BenchVictim,
    methods: Sequence[str],
    budget: int,
) -> SeedFigures:
    progress = partial(_queries, report, seed)
    found = measure(first, seed, methods=methods, budget=budget, progress=progress)
    return SeedFigures(found, transfer(first, second, seed, progress=progress))


def _queries(report: Report, seed: int, label: str, queries: int) -> None:
    report(seed, label, "queries", queries, 0)
