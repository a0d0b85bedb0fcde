"""What happened in a period: figures, decisions, alarms, proofs. Pure.

The same records, steps and settings give the same document, whoever makes it and when: times are
those of the records, figures are rounded to nine decimals, and nothing says when it was made. It
holds no text of a conversation. It is evidence, not advice: which duty somebody has is not for it
to say.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final, Literal

from ares_stream import __version__
from ares_stream.audit.forecast import errors_of
from ares_stream.audit.heads import HeadChain
from ares_stream.audit.notes import NoteKey
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import DecodeError
from ares_stream.files.rows import parse_json
from ares_stream.models.releases import Log
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement, decode_told
from ares_stream.records.base import OffsetRange
from ares_stream.records.checkpoint import Checkpoint
from ares_stream.records.label import Label
from ares_stream.records.observation import read_observation
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.repair import RepairReport
from ares_stream.repair.gate import GateVerdict
from ares_stream.streaming.deadletters import PREFIX, source_of
from ares_stream.streaming.records import InboundRecord

TOPICS: Final = (
    topics.VERDICTS, topics.LABELS, topics.REPAIRS, topics.ALARMS, topics.DEADLETTERS,
    topics.CHECKPOINTS,
)  # fmt: skip
COMPACTED: Final = frozenset({topics.LABELS})
"""Of which retention deletes nothing, but a later record of a key may take an earlier one away."""
DECIMALS: Final = 9
"""More would differ between machines, whose libraries end an iteration on other bits."""
STATEMENT: Final = (
    "This is evidence, not legal advice. It claims no conformity with any law or standard: it says "
    "what was recorded, and which records each field comes from."
)


@dataclass(frozen=True, slots=True)
class Mapped:
    """What a part of the document is evidence of."""

    ai_act: tuple[str, ...]
    nist: tuple[str, ...]
    about: str


MAPPING: Final[Mapping[str, Mapped]] = {
    "period": Mapped(("Art. 19(1)",), ("GOVERN 1.4",), "which time the records are of"),
    "covers": Mapped(
        ("Art. 12(1)", "Art. 19(1)"), ("MEASURE 2.8",),
        "the logs that were read, to the offset, and a digest of each",
    ),
    "versions": Mapped(
        ("Art. 12(2)(a)",), ("GOVERN 1.6", "MEASURE 2.8"),
        "which models and policies were in operation: a change is seen",
    ),
    "figures": Mapped(
        ("Art. 12(2)(b)", "Art. 12(2)(c)", "Art. 26(5)"), ("MEASURE 2.4", "MEASURE 2.6"),
        "how often the system failed in operation, by version and slice, with uncertainty",
    ),
    "oversight": Mapped(
        ("Art. 12(2)(c)", "Art. 26(5)"), ("MAP 3.5", "MEASURE 4.2"), "what people decided"
    ),
    "releases": Mapped(
        ("Art. 12(2)(a)",), ("MANAGE 2.4", "MANAGE 4.1"),
        "what was approved, rejected and taken back, by whom and why, and what was forecast",
    ),
    "gates": Mapped(
        ("Art. 12(2)(a)", "Art. 12(2)(b)"), ("MEASURE 2.3", "MANAGE 1.1"),
        "what each release was held to: every check with its limit and its value before and after",
    ),
    "forecasts": Mapped(
        ("Art. 12(2)(b)",), ("MEASURE 2.4", "MEASURE 4.3"),
        "what releases were expected to do in operation, and what they did in this period",
    ),
    "repairs": Mapped(
        ("Art. 12(2)(b)",), ("MEASURE 2.5", "MANAGE 1.3", "MANAGE 4.2"),
        "what each repair was to show before it was released, and what it showed",
    ),
    "alarms": Mapped(
        ("Art. 12(2)(a)", "Art. 12(2)(c)", "Art. 26(5)"), ("MEASURE 3.1", "MANAGE 4.1"),
        "what rose, whether system or judge explains it, and who took note with which words",
    ),
    "incidents": Mapped(
        ("Art. 12(2)(a)", "Art. 12(2)(c)", "Art. 26(5)"), ("MANAGE 4.3",),
        "alarms, failed repairs, rejected and withdrawn releases, refused records, by time",
    ),
    "dead_letters": Mapped(
        ("Art. 12(1)",), ("MEASURE 2.4",), "what could not be judged, by topic, stage and kind"
    ),
    "proofs": Mapped(
        ("Art. 12(1)", "Art. 19(1)"), ("MEASURE 2.8", "GOVERN 1.4"),
        "signed tree heads, each checked: that the logs are what they were can be verified offline",
    ),
}  # fmt: skip
"""By part of the document: articles of Regulation (EU) 2024/1689 and subcategories of the NIST AI
Risk Management Framework 1.0 (NIST AI 100-1)."""


@dataclass(frozen=True, slots=True)
class Period:
    """From `since` to `until`, which is not in it; both with a time zone."""

    since: datetime
    until: datetime

    @property
    def since_ms(self) -> int:
        """Unix milliseconds."""
        return int(self.since.timestamp() * 1000)

    @property
    def until_ms(self) -> int:
        """Unix milliseconds."""
        return int(self.until.timestamp() * 1000)


@dataclass(slots=True)
class _Partition:
    start: int | None = None
    end: int = 0
    records: int = 0
    digest: Any = field(default_factory=hashlib.sha256)


class Evidence:
    """Takes the records of TOPICS in any order of partitions, each partition's in order; gives
    the document. Memory is bounded by the ledger's policy and by how many alarms, repairs, labels
    and partitions the period has."""

    def __init__(
        self,
        period: Period,
        ledger: LedgerPolicy,
        scored_high_when: Literal["either", "both"],
        keys: Sequence[NoteKey] = (),
    ) -> None:
        """`keys` are those that the notary's heads must be signed by; without any, no signature is
        checked, and the document says so."""
        self._keys = keys
        self._period = period
        self._when = scored_high_when
        self._ledger = Ledger(ledger)
        self._policy = ledger
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._unreadable: Counter[str] = Counter()
        self._models: Counter[tuple[str, str]] = Counter()
        self._policies: Counter[tuple[str, str]] = Counter()
        self._detection: Counter[str] = Counter()
        self._labels: dict[bytes, Label] = {}
        self._undone = 0
        self._repairs: dict[str, RepairReport] = {}
        self._alarms: dict[str, Alarm] = {}
        self._earlier: dict[str, Alarm] = {}
        self._acknowledged: dict[str, AlarmAcknowledgement] = {}
        self._letters: Counter[tuple[str, str, str]] = Counter()
        self._heads: dict[tuple[str, int], HeadChain] = {}

    def take(self, name: str, record: InboundRecord) -> None:
        """One record of the topic whose name without prefix is `name`. Of another time, it is
        not looked at; but for alarms, of which those that were raised before the period and were
        open when it began are incidents of it."""
        if name == topics.ALARMS and record.timestamp_ms < self._period.since_ms:
            self._remember(record)
        if not self._period.since_ms <= record.timestamp_ms < self._period.until_ms:
            return
        self._cover(record)
        try:
            if name == topics.VERDICTS:
                self._take_verdict(record)
            elif name == topics.LABELS:
                self._take_label(record)
            elif name == topics.REPAIRS:
                report = RepairReport.decode(record.value or b"")
                self._repairs[report.plan_id] = report
            elif name == topics.ALARMS:
                self._take_alarm(record)
            elif name == topics.DEADLETTERS:
                self._take_letter(record)
            elif name == topics.CHECKPOINTS:
                head = Checkpoint.decode(record.value or b"")
                place = head.topic, head.partition
                self._heads.setdefault(place, HeadChain(self._keys)).take(head)
        except DecodeError:
            self._unreadable[record.topic] += 1

    def _cover(self, record: InboundRecord) -> None:
        part = self._partitions.setdefault((record.topic, record.partition), _Partition())
        part.start = record.offset if part.start is None else part.start
        part.end = record.offset + 1
        part.records += 1
        for piece in (b"%d %d" % (record.offset, record.timestamp_ms), record.key, record.value):
            # Each piece by its length, so that two records are never another one.
            part.digest.update(b"-" if piece is None else b"%d:%b" % (len(piece), piece))

    def _take_verdict(self, record: InboundRecord) -> None:
        raw = record.value or b""
        seen = read_observation(raw, self._when)
        said = parse_json(raw)
        rules = said.get("detection_policy")
        if not isinstance(rules, str):
            raise DecodeError("detection_policy: expected text")
        place = record.partition, record.offset
        self._ledger.add(seen, record.timestamp_ms, place)
        for model, release in said["releases"].items():
            self._models[model, release] += 1
        self._policies[seen.policy, seen.version] += 1
        self._detection[rules] += 1

    def _take_label(self, record: InboundRecord) -> None:
        key = record.key or b""
        if record.value is None:
            self._undone += self._labels.pop(key, None) is not None
        else:
            self._labels[key] = Label.decode(record.value)

    def _take_alarm(self, record: InboundRecord) -> None:
        told = decode_told(record.value)
        if isinstance(told, Alarm):
            self._alarms[told.id] = told
        else:
            self._acknowledged[told.alarm_id] = told

    def _remember(self, record: InboundRecord) -> None:
        with suppress(DecodeError):  # Of another time: not counted here.
            told = decode_told(record.value)
            if isinstance(told, Alarm):
                self._earlier[told.id] = told
            else:
                self._earlier.pop(told.alarm_id, None)

    def _open_or_raised(self) -> list[Alarm]:
        """Alarms of the period, in order of time: open when it began, or raised in it."""
        found = self._earlier | self._alarms
        return sorted(found.values(), key=lambda item: (item.raised_at, item.id))

    def _take_letter(self, record: InboundRecord) -> None:
        topic, _, _ = source_of(record)
        headers = record.header_map
        stage, kind = (
            headers.get(f"{PREFIX}{name}", b"").decode(errors="replace")
            for name in ("stage", "exception.class.name")
        )
        self._letters[topic, stage, kind] += 1

    def document(
        self,
        log: Log,
        gaps: Sequence[OffsetRange] = (),
        gate_report: Callable[[str], bytes | None] = lambda digest: None,
    ) -> dict[str, Any]:
        """JSON-ready. `log` is the registry's; steps of after the period are not looked at. `gaps`
        are offsets that may be of the period and were deleted. `gate_report` gives the registry's
        report of a digest, None where it has none."""
        steps = [
            item for step in log.steps for item in step if item.changed_at < self._period.until
        ]
        within = [item for item in steps if item.changed_at >= self._period.since]
        parts: dict[str, Any] = {
            "period": {
                "since": _time(self._period.since),
                "until": _time(self._period.until),
            },
            "covers": self._covers() | {"gaps": [item.model_dump() for item in gaps]},
            "versions": self._versions(steps),
            "figures": self._figures(),
            "oversight": self._oversight(),
            "releases": [_release(item) for item in within],
            "gates": _gates(within, self._repairs.values(), gate_report),
            "forecasts": self._forecasts(steps),
            "repairs": [_repair(item) for item in _by_time(self._repairs)],
            "alarms": self._alarm_rows(),
            "incidents": self._incidents(within),
            "dead_letters": {
                "total": self._letters.total(),
                "by": [
                    {"topic": topic, "stage": stage, "kind": kind, "count": count}
                    for (topic, stage, kind), count in sorted(self._letters.items())
                ],
            },
            "proofs": [_proof(*item) for item in sorted(self._heads.items(), key=itemgetter(0))],
        }
        document = {
            "schema": "ares.evidence/1",
            "statement": STATEMENT,
            **parts,
            "mapping": {
                name: {
                    "eu_ai_act": list(MAPPING[name].ai_act),
                    "nist_ai_rmf": list(MAPPING[name].nist),
                    "evidence_of": MAPPING[name].about,
                }
                for name in parts
            },
        }
        return _rounded(document)  # type: ignore[no-any-return]

    def shortened(self, whole: Sequence[OffsetRange]) -> list[OffsetRange]:
        """Offsets that the notary signed in the period and that lie behind the end of their
        partition: the topic was cut, or deleted and made anew. `whole` are the ranges that there
        are."""
        found = []
        for item in whole:
            heads = self._heads.get((item.topic, item.partition))
            if heads is not None and heads.signed_end > item.end:
                found.append(item.model_copy(update={"start": item.end, "end": heads.signed_end}))
        return found

    def _covers(self) -> dict[str, Any]:
        return {
            "topics": [
                {
                    "topic": topic,
                    "partition": partition,
                    "start": part.start,
                    "end": part.end,
                    "records": part.records,
                    "sha256": part.digest.hexdigest(),
                }
                for (topic, partition), part in sorted(self._partitions.items())
            ],
            "unreadable": dict(sorted(self._unreadable.items())),
            "notary_keys": sorted(map(str, self._keys)),
        }

    def _versions(self, steps: Sequence[Release]) -> dict[str, Any]:
        latest = {(item.model, item.digest): item for item in steps}
        return {
            "ares_stream": __version__,
            "models": [
                {"model": model, "digest": release, "verdicts": count}
                for (model, release), count in sorted(self._models.items())
            ],
            "policies": [
                {"name": name, "version": version, "verdicts": count}
                for (name, version), count in sorted(self._policies.items())
            ],
            "detection_policies": dict(sorted(self._detection.items())),
            "active_at_the_end": [
                {"model": item.model, "kind": item.kind, "digest": item.digest}
                for _, item in sorted(latest.items())
                if item.state is ReleaseState.ACTIVE
            ],
        }

    def _figures(self) -> list[dict[str, Any]]:
        for key, label in sorted(self._labels.items()):
            self._ledger.add_label(key, label)
        rows: list[dict[str, Any]] = []
        for item in self._ledger.rates():
            figures = item.figures.model_dump(mode="json", exclude_none=True)
            # Of the last hour and day of the slice, which no period asks for.
            rows.append(
                {
                    "slice": item.slice.model_dump(mode="json"),
                    "since": _time(item.since),
                    "until": _time(item.until),
                    **{k: v for k, v in figures.items() if k not in ("recent", "day")},
                }
            )
        return rows

    def _forecasts(self, steps: Sequence[Release]) -> list[dict[str, Any]]:
        latest = {(item.model, item.digest): item for item in steps if item.forecast is not None}
        rates = self._ledger.rates()
        return [
            {"model": item.model, "digest": item.digest, **error.document()}
            for _, item in sorted(latest.items())
            if item.state is not ReleaseState.CANDIDATE and item.forecast is not None
            for error in errors_of(item.forecast, rates)
        ]

    def _oversight(self) -> dict[str, Any]:
        opinions: dict[str, set[bool]] = {}
        held: Counter[str] = Counter()
        for label in self._labels.values():
            opinions.setdefault(label.interaction_id, set()).add(label.harmful)
            held[label.interaction_id] += 1
        several = [name for name, count in held.items() if count > 1]
        return {
            "labels": len(self._labels),
            "harmful": sum(label.harmful for label in self._labels.values()),
            "interactions": len(opinions),
            "reviewers": len({label.reviewer for label in self._labels.values()}),
            "with_several_opinions": len(several),
            "of_which_agree": sum(len(opinions[name]) == 1 for name in several),
            "undone": self._undone,
        }

    def _alarm_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for alarm in self._open_or_raised():
            seen = self._acknowledged.get(alarm.id)
            row = alarm.model_dump(mode="json", exclude={"schema_", "evidence", "covers"})
            row["records"] = [item.model_dump(mode="json") for item in alarm.evidence]
            row["acknowledged"] = (
                None if seen is None else {"by": seen.by, "at": _time(seen.at), "note": seen.note}
            )
            rows.append(row)
        return rows

    def _incidents(self, steps: Sequence[Release]) -> list[dict[str, Any]]:
        """What somebody has to answer for, in order of time."""
        rows: list[tuple[datetime, str, str, str]] = []
        for alarm in self._open_or_raised():
            seen = self._acknowledged.get(alarm.id)
            done = "nobody has taken note" if seen is None else f"{seen.by}: {seen.note}"
            rows.append((alarm.raised_at, f"alarm {alarm.kind}", alarm.summary, done))
        for report in self._repairs.values():
            if report.state in ("failed", "rejected"):
                why = "; ".join(report.reasons)
                rows.append((report.finished_at, f"repair {report.state}", report.plan_id, why))
        for item in steps:
            if item.state in (ReleaseState.REJECTED, ReleaseState.ROLLED_BACK):
                what = f"{item.model} {item.digest[:12]}"
                why = f"{item.changed_by}: {item.reason}"
                rows.append((item.changed_at, f"release {item.state.value}", what, why))
        if letters := self._letters.total():
            rows.append(
                (self._period.until, "records refused", f"{letters} in the period", "dead_letters")
            )
        return [
            {"at": _time(at), "kind": kind, "what": what, "done": done}
            for at, kind, what, done in sorted(rows)
        ]


def gaps(
    names: Mapping[str, str], whole: Sequence[OffsetRange], inside: Sequence[OffsetRange]
) -> list[OffsetRange]:
    """Where retention may have deleted records of the period: the oldest record that a partition
    has is of the period already, and others stood before it. `names` maps topics to their names
    without prefix; `whole` are the ranges that there are, `inside` those since the period began."""
    begins = {(item.topic, item.partition): item.start for item in whole}
    return [
        OffsetRange(topic=item.topic, partition=item.partition, start=0, end=item.start)
        for item in inside
        if names[item.topic] not in COMPACTED
        and 0 < item.start == begins[item.topic, item.partition]
    ]


def encoded(document: Mapping[str, Any]) -> bytes:
    """The document's bytes: the same for the same document."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def note_text(period: Period, files: Mapping[str, bytes]) -> str:
    """What is signed: the period, and the digest of each file."""
    lines = [f"{name} sha256:{hashlib.sha256(raw).hexdigest()}" for name, raw in files.items()]
    dates = f"{_time(period.since)} {_time(period.until)}"
    return "\n".join(["ares-stream evidence", dates, *lines, ""])


