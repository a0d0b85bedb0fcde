"""Throughput of the panel as a share of the raw ONNX Runtime loop; and batch policies.

    python -m benchmarks.bench_scoring [--seconds 150] [--json FILE]      (make bench)

The model is a BERT of MiniLM-L6's size with random weights, made and exported once to build/bench;
it plays judge and reward model both, so that each conversation runs twice. The raw loop gets the
same inputs already tokenised, sessions with the same options, as many threads, and the better of
two batch policies; the panel gets conversations. The two take turns in one run (A-B-B-A), so that
a change of the machine's load hits both alike. Figures are medians, with the range. Each pass takes
two windows of the scorer at least. From topic to visible verdict: `ares bench throughput`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ares_stream.lab.experiments.throughput.models import (
    Pair,
    bert_pair,
    conversations,
    null_pair,
)
from ares_stream.lab.experiments.throughput.raw import (
    BATCHINGS,
    Clock,
    Pass,
    Raw,
    better,
    near_equal,
    padding,
)
from ares_stream.lab.experiments.throughput.report import environment
from ares_stream.records.interaction import Interaction
from ares_stream.scoring.panel import Panel
from ares_stream.scoring.tokenising import InputEncoder, Tokens

BUILD: Final = Path("build/bench")
ROUNDS: Final = 2
WINDOW: Final = 128
"""Records the scorer's processor hands over together."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Medians and range over the passes of one contestant; share of its tokens that pad."""

    name: str
    rate: float
    low: float
    high: float
    cpu_rate: float
    padding: float

    @classmethod
    def of(cls, name: str, passes: Sequence[Pass], padding: float) -> Figure:
        rates = [item.rate for item in passes]
        cpu = statistics.median(item.cpu_rate for item in passes)
        return cls(name, statistics.median(rates), min(rates), max(rates), cpu, padding)


# The contestants


async def pipeline(panel: Panel, interactions: Sequence[Interaction]) -> Pass:
    """From text to scores; windows side by side, as the scorer's are."""
    clock = Clock()
    windows = [interactions[at : at + WINDOW] for at in range(0, len(interactions), WINDOW)]
    for results in await asyncio.gather(*(panel.score(window) for window in windows)):
        for result in results:
            if isinstance(result, Exception):
                raise result
    return clock.stop(len(interactions))


# The measurement


def measure(seconds: float, advance: Callable[[str], None]) -> dict[str, Any]:
    """Everything, in about so many seconds after the export."""
    advance("making and exporting the model")
    pair, null = bert_pair(BUILD), null_pair(BUILD)
    everything = conversations(2048)
    encoded = InputEncoder(pair.judge).encode([(item, item.response) for item in everything])
    tokens = [item for item in encoded if isinstance(item, Tokens)]
    if len(tokens) != len(everything):
        raise RuntimeError("a conversation could not be tokenised")
    raw = Raw([pair.judge, pair.reward])
    panel = Panel.open([pair.judge], pair.reward)

    advance("warming up")
    asyncio.run(pipeline(panel, everything[:4]))
    best = better(raw, tokens[:24])
    pilot = tokens[:24]
    speed = raw.run(pilot, best([len(item) for item in pilot])).rate
    count = int(np.clip(speed * seconds * 0.5 / (4 * ROUNDS), 2 * WINDOW, 2048))

    lengths = [len(item) for item in tokens[:count]]
    batches = best(lengths)
    passes: dict[str, list[Pass]] = {"raw": [], "panel": []}
    for number in range(ROUNDS):
        advance(f"{count} conversations, round {number + 1} of {ROUNDS}")
        for contestant in ("raw", "panel", "panel", "raw"):
            passes[contestant].append(
                raw.run(tokens[:count], batches)
                if contestant == "raw"
                else asyncio.run(pipeline(panel, everything[:count]))
            )

    advance("batch policies")
    few = max(32, count // 2)
    lengths = [len(item) for item in tokens[:few]]
    single = Raw([pair.judge])
    by_policy: dict[str, list[Pass]] = {policy.__name__: [] for policy in BATCHINGS}
    for policies in (BATCHINGS, BATCHINGS[::-1]):
        for policy in policies:
            by_policy[policy.__name__].append(single.run(tokens[:few], policy(lengths)))

    advance("the host's own cost")
    host = asyncio.run(_host_cost(null, everything[:1024]))
    whole = [len(item) for item in tokens[:count]]
    contestants = [
        Figure.of("raw", passes["raw"], padding(whole, batches)),
        Figure.of("panel", passes["panel"], padding(whole, near_equal(whole))),
    ]
    return {
        "machine": environment(None),
        "conversations": count,
        "mean_tokens": float(np.mean(whole)),
        "ratio": contestants[1].rate / contestants[0].rate,
        "cpu_ratio": contestants[1].cpu_rate / contestants[0].cpu_rate,
        "raw_policy": best.__name__,
        "contestants": [asdict(figure) for figure in contestants],
        "policies": [
            asdict(
                Figure.of(
                    policy.__name__, by_policy[policy.__name__], padding(lengths, policy(lengths))
                )
            )
            for policy in BATCHINGS
        ],
        "host_cpu_microseconds": host,
    }


async def _host_cost(models: Pair, interactions: Sequence[Interaction]) -> float:
    """CPU time per conversation, in microseconds, with two models that compute nothing."""
    panel = Panel.open([models.judge], models.reward)
    await panel.warm_up()
    once = await pipeline(panel, interactions)
    await panel.aclose()
    return 1e6 / once.cpu_rate


def tables(figures: dict[str, Any]) -> Iterator[Table]:
    """What a person reads."""
    yield _table(
        f"panel: {figures['ratio']:.3f} of the raw loop, {figures['cpu_ratio']:.3f} by CPU time "
        f"({figures['conversations']} conversations, {figures['mean_tokens']:.0f} tokens each on "
        f"average, two models, {figures['machine']['cores']} threads; "
        f"the host's own cost {figures['host_cpu_microseconds']:.0f} µs)",
        figures["contestants"],
    )
    yield _table("batch policies, raw loop, one model", figures["policies"])


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("conversations/s", "range", "per CPU second", "padding"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["name"].replace("_", " "),
            f"{row['rate']:.1f}",
            f"{row['low']:.1f} to {row['high']:.1f}",
            f"{row['cpu_rate']:.1f}",
            f"{row['padding']:.1%}",
        )
    return table


def main() -> None:
    """Measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="time to measure in, about")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=ROUNDS + 5)
        figures = measure(
            arguments.seconds,
            lambda stage: bar.update(task, description=stage, advance=1),
        )
    for table in tables(figures):
        Console().print(table)
    if arguments.json is not None:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
