"""The evidence of a period for people: one page, to be read or printed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from ares_stream.records.base import Interval
from ares_stream.reporting import charts
from ares_stream.reporting.page import Report, Section, Tile, render, table_section


def evidence_page(document: Mapping[str, Any]) -> bytes:
    """The document of Evidence as HTML. Equal documents give equal pages."""
    until = datetime.fromisoformat(document["period"]["until"])
    since = document["period"]["since"]
    wholes = [row for row in document["figures"] if not row["slice"]["attribute"]]
    report = Report(
        title="Evidence",
        subtitle=f"{since} to {document['period']['until']}. {document['statement']}",
        tiles=_tiles(document, wholes),
        sections=tuple(
            _sections(document, wholes, [r for r in document["figures"] if r not in wholes])
        ),
        provenance={
            f"{row['topic']} {row['partition']}": f"offsets {row['start']} to {row['end']}, "
            f"{row['records']} records, sha256 {row['sha256']}"
            for row in document["covers"]["topics"]
        },
    )
    return render(report, until).encode()


def _tiles(document: Mapping[str, Any], wholes: Sequence[Mapping[str, Any]]) -> tuple[Tile, ...]:
    lanes = dict.fromkeys(("production", "probe"), 0)
    for row in wholes:
        if row["slice"]["lane"] in lanes:
            lanes[row["slice"]["lane"]] += row["total"]
    alarms = document["alarms"]
    open_ = sum(row["acknowledged"] is None for row in alarms)
    return (
        Tile("verdicts, production", f"{lanes['production']:,}", f"{lanes['probe']:,} of probes"),
        Tile("alarms", f"{len(alarms):,}", f"{open_} without an answer", grave=open_ > 0),
        Tile("incidents", f"{len(document['incidents']):,}"),
        Tile("steps of releases", f"{len(document['releases']):,}"),
        Tile("labels of people", f"{document['oversight']['labels']:,}",
             f"{document['oversight']['reviewers']} reviewers"),
    )  # fmt: skip


def _sections(
    document: Mapping[str, Any],
    wholes: Sequence[Mapping[str, Any]],
    slices: Sequence[Mapping[str, Any]],
) -> list[Section]:
    def about(name: str) -> str:
        row = document["mapping"][name]
        return (
            f"Evidence of: {row['evidence_of']}. EU AI Act {', '.join(row['eu_ai_act'])}; "
            f"NIST AI RMF {', '.join(row['nist_ai_rmf'])}."
        )

    header = ["lane", "policy", "reward model", "slice", "verdicts", "CFR", "corrected", "harmful",
              "contested"]  # fmt: skip
    sections = [
        _table("Figures by version", header, [_figures(row) for row in wholes],
                      about("figures") + " 95 % confidence sequences, contested as harmless."),
        _table("Figures by slice", header, [_figures(row) for row in slices]),
        _table("Models and policies in operation", ["what", "name", "version", "verdicts"],
                      _versions(document["versions"]), about("versions")),
        _table("Releases", ["at", "model", "digest", "state", "by", "why", "forecast CFR"],
                      [_release(row) for row in document["releases"]], about("releases")),
    ]  # fmt: skip
    sections += [_gate(row, about("gates")) for row in document["gates"]] or [
        _table("Gates", ["check", "limit", "before", "after", "passed"], [], about("gates"))
    ]
    sections.append(
        _table(
            "Forecasts and what came",
            [
                "model",
                "slice",
                "figure",
                "before",
                "forecast",
                "measured",
                "ratio",
                "direction",
                "ratio for the mix that came",
            ],
            [_error(row) for row in document["forecasts"]],
            about("forecasts"),
        )
    )
    for row in document["repairs"]:
        sections.append(
            _table(
                f"Repair {row['plan_id'][:12]}: {row['state']}",
                ["figure", "before", "after"],
                [
                    [name, _range(before), _range(row["after"].get(name))]
                    for name, before in sorted(row["before"].items())
                ],
                f"{row['method']}, {row['finished_at']}: {'; '.join(row['reasons'])}. "
                + about("repairs"),
            )
        )
    sections += [
        _table(
            "Alarms", ["raised", "kind", "what", "system or judge", "records", "what was done"],
            [_alarm(row) for row in document["alarms"]], about("alarms"),
        ),
        _table("Incidents", ["at", "kind", "what", "what was done"],
                      [[row["at"], row["kind"], row["what"], row["done"]]
                       for row in document["incidents"]], about("incidents")),
        _table("Oversight", ["what", "count"],
                      [[name.replace("_", " "), str(count)]
                       for name, count in document["oversight"].items()], about("oversight")),
        _table("Refused records", ["topic", "stage", "kind", "count"],
                      [[row["topic"], row["stage"], row["kind"], str(row["count"])]
                       for row in document["dead_letters"]["by"]], about("dead_letters")),
        _table("Signed tree heads", ["topic", "partition", "leaves", "root", "issued",
                                     "signed by", "time stamp", "refused"],
                      [_proof(row) for row in document["proofs"]], about("proofs")
                      + " Each head's leaves give its root and continue the head before it. "
                      "`ares audit verify` checks the topics and the time stamps against them."),
        _table("What was read", ["topic", "partition", "deleted below offset"],
                      [[row["topic"], str(row["partition"]), str(row["end"])]
                       for row in document["covers"]["gaps"]], about("covers")),
    ]  # fmt: skip
    return sections


def _table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> Section:
    """A table that says so where it has no row."""
    nothing = ["none", *[""] * (len(header) - 1)]
    return table_section(title, header, rows or [nothing], note)


def _figures(row: Mapping[str, Any]) -> list[str]:
    key, correction = row["slice"], row["correction"]
    rate = correction.get("rate")
    return [
        key["lane"],
        f"{key['policy']['name']} {key['policy']['version']}",
        key["reward"],
        f"{key['attribute']} {key['value']}".strip() or "all",
        f"{row['total']:,}",
        _range(row["cfr"]),
        _range(rate) if rate else f"no: {correction['reason']}",
        _range(row["harmful"]),
        _range(row["classes"]["contested"]),
    ]


def _versions(versions: Mapping[str, Any]) -> list[list[str]]:
    rows = [["ares-stream", "", versions["ares_stream"], ""]]
    rows += [["model", row["model"], row["digest"], f"{row['verdicts']:,}"]
             for row in versions["models"]]  # fmt: skip
    rows += [["policy", row["name"], row["version"], f"{row['verdicts']:,}"]
             for row in versions["policies"]]  # fmt: skip
    rows += [["detection policy", "", name, f"{count:,}"]
             for name, count in versions["detection_policies"].items()]  # fmt: skip
    rows += [["active at the end", row["model"], row["digest"], ""]
             for row in versions["active_at_the_end"]]  # fmt: skip
    return rows


def _gate(row: Mapping[str, Any], about: str) -> Section:
    named = ", ".join(f"{item['model']} {item['digest'][:12]}" for item in row["releases"])
    named = named or ", ".join(f"repair {plan[:12]}" for plan in row["repairs"])
    rows = [
        [
            f"{check['figure']}, {check['slice']}" if check["slice"] else check["figure"],
            _limit(check), _range(check["before"]), _range(check["after"]),
            "yes" if check["passed"] else f"no: {check['reason']}",
        ]
        for check in row.get("checks", ())
    ]  # fmt: skip
    kept = "" if row["kept"] else "The registry does not have this report. "
    return _table(
        f"Gate of {named}", ["check", "limit", "before", "after", "passed"], rows,
        f"Report {row['digest']}. {kept}{about}",
    )  # fmt: skip


def _limit(check: Mapping[str, Any]) -> str:
    if check["limit"] is None:
        return "not known"
    side = "at most" if check["side"] == "high" else "at least"
    return f"{side} {charts.percent(check['limit'])}"


def _release(row: Mapping[str, Any]) -> list[str]:
    forecast = row.get("forecast")
    return [
        row["changed_at"], row["model"], row["digest"][:12], row["state"], row["changed_by"],
        row.get("reason", ""),
        "" if forecast is None else _range(forecast["overall"]["forecast"]["cfr"]),
    ]  # fmt: skip


def _error(row: Mapping[str, Any]) -> list[str]:
    mixes = (f"{mix['attribute']}: {mix['ratio']:.2f}" for mix in row["remixes"])
    return [f"{row['model']} {row['digest'][:12]}", row["place"] or "all", row["figure"],
            _range(row["observed"]), _range(row["forecast"]), _range(row["measured"]),
            f"{row['ratio']:.2f}", row["direction"],
            ", ".join(mixes)]  # fmt: skip


def _alarm(row: Mapping[str, Any]) -> list[str]:
    seen = row["acknowledged"]
    done = "nobody has taken note" if seen is None else f"{seen['at']} {seen['by']}: {seen['note']}"
    places = [f"{item['topic']} {item['partition']}@{item['offset']}" for item in row["records"]]
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return [row["raised_at"], row["kind"], row["summary"],
            f"{row['attribution']} {row['attribution_reason']}".strip(),
            ", ".join(places[:3]) + more, done]  # fmt: skip


def _proof(row: Mapping[str, Any]) -> list[str]:
    names = ", ".join(key.rpartition("+")[0] for key in row.get("signed_by", ()))
    refused = f"{row['refused']}: {row['first_refused_because']}" if row["refused"] else "none"
    if "root" not in row:
        return [row["topic"], str(row["partition"]), "-", "none that holds", "-", "-", "-", refused]
    return [row["topic"], str(row["partition"]), str(row["size"]), row["root"], row["issued_at"],
            names or "not checked: no key was named",
            "there, not checked" if row["time_stamped"] else "no", refused]  # fmt: skip


def _range(item: Mapping[str, Any] | None) -> str:
    if item is None or item["count"] == 0:
        return "not measured"
    interval = Interval(**item)
    return f"{charts.percent(interval.value)} ({charts.span(interval)})"