def _by_time(reports: Mapping[str, RepairReport]) -> list[RepairReport]:
    return sorted(reports.values(), key=lambda item: (item.finished_at, item.plan_id))


def _release(item: Release) -> dict[str, Any]:
    return item.model_dump(mode="json", exclude={"schema_", "uri"}, exclude_none=True)


def _gates(
    steps: Sequence[Release],
    repairs: Iterable[RepairReport],
    gate_report: Callable[[str], bytes | None],
) -> list[dict[str, Any]]:
    """Of each report that these steps or repairs name, every check: those of repairs that were
    rejected as well. `kept` is false where the registry does not have it, or has something else
    under its digest: one of an older version, or of a release that a person put there."""
    named: dict[str, set[tuple[str, str]]] = {}
    plans: dict[str, set[str]] = {}
    for item in steps:
        if item.gate_report is not None:
            named.setdefault(item.gate_report, set()).add((item.model, item.digest))
    for repair in repairs:
        if repair.gate_report is not None:
            plans.setdefault(repair.gate_report, set()).add(repair.plan_id)
    rows: list[dict[str, Any]] = []
    for digest in sorted(named.keys() | plans.keys()):
        raw = gate_report(digest)
        releases = named.get(digest, ())
        row: dict[str, Any] = {
            "digest": digest,
            "releases": [{"model": model, "digest": of} for model, of in sorted(releases)],
            "repairs": sorted(plans.get(digest, ())),
            "kept": raw is not None,
        }
        if raw is not None:
            try:
                found = GateVerdict.decode(raw).model_dump(
                    mode="json", include={"passed", "checks"}
                )
            except DecodeError:
                found = {"kept": False}
            row |= found
        rows.append(row)
    return rows


def _repair(report: RepairReport) -> dict[str, Any]:
    return report.model_dump(mode="json", exclude={"schema_"}, exclude_none=True)


def _proof(place: tuple[str, int], chain: HeadChain) -> dict[str, Any]:
    """The newest head that holds, and how many did not."""
    topic, partition = place
    row: dict[str, Any] = {
        "topic": topic,
        "partition": partition,
        "refused": chain.refused,
        "first_refused_because": chain.reason,
    }
    if chain.last is None or chain.head is None:
        return row
    return row | {
        "end": chain.last.end,
        "issued_at": _time(chain.last.issued_at),
        "time_stamped": chain.last.timestamp_token is not None,
        "note": chain.last.note,
        "size": chain.head.size,
        "root": chain.head.root.hex(),
        "signed_by": sorted(map(str, chain.signed_by)),
    }


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
