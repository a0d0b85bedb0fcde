"""What a load needs, and how a lane scaled by KEDA meets a burst: the tables of docs/capacity.md.

    python -m benchmarks.capacity

Arithmetic on measured costs, and a simulation of the autoscaler's rules; nothing is run. A rate of
your own models (`make bench`) goes into MODELS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

HOST_PER_CORE = 1 / 0.0002
"""Conversations/s of one core without the models: tokenising, templates, Kafka for two models.
docs/performance.md."""
PARTITION_BYTES = 10e6
"""Bytes/s that a partition with three copies carries without a queue at its leader."""
CONVERSATION_BYTES = 2_000
UTILISATION = 0.6
"""Planned share of capacity: waiting times grow without bound towards 1."""
DAY = 86_400
CORES_PER_GPU = 4
"""Three processes of a small model used 3.7: a thread that waits for a GPU spins."""


@dataclass(frozen=True)
class Model:
    """Conversations/s through judge and reward model of this size together; None: not sensible."""

    name: str
    per_core: float | None
    per_gpu: float


MODELS = (
    # 15.6 and the first two GPUs: docs/scoring.md. 8B: half of the arithmetic limit of an H200.
    Model("20M", 15.6, 4_860),
    Model("110M", 1.8, 1_990),
    Model("8B", None, 55),
)
LOADS = (100, 10_000, 1_000_000)


@dataclass(frozen=True)
class Need:
    """What a load takes. Cores feed GPUs where there are GPUs."""

    cores: int
    gpus: int
    partitions: int
    terabytes_a_day: float


def need(load: float, model: Model, gpu: bool) -> Need:
    """Raises ValueError for a model that no CPU carries."""
    host = load / HOST_PER_CORE / UTILISATION
    if gpu:
        gpus = math.ceil(load / model.per_gpu / UTILISATION)
        cores, pods = max(math.ceil(host), CORES_PER_GPU * gpus), gpus
    elif model.per_core is None:
        raise ValueError(f"{model.name}: on GPUs only")
    else:
        cores, gpus = math.ceil(load / model.per_core / UTILISATION), 0
        pods = math.ceil(cores / 4)
    by_bytes = math.ceil(load * CONVERSATION_BYTES / PARTITION_BYTES)
    # Room to double without repartitioning, which would break the order of keys.
    partitions = 2 * max(pods, by_bytes, 3)
    return Need(cores, gpus, partitions, load * CONVERSATION_BYTES * DAY / 1e12)


@dataclass(frozen=True)
class Scaling:
    """A lane's ScaledObject and its pods."""

    per_pod: float = 100.0
    """Conversations/s of one pod."""
    min_replicas: int = 1
    max_replicas: int = 6
    lag_threshold: int = 500
    polling_seconds: int = 15
    start_seconds: int = 30
    """Until a new pod scores: image, models, the group."""
    pause_seconds: int = 3
    """For which a change of the group stops the partitions that move; here: all of them."""
    stabilisation_seconds: int = 300


@dataclass(frozen=True)
class Reaction:
    """What a burst came to."""

    worst_lag: float
    """Until the lane had caught up."""
    lag_again: float
    """Afterwards: a lane that has caught up looks idle to what counts lag alone."""
    worst_wait_seconds: int
    most_replicas: int
    seconds_to_drain: int
    """From the burst's begin until a second's work of one pod is left; -1: not in the time."""


