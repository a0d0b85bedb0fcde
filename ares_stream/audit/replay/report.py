"""What a replay tells: one document, from which the page, the exit code and traces follow. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from ares_stream.audit.replay.comparing import AGREEMENTS
from ares_stream.audit.replay.findings import SCHEMA
from ares_stream.audit.replay.run import Replayed
from ares_stream.audit.replay.spec import CHANGES, LISTED, BlockResult, Cell, ReplaySpec, combined
from ares_stream.records.base import instant


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Where and when it ran: figures compare within one of these."""

    started_at: datetime
    finished_at: datetime
    workers: int
    part: tuple[int, int]
    runtime: Mapping[str, str]
    """Versions, provider, processor."""


def report(spec: ReplaySpec, replayed: Replayed, ran: Circumstances) -> dict[str, Any]:
    """The document. `holds` of a proof says that nothing differs; a what-if has none."""
    results = replayed.results
    selection = replayed.selection
    names = AGREEMENTS if spec.mode == "proof" else CHANGES
    counts = dict.fromkeys(names, 0)
    for item in results:
        for name, count in item.counts.items():
            counts[name] += count
    faults = replayed.faults
    differences = [*replayed.strange, *(one for item in results for one in item.differences)]
    models = {model for item in results for model in item.models}
    partitions = list(_partitions(results))
    policies = {item.digest: item for item in spec.resources.policies}
    return {
        "schema": SCHEMA,
        "mode": spec.mode,
        "holds": not faults if spec.mode == "proof" else None,
        "index": ran.part[0],
        "of": ran.part[1],
        "parts": [],
        "source": spec.source if isinstance(spec.source, str) else "topics",
        "since": _time(selection.since_ms),
        "until": _time(selection.until_ms),
        "chosen_offsets": None
        if selection.only is None
        else sum(len(kept) for kept in selection.only.values()),
        "places": [list(place) for place in replayed.places],
        "partitions": partitions,
        "outputs": [item.model_dump() for item in selection.outputs],
        "records": sum(item.records for item in results),
        "read_digest": over(partitions, "read_digest"),
        "replayed_digest": over(partitions, "replayed_digest"),
        "counts": counts,
        "recorded_opinions": sum(item.recorded_opinions for item in results),
        "expired": sum(item.expired for item in results),
        "outside_time": sum(item.outside for item in results),
        "differences_total": faults if spec.mode == "proof" else counts["changed"],
        "strange": len(replayed.strange),
        "differences": listed(differences),
        "tolerated": listed(one for item in results for one in item.tolerated),
        "what_if": None if spec.what_if is None else _what_if(spec, results),
        "tolerance": spec.tolerance.share,
        "models": [
            {"kind": kind, "name": name, "digest": digest, "dtype": dtype}
            for kind, name, digest, dtype in sorted(models)
        ],
        "policies": [
            {"digest": digest, **policies[digest].model_dump(mode="json")}
            for digest in sorted({policy for item in results for policy in item.policies})
        ],
        "settings_digest": spec.digest,
        "runtime": {**ran.runtime, "dtype": ", ".join(sorted({dtype for *_, dtype in models}))},
        "workers": ran.workers,
        "started_at": ran.started_at.isoformat(timespec="seconds"),
        "finished_at": ran.finished_at.isoformat(timespec="seconds"),
        "cpu_seconds": round(sum(item.seconds for item in results), 3),
    }


def over(partitions: Sequence[Mapping[str, Any]], name: str) -> str:
    """One digest of those of all partitions, in the order of topic and partition: the same for a
    replay in parts."""
    hasher = hashlib.sha256()
    for item in sorted(partitions, key=lambda item: (item["topic"], item["partition"])):
        line = f"{item['topic']} {item['partition']} {item['records']} {item[name]}\n"
        hasher.update(line.encode())
    return hasher.hexdigest()


def listed(differences: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first by topic, partition and offset."""
    return sorted(differences, key=place_of)[:LISTED]


def place_of(item: Mapping[str, Any]) -> tuple[str, int, int]:
    """Of a difference."""
    return item["topic"], item["partition"], item["offset"]


def _time(at_ms: int | None) -> str | None:
    return None if at_ms is None else instant(at_ms).isoformat()


def _partitions(results: Sequence[BlockResult]) -> Iterator[dict[str, Any]]:
    places: dict[tuple[str, int], list[BlockResult]] = {}
    for item in results:
        places.setdefault((item.job.topic, item.job.partition), []).append(item)
    for (topic, partition), items in sorted(places.items()):
        ranges: list[list[int]] = []
        for item in sorted(items, key=lambda item: item.job.start):
            if ranges and ranges[-1][1] == item.job.start:
                ranges[-1][1] = item.job.end
            else:
                ranges.append([item.job.start, item.job.end])
        yield {
            "topic": topic,
            "partition": partition,
            "ranges": ranges,
            "records": sum(item.records for item in items),
            "faults": sum(item.faults for item in items),
            "read_digest": combined(items, "read"),
            "replayed_digest": combined(items, "replayed"),
        }


def _what_if(spec: ReplaySpec, results: Sequence[BlockResult]) -> dict[str, Any]:
    cells: dict[str, Cell] = {}
    moves: dict[str, int] = {}
    for item in results:
        for name, cell in item.cells.items():
            cells.setdefault(name, Cell()).add(cell)
        for move, count in item.moves.items():
            moves[move] = moves.get(move, 0) + count
    what_if = spec.what_if
    return {
        "judges": None if what_if is None or what_if.judges is None else dict(what_if.judges),
        "reward": None if what_if is None or what_if.reward is None else dict([what_if.reward]),
        "policy": None
        if what_if is None or what_if.policy is None
        else {"digest": what_if.policy.digest, **what_if.policy.model_dump(mode="json")},
        "moves": dict(sorted(moves.items())),
        "slices": {name: asdict(cells[name]) for name in sorted(cells)},
    }


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """For people at a terminal."""
    counts = ", ".join(f"{count:,} {name}" for name, count in document["counts"].items() if count)
    yield f"{document['records']:,} records: {counts or 'nothing to replay'}"
    if document["recorded_opinions"]:
        yield (
            f"{document['recorded_opinions']:,} opinions of a constitution judge are as recorded: "
            "nobody can ask it again"
        )
    if document["expired"]:
        yield f"{document['expired']:,} repair and review records may be deleted by retention"
    for item in document["differences"][:20]:
        yield (
            f"  {item['topic']} {item['partition']}@{item['offset']}: {item['agreement']}: "
            f"{item['detail']}"
        )
    more = document["differences_total"] - 20
    if more > 0:
        yield f"  {more:,} more"
    yield f"read {document['read_digest']}"
    yield f"replayed {document['replayed_digest']}"
