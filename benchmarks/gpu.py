"""What a GPU scores: alone, in the panel, and from topic to visible verdict.

    python -m benchmarks.gpu [--sizes 20M,110M] [--json FILE]

BERTs with random weights play judge and reward model both, as in `make bench`; each conversation
runs through two models. In float32, and with TF32 (10 bits of mantissa in products), which is what
ONNX Runtime does unless it is told otherwise. The raw loop gets inputs that are tokenised before
its clock starts. The stream is a backlog on a broker of its own, scored by `ares scorer` processes
that share the GPU. Needs the extras gpu, repair, broker and bench.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ares_stream.lab.experiments.throughput.clients import Record, Sender, Visible
from ares_stream.lab.experiments.throughput.contestants import OURS, running
from ares_stream.lab.experiments.throughput.models import (
    SHAPES,
    Pair,
    Size,
    bert_pair,
    conversations,
    null_pair,
)
from ares_stream.lab.experiments.throughput.raw import Clock, Pass, Raw
from ares_stream.lab.experiments.throughput.report import environment
from ares_stream.lab.experiments.throughput.run import TOPICS
from ares_stream.processes.broker import EmbeddedBroker
from ares_stream.records.topics import PRODUCTION, VERDICTS, specs, topic_name
from ares_stream.scoring.batching import BatchPolicy, plan
from ares_stream.scoring.panel import Panel, ScoringConfig
from ares_stream.scoring.tokenising import InputEncoder, Tokens
from ares_stream.streaming.admin import create_topics
from ares_stream.streaming.connection import KafkaConnection

BUILD: Final = Path("build/bench/gpu")
COUNT: Final[Mapping[Size, int]] = {"20M": 4096, "110M": 1024}
"""Conversations of a pass; a backlog is three times as long."""
ROUNDS: Final = 3
BUDGETS: Final = (8_192, 32_768, 131_072)
"""Tokens of a run, padding included."""
WINDOWS: Final = ((128, 2), (512, 2))
"""Conversations handled together, and windows at once."""
STREAMS: Final = ((1, 128), (1, 512), (3, 512))
"""Processes, and `processing.window_records`."""
WARM_UP: Final = 1024


def raw(pair: Pair, tokens: Sequence[Tokens], tf32: bool) -> dict[str, dict[str, float]]:
    """Conversations a second through both models, by the tokens of a run."""
    loop = Raw([pair.judge, pair.reward], provider="cuda", tf32=tf32)
    lengths = [len(item) for item in tokens]
    found = {}
    for budget in BUDGETS:
        batches = plan(lengths, BatchPolicy(budget, 4096, 0.5))
        loop.run(tokens, batches, 2)
        found[f"{budget:,} tokens"] = figures([loop.run(tokens, batches, 2) for _ in range(ROUNDS)])
    return found


def panel(pair: Pair, count: int, tf32: bool) -> dict[str, dict[str, float]]:
    """The same from text to scores, inside one process."""
    scored = Panel.open([pair.judge], pair.reward, ScoringConfig("cuda", 0, tf32))
    everything = conversations(count)

    async def once(window: int, together: int) -> Pass:
        turns = asyncio.Semaphore(together)

        async def score(at: int) -> None:
            async with turns:
                for result in await scored.score(everything[at : at + window]):
                    if isinstance(result, Exception):
                        raise result

        clock = Clock()
        await asyncio.gather(*(score(at) for at in range(0, count, window)))
        return clock.stop(count)

    async def all_windows() -> dict[str, dict[str, float]]:
        found = {}
        for window, together in WINDOWS:
            await once(window, together)
            passes = [await once(window, together) for _ in range(ROUNDS)]
            found[f"windows of {window}"] = figures(passes)
        await scored.aclose()
        return found

    return asyncio.run(all_windows())


def stream(pair: Pair, count: int, settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """From topic to visible verdict, for each of STREAMS."""
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as scratch:
        for number, (processes, window) in enumerate(STREAMS):
            prefix = f"gpu{number}.{OURS}."
            wanted = {topic_name(prefix, topic) for topic in TOPICS}
            every = specs(prefix, partitions=12, replication=1)
            made = [item for item in every if item.name in wanted]
            asyncio.run(create_topics(KafkaConnection(bootstrap=broker.bootstrap), made))
            sender = Sender(broker.bootstrap, topic_name(prefix, PRODUCTION))
            visible = Visible(broker.bootstrap, topic_name(prefix, VERDICTS))
            own = {**settings, "processing": {"window_records": window}}
            with running(
                OURS, prefix, pair, broker.bootstrap, Path(scratch),
                processes=processes, scorer=own,
            ) as scorer:  # fmt: skip
                scorer.ready_seconds()
                sender.send(backlog(WARM_UP, 0))
                visible.wait(WARM_UP)
                costs, rates = [], []
                for turn in range(2):
                    records = backlog(3 * count, 1 + turn)
                    before = scorer.usage()
                    sender.send(records)
                    visible.wait(len(records))
                    after = scorer.usage()
                    rates.append(len(records) / (after.wall - before.wall))
                    costs.append(1e6 * (after.cpu - before.cpu) / len(records))
                yield (
                    f"{processes} processes, windows of {window}",
                    {
                        "rate": statistics.median(rates),
                        "low": min(rates),
                        "high": max(rates),
                        "cpu_microseconds": statistics.median(costs),
                        "mebibytes": scorer.mebibytes(),
                    },
                )
            visible.close()


def backlog(count: int, turn: int) -> list[Record]:
    """Records under ids of their own."""
    items = conversations(min(count, 2048))
    values = [item.encode() for item in items]
    found: list[Record] = []
    for number in range(count):
        key = f"{turn:02d}{number:06d}".encode()
        place = number % len(items)
        found.append((key, values[place].replace(items[place].id.encode(), key, 1)))
    return found


def figures(passes: Sequence[Pass]) -> dict[str, float]:
    """Median and range."""
    rates = [item.rate for item in passes]
    return {
        "rate": statistics.median(rates),
        "low": min(rates),
        "high": max(rates),
        "cpu_microseconds": 1e6 / statistics.median(item.cpu_rate for item in passes),
    }


def main() -> None:
    """Measure, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="20M,110M", help="of the models, by comma")
    parser.add_argument("--no-stream", action="store_true", help="without a broker")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    sizes: list[Size] = [size for size in SHAPES if size in arguments.sizes.split(",")]
    document: dict[str, Any] = {"machine": environment(None), "figures": {}}
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("making the models", total=None)
        for name, rows in measure(sizes, streamed=not arguments.no_stream):
            bar.update(task, description=f"after {name}")
            document["figures"][name] = rows
            if arguments.json is not None:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    table = Table(title="two models a conversation", title_justify="left")
    for column in ("", "conversations/s", "range", "CPU µs each"):
        table.add_column(column, justify="right" if column else "left")
    for name, rows in document["figures"].items():
        for row, values in rows.items():
            table.add_row(
                f"{name}: {row}",
                f"{values['rate']:,.0f}",
                f"{values['low']:,.0f} to {values['high']:,.0f}",
                f"{values['cpu_microseconds']:,.0f}",
            )
    Console().print(table)


def measure(sizes: Sequence[Size], *, streamed: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's name and rows, as it ends."""
    for size in sizes:
        pair = bert_pair(BUILD / size, size)
        asked = [(item, item.response) for item in conversations(COUNT[size])]
        encoded = InputEncoder(pair.judge).encode(asked)
        tokens = [item for item in encoded if isinstance(item, Tokens)]
        for tf32 in (False, True):
            name = f"{size}, {'TF32' if tf32 else 'float32'}"
            yield f"{name}, raw loop", raw(pair, tokens, tf32)
            yield f"{name}, panel", panel(pair, len(tokens), tf32)
            if streamed:
                settings = {"provider": "cuda", "tf32": tf32}
                yield f"{name}, stream", dict(stream(pair, len(tokens), settings))
    if streamed:
        yield "no models, stream", dict(stream(null_pair(BUILD / "null"), COUNT["20M"], {}))


if __name__ == "__main__":
    main()
