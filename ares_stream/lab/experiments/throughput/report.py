"""What a person reads of the document: rows of text, with ratios to the best peer of the same
guarantee."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ares_stream import __version__
from ares_stream.lab.experiments.throughput.contestants import OURS

_VERSIONS: Final = """
import importlib.metadata as known, sys
for name in sys.argv[1:]:
    try:
        print(name, known.version(name))
    except known.PackageNotFoundError:
        pass
"""
_LIBRARIES: Final = ("onnxruntime", "tokenizers", "aiokafka", "confluent-kafka")
_PEERS: Final = ("faststream", "quixstreams", "bytewax", "confluent-kafka", "onnxruntime")


def environment(peers_python: Path | None) -> dict[str, Any]:
    """The machine, and the versions of both environments."""
    return {
        "ares_stream": __version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "libraries": _versions(Path(sys.executable), _LIBRARIES),
        "peers": {} if peers_python is None else _versions(peers_python, _PEERS),
    }


def _versions(python: Path, names: tuple[str, ...]) -> dict[str, str]:
    done = subprocess.run(
        [str(python), "-c", _VERSIONS, *names], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The document's figures."""
    for row in document["starts"]:
        ready = "" if row["ready_seconds"] is None else f"ready {row['ready_seconds']:.1f} s, "
        yield (
            f"{_cell(row)}: {row['contestant']:10} {ready}first verdicts "
            f"{row['first_verdicts_seconds']:.1f} s, {row['idle_mebibytes']} MiB"
        )
    loads: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in document["throughput"]:
        loads[_load(row)].append(row)
    for load, rows in loads.items():
        yield load
        for row in rows:
            cpu, rate = row["cpu_microseconds"], row["records_per_second"]
            yield (
                f"  {row['contestant']:10} {row['guarantee']:13} {cpu['median']:>9,.0f} µs CPU "
                f"({cpu['low']:,.0f} to {cpu['high']:,.0f})  {rate['median']:>7,.0f}/s "
                f"({rate['low']:,.0f} to {rate['high']:,.0f})  {_ratio(row, rows)}"
            )
    for row in document["latency"]:
        ms = row["milliseconds"]
        yield (
            f"{_cell(row)}: {row['contestant']:10} at {row['share_of_capacity']:.0%} "
            f"({row['records_per_second']:g}/s): {ms['median']} ms, p90 {ms['p90']}, "
            f"p99 {ms['p99']}"
        )
    for row in document["scan"]:
        yield (
            f"{row['models']}, {row['lines']:,} lines: {row['scanner']:10} "
            f"{row['seconds']['median']} s, {row['cpu_seconds']['median']} s CPU, "
            f"{row['peak_mebibytes']} MiB at most"
        )


def tables(document: dict[str, Any]) -> str:
    """The document's figures as tables of Markdown, in the order of docs/performance.md."""
    loads = [
        (
            _load(row),
            row["contestant"],
            row["guarantee"],
            _range(row["cpu_microseconds"]),
            _range(row["records_per_second"]),
            _share(row, document["throughput"]),
        )
        for row in document["throughput"]
    ]
    starts = [
        (
            f"{_cell(row)}: {row['contestant']}",
            "" if row["ready_seconds"] is None else f"{row['ready_seconds']:.1f}",
            f"{row['first_verdicts_seconds']:.1f}",
            row["idle_mebibytes"],
        )
        for row in document["starts"]
    ]
    steady = [
        (
            f"{_cell(row)}: {row['contestant']}",
            f"{row['share_of_capacity']:.0%}",
            f"{row['records_per_second']:g}",
            *row["milliseconds"].values(),
        )
        for row in document["latency"]
    ]
    scans = [
        (
            f"{row['models']} models, {row['lines']:,} lines",
            row["scanner"],
            row["cpu_seconds"]["median"],
            row["seconds"]["median"],
            row["peak_mebibytes"],
        )
        for row in document["scan"]
    ]
    shown = (
        (LOADS, loads),
        (STARTS, starts),
        (STEADY, steady),
        (SCANS, scans),
    )
    return "\n".join(_table(head, rows) for head, rows in shown if rows)


LOADS: Final = (
    "load",
    "contestant",
    "guarantee",
    "CPU µs a record",
    "records/s",
    "ares ÷ it, by CPU time",
)
STARTS: Final = ("start", "ready, s", "first verdicts, s", "MiB after 64 records")
STEADY: Final = ("steady load", "of capacity", "records/s", "median, ms", "p90", "p99")
SCANS: Final = ("a file", "scanner", "CPU s", "s", "MiB at most")


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; what a row shares with the one above it in its first column is said once."""
    written = [head, ["---"] * len(head)]
    above: object = None
    for first, *others in rows:
        written.append(["" if first == above else str(first), *map(str, others)])
        above = first
    return "".join(f"| {' | '.join(row)} |\n" for row in written)


def _load(row: dict[str, Any]) -> str:
    return f"{_cell(row)}, {row['records']:,} of {_size(row)}"


def _size(row: dict[str, Any]) -> str:
    size = row["record_bytes"]
    return "chats" if size is None else f"{size / 1000:g} KB"


def _range(spread: dict[str, float]) -> str:
    median, low, high = (f"{spread[name]:,.0f}" for name in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _share(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> str:
    """Our CPU time as a share of this contestant's on the same load."""
    if row["contestant"] == OURS:
        return ""
    own = next(
        item["cpu_microseconds"]["median"]
        for item in rows
        if item["contestant"] == OURS and _load(item) == _load(row)
    )
    return f"{own / row['cpu_microseconds']['median']:.2f}"


def _cell(row: dict[str, Any]) -> str:
    processes = "" if row["processes"] == 1 else f", {row['processes']} processes"
    count = row["partitions"]
    return f"{row['models']} models, {count} partition{'' if count == 1 else 's'}{processes}"


def _ratio(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Of ours: CPU time beside the cheapest peer of the same guarantee, and the raw loop's."""
    if row["contestant"] != OURS:
        return ""
    own = row["cpu_microseconds"]["median"]
    peers = [
        item["cpu_microseconds"]["median"]
        for item in rows
        if item["guarantee"] == row["guarantee"] and item is not row
    ]
    text = f"{own / min(peers):.2f} x the best peer" if peers else ""
    for item in rows:
        if item["guarantee"] == "none":
            text += f", raw / ours {item['cpu_microseconds']['median'] / own:.3f}"
    return text
