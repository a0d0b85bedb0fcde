"""The page of a replay's report: the same document, for people. No text of conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ares_stream.detection.intervals import wilson
from ares_stream.records.verdict import FailureClass
from ares_stream.reporting import charts
from ares_stream.reporting.page import Report, Section, Tile, table_section

COUPLED = FailureClass.COUPLED_FAILURE.value


def replay_page(document: Mapping[str, Any]) -> Report:
    """From a report's document; see ares_stream.reporting.page.render."""
    proof = document["mode"] == "proof"
    sections = [] if proof else _what_if(document["what_if"])
    sections += _differences(document, "differences", "What differs")
    sections += _differences(document, "tolerated", "Within the tolerance")
    sections += [_counts(document), _ranges(document), _models(document)]
    part = "" if document["of"] == 1 else f", part {document['index']} of {document['of']}"
    part += f", of {len(document['parts'])} parts" if document["parts"] else ""
    return Report(
        title="Replay: proof" if proof else "Replay: what if",
        subtitle=f"{document['records']:,} records{part}; "
        f"{document['since'] or 'the beginning'} to {document['until'] or 'the end'}",
        tiles=tuple(_tiles(document)),
        sections=tuple(sections),
        provenance={
            "read": document["read_digest"],
            "replayed": document["replayed_digest"],
            "settings": document["settings_digest"],
            **{name: str(value) for name, value in document["runtime"].items()},
            "began": document["started_at"],
            "ended": document["finished_at"],
        },
    )


def _tiles(document: Mapping[str, Any]) -> list[Tile]:
    counts, total = document["counts"], document["differences_total"]
    if document["mode"] == "proof":
        return [
            Tile("holds", "yes" if document["holds"] else "no", "", not document["holds"]),
            Tile("identical", f"{counts['identical']:,}", "byte for byte"),
            Tile("within tolerance", f"{counts['tolerated']:,}", f"{document['tolerance']:g}"),
            Tile("differ", f"{total:,}", "divergent, missing, unexpected", total > 0),
        ]
    tiles = [Tile("other class", f"{counts['changed']:,}", f"{counts['unchanged']:,} unchanged")]
    for lane in ("production", "probe"):
        cell = document["what_if"]["slices"].get(f"lane {lane}")
        if cell is not None:
            before, after = (_rate(cell[name]) for name in ("before", "after"))
            tiles.append(Tile(f"coupled, {lane}", after, f"{before} as recorded"))
    return tiles


def _rate(classes: Mapping[str, int]) -> str:
    total = sum(classes.values())
    rate = wilson(classes.get(COUPLED, 0), total)
    return f"{charts.percent(rate.value)} ({charts.span(rate)})"


def _what_if(found: Mapping[str, Any]) -> list[Section]:
    moves = [[move, f"{count:,}"] for move, count in found["moves"].items()]
    rows = [
        [name, f"{sum(cell['before'].values()):,}", f"{cell['changed']:,}",
         _rate(cell["before"]), _rate(cell["after"])]
        for name, cell in found["slices"].items()
    ]  # fmt: skip
    header = ["slice", "verdicts", "other class", "coupled, as recorded", "coupled, replayed"]
    return [
        table_section("From class to class", ["move", "verdicts"], moves),
        table_section("By slice", header, rows, "95 % intervals, rows taken for independent."),
    ]


def _differences(document: Mapping[str, Any], name: str, title: str) -> list[Section]:
    found: Sequence[Mapping[str, Any]] = document[name]
    if not found:
        return []
    rows = [
        [f"{item['topic']} {item['partition']}@{item['offset']}", item["agreement"], item["detail"]]
        for item in found[:200]
    ]
    note = f"{len(found):,} are in the JSON report." if len(found) > len(rows) else ""
    return [table_section(title, ["record", "how", "what"], rows, note)]


def _counts(document: Mapping[str, Any]) -> Section:
    rows = [[name, f"{count:,}"] for name, count in document["counts"].items()]
    for name in ("recorded_opinions", "expired", "outside_time"):
        rows.append([name, f"{document[name]:,}"])
    note = (
        "recorded_opinions: a constitution judge's, taken from the verdicts, since nobody can ask "
        "it again. expired: repair and review records that retention may have deleted. "
        "outside_time: records whose own clock is outside of the times asked for."
    )
    return table_section("Records", ["came out", "records"], rows, note)


def _ranges(document: Mapping[str, Any]) -> Section:
    rows = [
        [f"{item['topic']} {item['partition']}",
         ", ".join(f"{start:,} to {end:,}" for start, end in item["ranges"][:8]),
         f"{item['records']:,}", f"{item['faults']:,}", item["read_digest"][:16]]
        for item in document["partitions"]
    ]  # fmt: skip
    header = ["partition", "offsets", "records", "differ", "SHA-256 of what was read"]
    return table_section("What was read", header, rows)


def _models(document: Mapping[str, Any]) -> Section:
    rows = [[item[name] for name in ("kind", "name", "digest", "dtype")]
            for item in document["models"]]  # fmt: skip
    rows += [["detection policy", item["version"], item["digest"], ""]
             for item in document["policies"]]  # fmt: skip
    return table_section("Models and policies", ["kind", "name", "digest", "numbers"], rows)
