"""The evidence of a period: the same bytes whoever makes it, every part mapped, and no text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ares_stream.audit.evidence import (
    MAPPING,
    STATEMENT,
    TOPICS,
    Evidence,
    Period,
    encoded,
    gaps,
    note_text,
)
from ares_stream.audit.evidence_page import evidence_page
from ares_stream.audit.heads import HeadChain, signed_head
from ares_stream.audit.leaves import Hasher
from ares_stream.audit.notes import NoteKey, NoteSigner, TreeHead
from ares_stream.audit.proofs import prove
from ares_stream.detection.intervals import wilson
from ares_stream.detection.ledger import LedgerPolicy
from ares_stream.detection.tallies import CELLS
from ares_stream.errors import AresError, DecodeError, IntegrityError
from ares_stream.models.releases import Log
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement
from ares_stream.records.base import OffsetRange, Record
from ares_stream.records.checkpoint import Checkpoint
from ares_stream.records.label import Label
from ares_stream.records.release import Release
from ares_stream.records.repair import RepairReport
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.gate import GatePolicy, Table, decide
from ares_stream.streaming.records import InboundRecord
from tests.support.forecasts import forecast_of, place
from tests.support.gate_tables import INCUMBENT, REPAIRED
from tests.support.notarised import NAME, SIGNER, notarise, records_of
from tests.support.verdicts import NOON, verdict

ROOT = Path(__file__).parents[2]
PERIOD = Period(NOON, NOON + timedelta(days=30))
BEGIN = PERIOD.since_ms
EVERY = LedgerPolicy(slices=("locale",), review_shares=dict.fromkeys(CELLS, 1.0))
Row = tuple[str, InboundRecord]


def record(
    name: str, offset: int, item: Record | None, minute: int = 1, key: bytes = b"k", part: int = 0
) -> Row:
    stamp = BEGIN + minute * 60_000
    value = None if item is None else item.encode()
    return name, InboundRecord(f"ares.{name}", part, offset, stamp, key, value)


def label(number: int, harmful: bool, reviewer: str = "ann") -> Label:
    return Label(
        interaction_id=f"interaction-{number}",
        harmful=harmful,
        reviewer=reviewer,
        decided_at=NOON,
        reason="because",
    )


def alarm(name: str) -> Alarm:
    return Alarm(
        id=name,
        kind="coupled_failures_rose",
        raised_at=NOON + timedelta(hours=2),
        changed_at=NOON,
        attribution="system",
        attribution_reason="anchors are steady",
        false_alarm_days=30.0,
        summary="coupled failures rose",
    )


def repair(plan: str, state: str) -> RepairReport:
    return RepairReport.model_validate(
        {
            "plan_id": plan, "state": state, "method": "joint", "reasons": ["cfr: too high"],
            "before": INCUMBENT, "after": REPAIRED, "batch": [], "started_at": NOON,
            "finished_at": NOON + timedelta(hours=4),
        }
    )  # fmt: skip


def release(state: str, hours: int, **more: object) -> Release:
    return Release.model_validate(
        {
            "model": "policy", "kind": "policy", "digest": "d" * 64, "uri": "/srv/x",
            "state": state, "changed_at": NOON + timedelta(hours=hours), "changed_by": "ann",
            "reason": "checked",
        }
        | more
    )  # fmt: skip


GATE = decide(
    Table(overall=INCUMBENT, slices={"tax": {"cfr": wilson(9, 9)}}),
    Table(overall=REPAIRED, slices={"tax": {"cfr": wilson(1, 9)}}),
    GatePolicy(),
)
LOG = Log(
    (
        (release("candidate", -48, gate_report=GATE.digest),),
        (release("candidate", 4, forecast=forecast_of(place({"cfr": 90}, {"cfr": 9}))),),
        (release("active", 5, gate_report=GATE.digest),),
        (release("rolled_back", 9, reason="over-refuses"),),
        (release("candidate", 24 * 40, digest="e" * 64),),
    ),
    None,
)


def month() -> list[Row]:
    rows: list[Row] = []
    for k in range(60):
        kind = FailureClass.COUPLED_FAILURE if k % 10 == 0 else FailureClass.CLEAN
        item = verdict(k, kind, version="2" if k % 2 else "1", locale="de" if k % 3 else "en")
        rows.append(record(topics.VERDICTS, k // 2, item, k, part=k % 2))
    rows += [
        record(topics.LABELS, 0, label(0, True), key=b"a"),
        record(topics.LABELS, 1, label(0, True, "bob"), key=b"b"),
        record(topics.LABELS, 2, label(2, False), key=b"c"),
        record(topics.LABELS, 3, None, key=b"c"),
        record(topics.ALARMS, 0, alarm("one")),
        record(topics.ALARMS, 1, alarm("two")),
        record(topics.ALARMS, 2, AlarmAcknowledgement(
            alarm_id="one", by="ann", at=NOON + timedelta(hours=3), note="new prompt template")),
        record(topics.REPAIRS, 0, repair("plan-1", "rejected")),
        record(topics.REPAIRS, 1, repair("plan-2", "promoted")),
    ]  # fmt: skip
    headers = tuple(
        (f"__connect.errors.{name}", value)
        for name, value in (
            ("topic", b"in"), ("partition", b"0"), ("offset", b"7"), ("stage", b"decode"),
            ("exception.class.name", b"DecodeError"), ("exception.message", b"secret words"),
        )
    )  # fmt: skip
    stamp = BEGIN + 1
    letter = InboundRecord("ares.deadletters", 0, 0, stamp, b"k", b"secret words", headers)
    rows.append((topics.DEADLETTERS, letter))
    signed = notarise([row for name, row in rows if name == topics.ALARMS])
    rows += [
        record(topics.CHECKPOINTS, offset, head)
        for offset, (_, head) in enumerate(signed.checkpoints)
    ]
    rows.append(
        (topics.VERDICTS, InboundRecord("ares.verdicts", 0, 99, stamp, b"k", b"no verdict"))
    )
    # Of another time: not looked at.
    for minute in (-1, 60 * 24 * 30):
        rows.append(record(topics.VERDICTS, 100 + minute, verdict(7), minute))
    return rows


def made(rows: Sequence[Row], log: Log = LOG) -> dict[str, object]:
    evidence = Evidence(PERIOD, EVERY, "either")
    for name, row in rows:
        evidence.take(name, row)
    return evidence.document(log)


def test_every_part_is_mapped_to_articles_and_functions_and_the_page_shows_each() -> None:
    document = made(month())
    parts = set(document) - {"schema", "statement", "mapping"}
    assert parts == set(MAPPING) == set(document["mapping"])  # type: ignore[call-overload]
    for name, row in document["mapping"].items():  # type: ignore[attr-defined]
        assert row["eu_ai_act"], name
        assert row["nist_ai_rmf"], name
        functions = {item.split()[0] for item in row["nist_ai_rmf"]}
        assert functions <= {"GOVERN", "MAP", "MEASURE", "MANAGE"}
    # Art. 12(2)(c) is about what Art. 26(5) asks for.
    for name, row in MAPPING.items():
        assert ("Art. 26(5)" in row.ai_act) == ("Art. 12(2)(c)" in row.ai_act), name
    page = (ROOT / "docs" / "evidence.md").read_text()
    for name, row in MAPPING.items():
        cells = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert re.findall(r"\d+\(\d\)(?:\(\w\))?", cells.split("|")[3]) == [
            item.removeprefix("Art. ") for item in row.ai_act
        ]
        assert re.findall(r"\d\.\d", cells.split("|")[4]) == [item.split()[1] for item in row.nist]
    articles = {item for row in MAPPING.values() for item in row.ai_act}
    for article in ("Art. 12(2)(a)", "Art. 12(2)(b)", "Art. 12(2)(c)", "Art. 19(1)", "Art. 26(5)"):
        assert article in articles
    page = evidence_page(document).decode()
    assert STATEMENT in page
    assert "not legal advice" in page
    for part in ("Art. 12(2)(a)", "MEASURE 2.4", "new prompt template", "rolled_back", "plan-1"):
        assert part in page


def test_what_is_said_is_what_was_recorded_in_the_period() -> None:
    found = json.loads(encoded(made(month())))
    whole = {
        row["slice"]["policy"]["version"]: row["total"]
        for row in found["figures"]
        if not row["slice"]["attribute"]
    }
    assert whole == {"1": 30, "2": 30}
    assert found["versions"]["policies"] == [
        {"name": "chat", "version": version, "verdicts": 30} for version in ("1", "2")
    ]
    assert found["oversight"] == {
        "labels": 2, "harmful": 2, "interactions": 1, "reviewers": 2,
        "with_several_opinions": 1, "of_which_agree": 1, "undone": 1,
    }  # fmt: skip
    assert [row["acknowledged"] and row["acknowledged"]["note"] for row in found["alarms"]] == [
        "new prompt template", None,
    ]  # fmt: skip
    # The step of two days before and of after the period are in no list.
    assert [row["state"] for row in found["releases"]] == ["candidate", "active", "rolled_back"]
    assert found["releases"][0]["forecast"]["overall"]["forecast"]["cfr"]["value"] == 0.009
    assert found["versions"]["active_at_the_end"] == []
    assert [row["kind"] for row in found["incidents"]] == [
        "alarm coupled_failures_rose", "alarm coupled_failures_rose", "repair rejected",
        "release rolled_back", "records refused",
    ]  # fmt: skip
    assert found["dead_letters"]["by"] == [
        {"topic": "in", "stage": "decode", "kind": "DecodeError", "count": 1}
    ]
    assert found["proofs"][0]["size"] == 3
    assert len(found["proofs"][0]["root"]) == 64
    assert found["covers"]["unreadable"] == {"ares.verdicts": 1}
    covered = {(row["topic"], row["partition"]): row for row in found["covers"]["topics"]}
    assert covered["ares.verdicts", 1]["records"] == 30


def heads(*checkpoints: Checkpoint, keys: Sequence[NoteKey] = (SIGNER.key,)) -> dict[str, Any]:
    evidence = Evidence(PERIOD, EVERY, "either", keys)
    for offset, head in enumerate(checkpoints):
        evidence.take(*record(topics.CHECKPOINTS, offset, head))
    document = evidence.document(LOG)
    assert evidence_page(document)
    (row,) = document["proofs"]
    assert isinstance(row, dict)
    return row


def signed(*signers: NoteSigner, count: int = 30) -> list[Checkpoint]:
    made = notarise(records_of(count), signers=signers or (SIGNER,))
    return [head for _, head in made.checkpoints]


def test_a_head_that_was_forged_takes_no_place_of_one_that_holds() -> None:
    good = signed()
    assert heads(*good)["size"] == 30
    assert heads(*good)["signed_by"] == [str(SIGNER.key)]
    assert heads(*good)["refused"] == 0
    other = signed(NoteSigner.generate("example.com/other"))
    last = good[-1]
    wrong = {
        "signed by no trusted key": other[-1],
        "the signature of": last.model_copy(update={"note": last.note.replace("\n30\n", "\n31\n")}),
        "not a signed note": last.model_copy(update={"note": "30 leaves"}),
        "its leaves do not give its root": last.model_copy(update={"leaves": good[0].leaves}),
        "its leaves cannot be read": last.model_copy(update={"leaves": last.leaves[:-1]}),
        "its size is not that of its leaves": last.model_copy(update={"leaves": b""}),
        "of another partition": last.model_copy(update={"partition": 2, "topic": "ares.labels"}),
    }
    for reason, head in wrong.items():
        if reason == "of another partition":
            continue
        row = heads(*good[:2], head)
        assert (row["size"], row["refused"]) == (20, 1), reason
        assert str(row["first_refused_because"]).startswith(reason), row
        # The next one continues the one that holds.
        assert heads(*good[:2], head, good[2])["size"] == 30
    alone = heads(wrong["of another partition"])
    assert alone["first_refused_because"] == "of another partition"
    assert "root" not in alone


def test_a_head_that_does_not_continue_the_one_before_it_is_refused() -> None:
    good = signed()
    row = heads(good[0], good[2], good[1])
    assert (row["size"], row["refused"]) == (20, 1)
    assert row["first_refused_because"] == "it does not continue the one before it"
    # A period begins in the middle of a log.
    assert heads(*good[1:])["size"] == 30


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_a_forger_writes_into_a_checkpoint_the_head_that_holds_stays(
    data: st.DataObject,
) -> None:
    good = signed()
    fields = json.loads(good[-1].encode())
    for name in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2)):
        fields[name] = data.draw(
            st.sampled_from([-1, 0, 1, 1 << 32, 1 << 63, 1 << 70, "", "x", "A" * 64, None, []])
            | st.text(max_size=30)
        )
    try:
        forged = Checkpoint.decode(json.dumps(fields).encode())
    except DecodeError:
        return
    forged = forged.model_copy(update={"topic": good[0].topic})
    for number in {forged.partition, good[0].partition}:
        for keys in ((), (SIGNER.key,)):
            chain = HeadChain(keys)
            for head in (*good[:2], forged.model_copy(update={"partition": number}), good[2]):
                chain.take(head)
            assert chain.head is not None
            assert chain.head.size == 30
        with suppress(AresError):
            prove(3, [*good, forged], record=None, salt=None)


def test_a_checkpoint_of_a_partition_that_no_topic_has_is_refused_by_whoever_reads_it() -> None:
    number = 1 << 63
    text = TreeHead(f"{NAME}/ares.verdicts/{number}", 0, bytes(32)).text()
    forged = signed()[0].model_copy(update={"partition": number, "note": text})
    with pytest.raises(IntegrityError):
        signed_head(forged, NAME, [SIGNER.key])
    chain = HeadChain(())
    chain.take(forged)
    assert (chain.refused, chain.last) == (1, None)
    with pytest.raises(IntegrityError, match="a partition that no topic has"):
        Hasher("ares.verdicts", number)


def test_without_keys_no_signature_is_checked_and_the_report_says_so() -> None:
    row = heads(*signed(NoteSigner.generate("example.com/other")), keys=())
    assert (row["signed_by"], row["size"]) == ([], 30)
    evidence = Evidence(PERIOD, EVERY, "either")
    for offset, head in enumerate(signed()):
        evidence.take(*record(topics.CHECKPOINTS, offset, head))
    document = evidence.document(LOG)
    assert document["covers"]["notary_keys"] == []
    assert b"not checked: no key was named" in evidence_page(document)


def test_an_alarm_without_an_end_is_an_incident_of_every_period_until_somebody_takes_note() -> None:
    def told(name: str, minute: int) -> Row:
        seen = AlarmAcknowledgement(alarm_id=name, by="ann", at=NOON, note=f"note on {name}")
        return record(topics.ALARMS, 9, seen, minute)

    evidence = Evidence(PERIOD, EVERY, "either")
    for row in (
        record(topics.ALARMS, 0, alarm("open"), -900),
        record(topics.ALARMS, 1, alarm("over"), -800),
        told("over", -700),
        record(topics.ALARMS, 2, alarm("seen now"), -600),
        ("alarms", InboundRecord("ares.alarms", 0, 3, BEGIN - 1, b"k", b"rubbish")),
        told("seen now", 5),
        record(topics.ALARMS, 4, alarm("new"), 6),
        record(topics.ALARMS, 5, alarm("later"), 60 * 24 * 40),
    ):
        evidence.take(*row)
    document = evidence.document(LOG)
    notes = {row["id"]: row["acknowledged"] and row["acknowledged"]["note"]
             for row in document["alarms"]}  # fmt: skip
    assert notes == {"open": None, "seen now": "note on seen now", "new": None}
    incidents = [row for row in document["incidents"] if row["kind"].startswith("alarm")]
    assert len(incidents) == 3
    # What was read is what lies in the period.
    (covered,) = document["covers"]["topics"]
    assert covered["records"] == 2


def test_the_gate_of_a_repair_that_was_rejected_stands_beside_those_of_releases() -> None:
    """It makes no release that could name it."""
    refused = decide(Table(overall=REPAIRED), Table(overall=INCUMBENT), GatePolicy())
    assert not refused.passed
    report = repair("plan-1", "rejected").model_copy(update={"gate_report": refused.digest})
    evidence = Evidence(PERIOD, EVERY, "either")
    row = record(topics.REPAIRS, 0, report)
    evidence.take(*row)
    for kept in ({refused.digest: refused.document}, {}):
        document = evidence.document(Log((), None), gate_report=kept.get)
        (gate,) = document["gates"]
        assert (gate["digest"], gate["repairs"], gate["releases"]) == (
            refused.digest, ["plan-1"], [],
        )  # fmt: skip
        assert gate["kept"] == bool(kept)
        assert "Gate of repair plan-1" in evidence_page(document).decode()
        if kept:
            assert gate["passed"] is False
            assert [item["figure"] for item in gate["checks"] if not item["passed"]]


def test_each_check_of_a_releases_gate_stands_with_its_limit_and_its_value() -> None:
    evidence = Evidence(PERIOD, EVERY, "either")
    kept = {GATE.digest: GATE.document}
    document = evidence.document(LOG, gate_report=kept.get)
    (row,) = document["gates"]
    assert (row["digest"], row["kept"], row["passed"]) == (GATE.digest, True, True)
    assert row["releases"] == [{"model": "policy", "digest": "d" * 64}]
    assert [check["figure"] for check in row["checks"]] == [item.figure for item in GATE.checks]
    assert row["checks"][-1]["slice"] == "tax"
    for said, check in zip(row["checks"], GATE.checks, strict=True):
        assert said["limit"] == pytest.approx(check.limit, abs=1e-9)
        assert check.after is not None
        assert said["after"]["value"] == pytest.approx(check.after.value, abs=1e-9)
    page = evidence_page(document).decode()
    assert "Gate of policy dddddddddddd" in page
    assert "at most" in page
    (lost,) = evidence.document(LOG)["gates"]
    assert (lost["kept"], lost.get("checks")) == (False, None)
    assert "does not have this report" in evidence_page(evidence.document(LOG)).decode()


def test_a_forecast_stands_beside_what_came_in_the_period() -> None:
    said = forecast_of(place({"cfr": 90}, {"cfr": 9}), de=place({"cfr": 90}, {"cfr": 9}))
    log = Log(((release("active", -1, digest="d" * 64, forecast=said),),), None)
    rows = [
        record(
            topics.VERDICTS, k,
            verdict(k, FailureClass.COUPLED_FAILURE if k % 50 == 0 else FailureClass.CLEAN,
                    version="2", locale="de" if k % 2 else "en"),
            1 + k // 10,
        )
        for k in range(200)
    ]  # fmt: skip
    found = json.loads(encoded(made(rows, log)))["forecasts"]
    assert {(row["place"], row["figure"]) for row in found} == {
        ("", "cfr"), ("", "policy_harm"), ("locale=de", "cfr"), ("locale=de", "policy_harm"),
    }  # fmt: skip
    (whole,) = [row for row in found if (row["place"], row["figure"]) == ("", "cfr")]
    assert whole["measured"]["value"] == 0.02
    assert whole["ratio"] == 0.45
    assert "Forecasts and what came" in evidence_page(made(rows, log)).decode()


def test_no_text_of_a_conversation_nor_of_another_partys_error_is_in_it() -> None:
    document = made(month())
    for raw in (encoded(document), evidence_page(document)):
        assert b"secret" not in raw
        assert b"/srv/x" not in raw


@given(st.integers(0, 10_000))
@settings(max_examples=6, deadline=None)
def test_the_order_in_which_partitions_are_read_changes_no_byte(seed: int) -> None:
    rows = month()
    queues: dict[tuple[str, int], list[Row]] = {}
    for name, row in rows:
        queues.setdefault((row.topic, row.partition), []).append((name, row))
    chooser, mixed = random.Random(seed), list[Row]()
    while live := [queue for queue in queues.values() if queue]:
        mixed.append(chooser.choice(live).pop(0))
    straight, other = made(rows), made(mixed)
    assert encoded(straight) == encoded(other)
    assert evidence_page(straight) == evidence_page(other)


@pytest.mark.parametrize("change", ["value", "time", "missing"])
def test_another_record_is_another_digest(change: str) -> None:
    rows = month()
    name, row = rows[3]
    if change == "missing":
        other = rows[:3] + rows[4:]
    else:
        value = verdict(3, FailureClass.POLICY_FAILURE).encode() if change == "value" else row.value
        stamp = row.timestamp_ms + (change == "time")
        changed = InboundRecord(row.topic, row.partition, row.offset, stamp, row.key, value)
        other = [*rows[:3], (name, changed), *rows[4:]]
    before, after = (json.loads(encoded(made(item)))["covers"] for item in (rows, other))
    assert before != after


def test_what_retention_may_have_deleted_is_named() -> None:
    def ranges(starts: Sequence[int]) -> list[OffsetRange]:
        return [
            OffsetRange(topic=f"ares.{name}", partition=0, start=start, end=100)
            for name, start in zip(TOPICS, starts, strict=True)
        ]

    names = {f"ares.{name}": name for name in TOPICS}
    #   verdicts: the oldest left is of the period; labels are compacted; the rest is older or whole
    whole, inside = ranges((40, 40, 0, 30, 0, 0)), ranges((40, 40, 0, 50, 0, 9))
    assert [(item.topic, item.end) for item in gaps(names, whole, inside)] == [
        ("ares.verdicts", 40)
    ]


def test_the_note_names_the_period_and_each_file() -> None:
    text = note_text(PERIOD, {"evidence.json": b"{}"})
    assert text.splitlines() == [
        "ares-stream evidence",
        "2026-10-01T12:00:00Z 2026-10-31T12:00:00Z",
        "evidence.json sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    ]


def test_a_period_in_which_nothing_happened_is_a_report_too() -> None:
    document = made([], Log((), None))
    assert document["incidents"] == document["figures"] == []
    assert evidence_page(document).count(b"none") >= 8


def test_a_head_of_a_key_that_was_exchanged_is_refused() -> None:
    old, new = NoteSigner.generate(NAME), NoteSigner.generate(NAME)
    history = ([old], [old, new], [new], [old], [new])
    chain = HeadChain([old.key, new.key])
    for number, signers in enumerate(history):
        whole = notarise(records_of(50), signers=signers)
        chain.take(whole.checkpoints[number][1])
    # The last one does not continue the third: the fourth's leaves are missing.
    assert (chain.refused, chain.head and chain.head.size) == (2, 30)
    assert chain.reason is not None
    assert "which did not sign the head before it" in chain.reason


@pytest.mark.parametrize("keys", [[SIGNER.key], []], ids=["with a key", "without"])
def test_a_topic_that_ends_before_what_was_signed_of_it_is_named(keys: list[NoteKey]) -> None:
    """It was cut, or deleted and made anew in the period."""
    signed = notarise(records_of(20))
    evidence = Evidence(PERIOD, LedgerPolicy(), "either", keys)
    for number, (_, item) in enumerate(signed.checkpoints):
        evidence.take(*record(topics.CHECKPOINTS, number, item))
    end = signed.records[-1].offset + 1

    def there(until: int, partition: int = 2) -> OffsetRange:
        return OffsetRange(topic="ares.verdicts", partition=partition, start=0, end=until)

    assert evidence.shortened([there(end), there(0, partition=1)]) == []
    gap = there(end).model_copy(update={"start": 5})
    assert evidence.shortened([there(5)]) == ([gap] if keys else [])
