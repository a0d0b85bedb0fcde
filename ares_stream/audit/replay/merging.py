"""The reports of all parts of a replay as one, with the digests of an unsplit one. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from ares_stream.audit.replay.findings import OLDER, SCHEMA
from ares_stream.audit.replay.report import listed, over, place_of
from ares_stream.audit.replay.spec import Cell
from ares_stream.errors import DecodeError, InputError
from ares_stream.files import validated
from ares_stream.files.rows import parse_json

_EQUAL: Final = (
    "mode", "of", "source", "since", "until", "chosen_offsets", "places", "tolerance",
    "settings_digest",
)  # fmt: skip
"""What parts of one replay share."""
_SUMS: Final = ("records", "recorded_opinions", "expired", "outside_time", "workers")

Document = Mapping[str, Any]


class _Difference(BaseModel):
    topic: str
    partition: int
    offset: int


class _Range(BaseModel):
    topic: str
    partition: int
    start: int
    end: int


class _Partition(BaseModel):
    topic: str
    partition: int
    records: int
    read_digest: str
    replayed_digest: str


class _Cell(BaseModel):
    model_config = ConfigDict(extra="forbid")
    before: dict[str, int]
    after: dict[str, int]
    changed: int


class _WhatIf(BaseModel):
    moves: dict[str, int]
    slices: dict[str, _Cell]


class _Digested(BaseModel):
    digest: str


class _Report(BaseModel):
    """What is merged of a part's report."""

    mode: Literal["proof", "what-if"]
    holds: bool | None
    index: int = Field(ge=0)
    of: int = Field(ge=1)
    parts: list[Any] = Field(max_length=0)
    source: str
    since: str | None
    until: str | None
    chosen_offsets: int | None
    places: list[tuple[str, int]]
    partitions: list[_Partition]
    outputs: list[_Range]
    records: int
    counts: dict[str, int]
    recorded_opinions: int
    expired: int
    outside_time: int
    differences_total: int
    strange: int
    differences: list[_Difference]
    tolerated: list[_Difference]
    what_if: _WhatIf | None
    tolerance: float
    models: list[_Digested]
    policies: list[_Digested]
    settings_digest: str
    runtime: dict[str, str]
    workers: int
    started_at: str
    finished_at: str
    cpu_seconds: float


def parse(raw: bytes, name: str) -> Document:
    """The report of a part. Raises InputError, which names file and field."""
    try:
        found = parse_json(raw)
    except DecodeError:
        found = None
    if isinstance(found, dict) and found.get("schema") == OLDER:
        raise InputError(f"{name}: was made by an older version, which kept too little to merge")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{name}: no report of `ares replay` ({SCHEMA})")
    if found.get("parts"):
        raise InputError(f"{name}: is a merged report already; name its parts")
    validated(name, found, _Report, error=InputError)
    return found


