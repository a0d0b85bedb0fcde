"""What a person reads of the document: rows of text, with ratios to the best peer of the same
guarantee."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
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
        size = row["record_bytes"]
        text = "chats" if size is None else f"{size / 1000:g} KB"
        loads[f"{_cell(row)}, {row['records']:,} of {text}"].append(row)
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


def _cell(row: dict[str, Any]) -> str:
    processes = "" if row["processes"] == 1 else f", {row['processes']} processes"
    return f"{row['models']}, {row['partitions']} partitions{processes}"


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