def simulate(
    scaling: Scaling, arrivals: Callable[[int], float], seconds: int, begin: int = 0
) -> Reaction:
    """Second by second: KEDA reports the lag to the HPA every `polling_seconds`, which wants
    lag / threshold replicas (a tenth of tolerance), at most doubles or adds four in 15 s, and
    takes away what was not wanted for `stabilisation_seconds`.
    """
    ready, starting = scaling.min_replicas, list[int]()
    wanted: list[tuple[int, int]] = []
    come, served = [0.0], [0.0]
    most, paused = ready, 0
    for now in range(seconds):
        came = sum(at <= now for at in starting)
        if came:
            ready, starting = ready + came, [at for at in starting if at > now]
            paused = now + scaling.pause_seconds
        come.append(come[-1] + arrivals(now))
        capacity = scaling.per_pod * ready if now >= paused else 0.0
        served.append(min(come[-1], served[-1] + capacity))
        most = max(most, ready + len(starting))
        if now % scaling.polling_seconds:
            continue
        lag, have = come[-1] - served[-1], ready + len(starting)
        ratio = lag / scaling.lag_threshold / max(1, have)
        ask = have if abs(ratio - 1) <= 0.1 else math.ceil(lag / scaling.lag_threshold)
        ask = min(max(ask, scaling.min_replicas), scaling.max_replicas)
        wanted = [(at, n) for at, n in wanted if at > now - scaling.stabilisation_seconds]
        wanted.append((now, ask))
        if ask > have:
            more = min(ask, max(2 * have, have + 4)) - have
            starting += [now + scaling.start_seconds] * more
        elif (kept := max(n for _, n in wanted)) < ready:
            ready, paused = kept, now + scaling.pause_seconds
    lags = [all_come - done for all_come, done in zip(come, served, strict=True)]
    behind = [at for at in range(begin, len(lags)) if lags[at] >= scaling.per_pod]
    first = behind[0] if behind else begin
    caught_up = next((at for at in range(first, len(lags)) if lags[at] < scaling.per_pod), None)
    again = 0.0 if caught_up is None else max(lags[caught_up:])
    drained = -1 if caught_up is None else caught_up - begin
    return Reaction(
        max(lags[:caught_up], default=0.0), again, _longest(come, served), most, drained
    )


def _longest(come: Sequence[float], served: Sequence[float]) -> int:
    """Seconds that the unluckiest record waited, first in first out."""
    longest = done = 0
    for at, total in enumerate(come):
        while done < len(served) and served[done] < total:
            done += 1
        longest = max(longest, done - at)
    return longest


def burst(low: float, high: float, begin: int, length: int) -> Callable[[int], float]:
    """`low` conversations/s, and `high` for `length` seconds from `begin`."""
    return lambda now: high if begin <= now < begin + length else low


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def loads() -> str:
    """The first table."""
    rows = []
    for load in LOADS:
        for model in MODELS:
            on_gpu = need(load, model, gpu=True)
            on_cpu = "" if model.per_core is None else f"{need(load, model, gpu=False).cores:,}"
            rows.append(
                (
                    f"{load:,}",
                    model.name,
                    on_cpu or "not sensible",
                    f"{on_gpu.gpus:,} with {on_gpu.cores:,} cores",
                    f"{on_gpu.partitions:,}",
                    f"{on_gpu.terabytes_a_day:,.2f} TB",
                )
            )
    head = ("conversations/s", "models", "CPU cores", "or GPUs", "partitions", "input a day")
    return table(head, rows)


def reactions() -> str:
    """The second table: ten times the usual load for twenty minutes."""
    cases = [
        ("as in values.yaml", Scaling()),
        ("a third of the threshold", Scaling(lag_threshold=150)),
        ("two pods at the least", Scaling(min_replicas=2)),
        ("from zero", Scaling(min_replicas=0)),
        ("large models: 180 s to start", Scaling(start_seconds=180)),
        ("twelve partitions, twelve pods", Scaling(max_replicas=12)),
    ]
    rows = []
    for name, scaling in cases:
        found = simulate(scaling, burst(50, 500, 300, 1200), 3600, 300)
        drained = (
            f"{found.seconds_to_drain:,} s" if found.seconds_to_drain >= 0 else "not in 55 min"
        )
        rows.append(
            (
                name,
                f"{found.worst_lag:,.0f}",
                drained,
                f"{found.lag_again:,.0f}",
                f"{found.worst_wait_seconds:,} s",
                found.most_replicas,
            )
        )
    head = (
        "ScaledObject",
        "most lag",
        "caught up after",
        "most lag again",
        "longest wait",
        "most pods",
    )
    return table(head, rows)


if __name__ == "__main__":
    print(loads(), reactions(), sep="\n\n")