def merged(parts: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """One report of the parts, each with the name of its file. Its counts, partitions, differences
    and digests are those of a replay that was not split and read the same ranges.

    Raises InputError for a part that is missing, is there twice, or is of another replay.
    """
    found = [(name, parse(raw, name)) for name, raw in parts]
    _check(found)
    reports = sorted((report for _, report in found), key=lambda report: int(report["index"]))
    sums = {report["index"]: hashlib.sha256(raw).hexdigest()
            for (_, report), (_, raw) in zip(found, parts, strict=True)}  # fmt: skip
    first = reports[0]
    partitions = sorted(
        (item for report in reports for item in report["partitions"]),
        key=lambda item: (item["topic"], item["partition"]),
    )
    # Every part reads all outputs, and finds the same ones that are none.
    outputs = {item["topic"] for report in reports for item in report["outputs"]}
    strange = {
        place_of(item): item
        for report in reports
        for item in report["differences"]
        if item["topic"] in outputs
    }
    others = [
        item for report in reports for item in report["differences"] if item["topic"] not in outputs
    ]
    many = max(len(strange), *(report["strange"] for report in reports))
    total = sum(report["differences_total"] for report in reports)
    if first["mode"] == "proof":
        total += many - sum(report["strange"] for report in reports)
    what_ifs = [report["what_if"] for report in reports if report["what_if"] is not None]
    return {
        **first,
        "index": 0,
        "of": 1,
        "parts": [{"index": index, "sha256": sums[index]} for index in sorted(sums)],
        "holds": None if first["holds"] is None else all(report["holds"] for report in reports),
        "partitions": partitions,
        "outputs": list(_covering(reports)),
        **{name: sum(report[name] for report in reports) for name in _SUMS},
        "read_digest": over(partitions, "read_digest"),
        "replayed_digest": over(partitions, "replayed_digest"),
        "counts": _added([report["counts"] for report in reports]),
        "differences_total": total,
        "strange": many,
        "differences": listed([*strange.values(), *others]),
        "tolerated": listed(item for report in reports for item in report["tolerated"]),
        "what_if": _what_if(what_ifs),
        "models": _union(reports, "models"),
        "policies": _union(reports, "policies"),
        "runtime": _runtime(reports),
        "started_at": min(report["started_at"] for report in reports),
        "finished_at": max(report["finished_at"] for report in reports),
        "cpu_seconds": round(sum(report["cpu_seconds"] for report in reports), 3),
    }


def _check(found: Sequence[tuple[str, Document]]) -> None:
    if not found:
        raise InputError("no part is named")
    (first_name, first), *others = found
    for name, report in found:
        _check_sums(name, report)
    for name, report in others:
        for field in _EQUAL:
            if report[field] != first[field]:
                raise InputError(f"{name}: is of another replay than {first_name}: {field} differs")
    by_index: dict[int, str] = {}
    for name, report in found:
        index = report["index"]
        if index in by_index:
            raise InputError(f"{name}: part {index} is there twice, also as {by_index[index]}")
        by_index[index] = name
    of = first["of"]
    missing = [str(index) for index in range(of) if index not in by_index]
    if missing:
        raise InputError(f"of {of} parts these are missing: {', '.join(missing[:20])}")
    places = [tuple(place) for place in first["places"]]
    for name, report in found:
        mine = set(places[report["index"] :: of])
        for item in report["partitions"]:
            if (item["topic"], item["partition"]) not in mine:
                raise InputError(
                    f"{name}: {item['topic']} {item['partition']} is not of part {report['index']}"
                )


def _check_sums(name: str, report: Document) -> None:
    """Raises InputError for a part whose figures are not those of its own partitions."""
    partitions = report["partitions"]
    expected = {
        "records": sum(item["records"] for item in partitions),
        "read_digest": over(partitions, "read_digest"),
        "replayed_digest": over(partitions, "replayed_digest"),
        "holds": None if report["mode"] == "what-if" else not report["differences_total"],
    }
    for field, value in expected.items():
        if report[field] != value:
            raise InputError(
                f"{name}: {field}: is not what its other figures give; it was changed or cut"
            )


def _covering(reports: Sequence[Document]) -> Iterator[dict[str, Any]]:
    """The outputs that were read: parts that begin later may find more."""
    places: dict[tuple[str, int], list[Document]] = {}
    for report in reports:
        for item in report["outputs"]:
            places.setdefault((item["topic"], item["partition"]), []).append(item)
    for items in places.values():
        start = min(item["start"] for item in items)
        yield {**items[0], "start": start, "end": max(item["end"] for item in items)}


def _added(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for item in counts for name in item)
    return {name: sum(item.get(name, 0) for item in counts) for name in names}


def _what_if(found: Sequence[Document]) -> dict[str, Any] | None:
    if not found:
        return None
    slices: dict[str, Cell] = {}
    for item in found:
        for name, cell in item["slices"].items():
            slices.setdefault(name, Cell()).add(Cell(**cell))
    moves = _added([item["moves"] for item in found])
    return {
        **found[0],
        "moves": dict(sorted(moves.items())),
        "slices": {name: asdict(slices[name]) for name in sorted(slices)},
    }


def _union(reports: Sequence[Document], name: str) -> list[Any]:
    found = {json.dumps(item, sort_keys=True): item for report in reports for item in report[name]}
    return sorted(found.values(), key=lambda item: (item.get("kind", ""), item["digest"]))


def _runtime(reports: Sequence[Document]) -> dict[str, str]:
    """Of parts that ran on unlike machines every one of each."""
    names = dict.fromkeys(name for report in reports for name in report["runtime"])
    return {
        name: ", ".join(dict.fromkeys(report["runtime"].get(name, "") for report in reports))
        for name in names
    }
