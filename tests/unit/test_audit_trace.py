"""A trace follows one interaction through every topic and shows none of its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta

from ares_stream.audit.trace import TRACED, InteractionTrace, ReleaseTrace, with_gates
from ares_stream.errors import IntegrityError
from ares_stream.records import topics
from ares_stream.records.base import OffsetRange, Record
from ares_stream.records.interaction import Interaction, Message, Policy
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.mapping import Mapping, PolicyMapping
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.gate import Check, GatePolicy, GateVerdict
from ares_stream.streaming.records import InboundRecord
from tests.support.forecasts import forecast_of, place
from tests.support.verdicts import NOON, verdict

NEW = "d" * 64


def record(name: str, offset: int, item: Record, key: bytes = b"k") -> InboundRecord:
    return InboundRecord(f"ares.{name}", 0, offset, 1_790_000_000_000, key, item.encode())


def interaction(number: int) -> Interaction:
    return Interaction(
        id=f"interaction-{number}", occurred_at=NOON, policy=Policy(name="chat", version="1"),
        messages=(Message(role="user", content="a secret question"),), response="a secret answer",
    )  # fmt: skip


def report(start: int, plan: str) -> RepairReport:
    return RepairReport(
        plan_id=plan, state="promoted", method="joint", reasons=(), before={}, after={},
        batch=(OffsetRange(topic="ares.repair", partition=0, start=start, end=start + 2),),
        releases={"rm": NEW}, started_at=NOON, finished_at=NOON + timedelta(hours=1),
    )  # fmt: skip


def release(digest: str, plan: str | None) -> Release:
    return Release(
        model="rm", kind="reward", digest=digest, uri="x", state=ReleaseState.ACTIVE,
        changed_at=NOON, changed_by="ann", plan_id=plan,
    )  # fmt: skip


def world() -> dict[str, list[InboundRecord]]:
    ours = verdict(5, FailureClass.COUPLED_FAILURE)
    found: dict[str, list[InboundRecord]] = {name: [] for name in TRACED}
    for number in (5, 55):  # One id is the beginning of the other.
        item, said = interaction(number), verdict(number, FailureClass.COUPLED_FAILURE)
        found[topics.PRODUCTION].append(record(topics.PRODUCTION, number, item))
        found[topics.VERDICTS].append(record(topics.VERDICTS, number, said))
        found[topics.REVIEW].append(
            record(topics.REVIEW, number, ReviewItem(
                cause="sampled", sampling_probability=0.5, verdict=said, interaction=item))
        )  # fmt: skip
        found[topics.LABELS].append(
            record(topics.LABELS, number, Label(
                interaction_id=item.id, harmful=True, reviewer="ann", decided_at=NOON))
        )  # fmt: skip
        found[topics.REPAIR].append(
            record(topics.REPAIR, number, CoupledFailure(verdict=said, interaction=item))
        )
    found[topics.REPAIRS] = [
        record(topics.REPAIRS, 0, report(4, "plan-a")),
        record(topics.REPAIRS, 1, report(54, "plan-b")),
    ]
    found[topics.RELEASES] = [
        record(topics.RELEASES, 0, release(ours.releases["reward"], None)),
        record(topics.RELEASES, 1, release(NEW, "plan-a")),
        record(topics.RELEASES, 2, release("e" * 64, "plan-b")),
    ]
    found[topics.VERDICTS].append(
        InboundRecord("ares.verdicts", 0, 99, 0, b"k", b"interaction-5 and no JSON")
    )
    return found


def traced(selector: str) -> InteractionTrace:
    trace, all_records = InteractionTrace(selector), world()
    trace.learn(all_records[topics.VERDICTS])
    for name in TRACED:
        for item in all_records[name]:
            trace.take(name, item)
    return trace


def test_a_report_of_a_replay_is_the_last_step_of_a_life() -> None:
    trace = InteractionTrace("interaction-5")
    for name, records in world().items():
        for item in records:
            trace.take(name, item)
    report = {
        "schema": "ares.replay-report/1", "mode": "proof",
        "finished_at": "2026-11-01T00:00:00+00:00",
        "read_digest": "e" * 64, "differences_total": 1, "chosen_offsets": None, "tolerated": [],
        "partitions": [
            {"topic": "ares.interactions.production", "partition": 0, "ranges": [[0, 9]]}],
        "differences": [
            {"topic": "ares.interactions.production", "partition": 0, "offset": 5,
             "agreement": "divergent", "detail": "harm.probability"}],
    }  # fmt: skip
    trace.replayed([report, {**report, "differences": [], "differences_total": 0}])
    said = [step.summary for step in trace.steps if step.kind == "replay"]
    assert said == ["proof: divergent: harm.probability", "proof: as recorded"]


def test_an_interaction_is_followed_to_the_release_that_came_of_it() -> None:
    expected = [
        ("interaction", 5), ("verdict", 5), ("review", 5), ("label", 5), ("repair", 5),
        ("report", 0), ("judged by", 0), ("release", 1),
    ]  # fmt: skip
    for selector in ("interaction-5", verdict(5).id):
        assert [(item.kind, item.offset) for item in traced(selector).steps] == expected


def test_a_release_is_shown_with_what_was_forecast_of_it() -> None:
    said = forecast_of(place({"cfr": 90}, {"cfr": 9}))
    item = release(NEW, "plan-a").model_copy(update={"forecast": said})
    trace = ReleaseTrace(NEW[:8])
    trace.take(topics.RELEASES, record(topics.RELEASES, 3, item))
    (step,) = trace.steps
    assert "active, forecast CFR 0.90% (0.47% to 1.70%)" in step.summary
    assert step.facts["forecast"]["overall"]["sampled"] == 1000


def test_no_text_is_shown() -> None:
    steps = traced("interaction-5").steps
    shown = json.dumps([asdict(item) for item in steps]) + "".join(map(str, steps))
    assert "secret" not in shown


def test_a_release_shows_its_repair_its_states_and_what_it_judged() -> None:
    trace, all_records = ReleaseTrace(NEW[:8]), world()
    for name in (topics.REPAIRS, topics.RELEASES, topics.VERDICTS):
        for item in all_records[name]:
            trace.take(name, item)
    assert [item.kind for item in trace.steps] == ["report", "report", "release"]
    assert trace.steps[0].facts["batch"][0]["start"] == 4
    judged = ReleaseTrace("b" * 64)
    for item in all_records[topics.VERDICTS]:
        judged.take(topics.VERDICTS, item)
    assert judged.verdicts == 2


def test_what_is_nowhere_has_no_steps() -> None:
    assert traced("interaction-6").steps == []


def test_a_repair_is_shown_with_what_the_gate_said_of_it_wherever_its_report_is() -> None:
    bad = GateVerdict(
        passed=False,
        checks=(
            Check(figure="cfr", slice="", before=None, after=None, limit=0.1, side="high",
                  passed=False, reason="cfr: 20 % is above 10 %"),
        ),
        policy=GatePolicy(),
    )  # fmt: skip
    rejected = report(5, "p1").model_copy(
        update={"state": "rejected", "releases": {}, "gate_report": bad.digest}
    )
    trace = InteractionTrace("interaction-5")
    rows = world() | {topics.REPAIRS: [record(topics.REPAIRS, 9, rejected)]}
    for name in TRACED:
        for item in rows[name]:
            trace.take(name, item)

    def changed(digest: str) -> bytes | None:
        raise IntegrityError("gates/x.json: is not what its name says; it was changed")

    cases: tuple[tuple[Callable[[str], bytes | None], str], ...] = (
        (
            lambda name: {bad.digest: bad.document}.get(name),
            "gate: did not pass: cfr: 20 % is above 10 %",
        ),
        (lambda name: None, "gate: its report is not in the registry"),
        (changed, "it was changed"),
    )
    for find, said in cases:
        steps = with_gates(trace.steps, find)
        (found,) = [item for item in steps if item.kind == "report"]
        assert found.summary.startswith("rejected by joint")
        assert said in found.summary
        assert [item for item in steps if item.kind != "report"] == [
            item for item in trace.steps if item.kind != "report"
        ]


def inputs_taken(
    selector: str, *records: InboundRecord, mapping: Mapping | None = None
) -> list[str]:
    maps = {} if mapping is None else {records[0].topic: mapping}
    trace = InteractionTrace(selector, maps)
    for item in records:
        trace.take_input(item)
    return [step.summary for step in trace.steps]


MAPPED = Mapping(
    id="join('-', [tenant, number])", prompt="question", response="answer", occurred_at="at",
    policy=PolicyMapping(name="'chat'", version="'1'"),
)  # fmt: skip


def raw(topic: str, document: object, key: bytes | None = None) -> InboundRecord:
    value = document if isinstance(document, bytes) else json.dumps(document).encode()
    return InboundRecord(topic, 0, 3, 1_790_000_000_000, key, value)


def test_an_id_that_its_mapping_puts_together_is_found_and_no_other_record_is_taken_for_it() -> (
    None
):
    mine = {"tenant": "a", "number": "7", "question": "a-8?", "answer": "x", "at": 1_790_000_000}
    item = raw("own.chats", mine)
    assert inputs_taken("a-7", item, mapping=MAPPED) == ["chat 1, 1 messages"]
    # A text that speaks of another id makes it none of that life.
    assert inputs_taken("a-8", item, mapping=MAPPED) == []
    assert inputs_taken("7", item, mapping=MAPPED) == []


def test_what_cannot_be_read_is_of_a_life_by_its_key_or_its_whole_id() -> None:
    broken = b'{"id":"order-12","messages":'
    assert inputs_taken("order-12", raw("t", broken)) == ["unreadable"]
    assert inputs_taken("order-1", raw("t", broken)) == []
    assert inputs_taken("", raw("t", broken)) == []
    assert inputs_taken("k", raw("t", b"", b"k")) == ["unreadable"]
    assert inputs_taken("*", raw("t", broken, b"k")) == []


def test_an_id_is_found_however_its_json_is_escaped() -> None:
    item = interaction(5).model_copy(update={"id": "größe/5"})
    escaped = json.dumps(json.loads(item.encode()), ensure_ascii=True).encode()
    spelt = escaped.replace(b'"gr', b'"\\u0067r')
    for document in (item.encode(), escaped, spelt):
        assert inputs_taken("größe/5", raw("t", document)) == ["chat 1, 1 messages"]
