"""Whatever stands in a record of a topic, whoever reads it counts or names it and goes on.

A record may be anybody's: Kafka checks nothing. The bent ones are nearly right, so that most get
past the first look.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import pytest
from hypothesis import given, settings
from prometheus_client import CollectorRegistry, generate_latest

from ares_stream.audit.evidence import Evidence, encoded
from ares_stream.audit.evidence_page import evidence_page
from ares_stream.audit.forecast import errors_of, forecast_lines, objections
from ares_stream.audit.heads import continues, signed_head
from ares_stream.audit.leaves import leaf_of
from ares_stream.audit.proofs import prove
from ares_stream.audit.salts import Salts
from ares_stream.audit.trace import TRACED, InteractionTrace, ReleaseTrace, with_gates
from ares_stream.audit.verifying import check_chain, compare
from ares_stream.console.desk import Desk
from ares_stream.console.policy import QueuePolicy
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import AresError, DecodeError
from ares_stream.models.releases import Log
from ares_stream.records import topics
from ares_stream.records.alarm import Alarm, AlarmAcknowledgement, EvidenceRecord, decode_told
from ares_stream.records.base import Interval, OffsetRange, Record
from ares_stream.records.checkpoint import Checkpoint, NotaryState, Salt
from ares_stream.records.forecast import FIGURES
from ares_stream.records.label import Label, ReviewItem
from ares_stream.records.observation import read_observation
from ares_stream.records.rates import (
    AnchorAnswers,
    AnchorFigures,
    MonitorState,
    Rates,
    SampledVerdict,
    decode_held,
)
from ares_stream.records.release import Release, ReleaseState
from ares_stream.records.repair import CoupledFailure, RepairReport
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.gate import GatePolicy
from ares_stream.repair.intake import ends
from ares_stream.services.forecasts_followed import FollowedForecasts
from ares_stream.services.monitor_metrics import MonitorMetrics
from ares_stream.streaming.records import InboundRecord
from tests.support.bent_records import bend, bent, places
from tests.support.forecasts import forecast_of, place
from tests.support.notarised import NAME, SIGNER, notarise, records_of
from tests.support.verdicts import NOON, verdict
from tests.unit.test_audit_trace import interaction, report
from tests.unit.test_evidence import EVERY, LOG, PERIOD, month
from tests.unit.test_forecast import rates_of
from tests.unit.test_forecasts_followed import measured

VERDICT: Final = verdict(5, FailureClass.COUPLED_FAILURE)
FORECAST: Final = forecast_of(
    place({"cfr": 100, "policy_harm": 200}, {"cfr": 50, "policy_harm": 100}),
    de=place({"cfr": 100}, {"cfr": 50}),
)
SIGNED: Final = notarise(records_of(9, topic="ares.verdicts"), every=4)
SALTED: Final = notarise(records_of(3, topic="ares.repair"), salted=True)
HEAD: Final = SIGNED.checkpoints[-1][1]

RATES: Final = rates_of("2", 12, 400)

WHOLE: Final[dict[str, tuple[str, Record]]] = {
    "release": (topics.RELEASES, Release(
        model="chat", kind="policy", digest="d" * 64, uri="file:///x", state=ReleaseState.ACTIVE,
        changed_at=NOON, changed_by="ada", plan_id="plan-a", gate_report="e" * 64,
        previous="f" * 64, forecast=FORECAST,
    )),
    "report": (topics.REPAIRS, report(4, "plan-a")),
    "review": (topics.REVIEW, ReviewItem(
        cause="sampled", sampling_probability=0.5, verdict=VERDICT, interaction=interaction(5))),
    "failure": (topics.REPAIR, CoupledFailure(verdict=VERDICT, interaction=interaction(5))),
    "label": (topics.LABELS, Label(
        interaction_id="interaction-5", verdict_id=VERDICT.id, harmful=True, reviewer="ann",
        decided_at=NOON, reason="because", others_shown_at=NOON)),
    "alarm": (topics.ALARMS, Alarm(
        id="alarm-1", kind="coupled_failures_rose", raised_at=NOON, changed_at=NOON,
        rate=Interval(value=0.1, low=0.05, high=0.2, count=90), baseline=0.01,
        slice=RATES[0].slice, false_alarm_days=30.0, summary="rose",
        evidence=(EvidenceRecord(topic="ares.verdicts", partition=0, offset=7),),
        covers=(OffsetRange(topic="ares.verdicts", partition=0, start=0, end=9),),
    )),
    "acknowledgement": (topics.ALARMS, AlarmAcknowledgement(
        alarm_id="alarm-1", by="ann", at=NOON, note="seen")),
    "checkpoint": (topics.CHECKPOINTS, HEAD),
    "salt": (topics.SALTS, SALTED.salts[1]),
    "state": (topics.NOTARY, NotaryState(
        topic="ares.verdicts", partition=2, end=HEAD.end, size=HEAD.size,
        peaks=("0" * 64, "1" * 64), log="topic-id=x")),
    "rates": (topics.RATES, RATES[0]),
}  # fmt: skip


def inbound(name: str, raw: bytes) -> InboundRecord:
    at_ms = PERIOD.since_ms + 60_000
    return InboundRecord(f"ares.{name}", 0, 5, at_ms, b"chat", raw)


def traced(name: str, raw: bytes) -> None:
    if name not in TRACED:
        return
    lives: list[InteractionTrace | ReleaseTrace] = [ReleaseTrace("d" * 64)]
    life = InteractionTrace("interaction-5")
    life.take(topics.VERDICTS, inbound(topics.VERDICTS, VERDICT.encode()))
    life.take(topics.REPAIR, inbound(topics.REPAIR, WHOLE["failure"][1].encode()))
    life.take(topics.REPAIRS, inbound(topics.REPAIRS, WHOLE["report"][1].encode()))
    for trace in (*lives, life):
        trace.take(name, inbound(name, raw))
        steps = with_gates(trace.steps, lambda digest: b"[]")
        json.dumps([[str(step), step.facts] for step in steps])


def in_evidence(name: str, raw: bytes) -> None:
    evidence = Evidence(PERIOD, EVERY, "either", [SIGNER.key])
    evidence.take(name, inbound(name, raw))
    log = LOG
    if name == topics.RELEASES:
        with suppress(DecodeError):
            log = Log(((Release.decode(raw),),), None)
    for bent_name, row in month()[:12]:
        evidence.take(bent_name, row)
    document = evidence.document(log, gate_report=lambda digest: b"[]")
    encoded(document)
    evidence_page(document)


def on_the_desk(name: str, raw: bytes) -> None:
    desk = Desk(QueuePolicy(), DetectionPolicy(), "ares.", None)  # type: ignore[arg-type]
    if f"ares.{name}" in desk.topics:
        with suppress(DecodeError):
            desk.take(inbound(name, raw))
    desk.open_alarms()
    desk.newest_failures(5)
    desk.queue.take("ann", 0.0)
    list(desk.queue.progress())


LEDGER: Final = measured()


def followed(name: str, raw: bytes) -> None:
    if name == topics.RELEASES:
        found = FollowedForecasts()
        with suppress(DecodeError):
            found.take(b"chat", raw)
        metrics = MonitorMetrics(CollectorRegistry())
        metrics.show_forecasts(found.errors(LEDGER))
        generate_latest(metrics.registry)


def shown(name: str, raw: bytes) -> None:
    if name == topics.RELEASES:
        try:
            release = Release.decode(raw)
        except DecodeError:
            return
        if release.forecast is not None:
            forecast_lines(release.forecast)
            objections(release, GatePolicy())
            errors_of(release.forecast, RATES)
    if name == topics.ALARMS:
        with suppress(DecodeError):
            told = decode_told(raw)
            metrics = MonitorMetrics(CollectorRegistry())
            if isinstance(told, Alarm):
                metrics.show(measured(count=3), [told])
                generate_latest(metrics.registry)


def notarised(name: str, raw: bytes) -> None:
    with suppress(AresError):
        state = NotaryState.decode(raw)
        with suppress(AresError):
            continues(state, signed_head(HEAD, NAME, [SIGNER.key]))
        continues(state, None)
    with suppress(AresError):
        head = Checkpoint.decode(raw)
        with suppress(AresError):
            signed_head(head, NAME, [SIGNER.key])
        place = (head.topic, head.partition)
        items = [*SIGNED.checkpoints[:-1], (99, head)]
        for where in {place, ("ares.verdicts", 2)}:
            chain = check_chain(*where, items, name=NAME, keys=[SIGNER.key])
            compare(chain, SIGNED.records, salts={}, first=0, compacted=False)
        with suppress(AresError):
            prove(3, [item for _, item in items], record=SIGNED.records[3], salt=None)
    with suppress(AresError):
        salt = Salt.decode(raw)
        salts = Salts()
        salts.recall(salt)
        for item in SALTED.records:
            drawn, _ = salts.of(item, "id")
            leaf_of(item, salt=drawn, keyed=False)
        chain = check_chain("ares.repair", 2, SALTED.checkpoints, name=NAME, keys=[SIGNER.key])
        compare(chain, SALTED.records, salts={salt.offset: salt}, first=0, compacted=False)


def repaired(name: str, raw: bytes) -> None:
    with suppress(DecodeError):
        found = RepairReport.decode(raw)
        ends({found.plan_id: found}, "ares.repair")


def restored(name: str, raw: bytes) -> None:
    """What a monitor takes up when it begins, counts on and shows."""
    if name != topics.RATES:
        return
    written = [item for _, item in measured(count=60).changes(NOON, 0.01) if item is not None]
    kept: list[Any] = []
    for item in written:
        whole = isinstance(item, Rates) and not item.slice.attribute
        with suppress(DecodeError):
            kept.append(decode_held(item.key, raw if whole else item.encode()))
    ledger = Ledger(LedgerPolicy())
    try:
        ledger.restore(
            next(item for item in kept if isinstance(item, MonitorState)),
            [item for item in kept if isinstance(item, Rates)],
            [item for item in kept if isinstance(item, AnchorFigures)],
            [item for item in kept if isinstance(item, AnchorAnswers)],
            [item for item in kept if isinstance(item, SampledVerdict)],
        )
    except DecodeError:
        return
    for number in range(3):
        seen = read_observation(verdict(900 + number, version="2").encode(), "either")
        ledger.add(seen, int(NOON.timestamp() * 1000) + number, (0, 900 + number))
    ledger.changes(NOON, 0.01)
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.show(ledger, [])
    generate_latest(metrics.registry)


READERS: Final[dict[str, Callable[[str, bytes], Any]]] = {
    "trace": traced,
    "evidence": in_evidence,
    "console": on_the_desk,
    "monitor": followed,
    "monitor that begins": restored,
    "commands": shown,
    "notary and verification": notarised,
    "repairer": repaired,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_whole_record_is_read(reader: str) -> None:
    for name, item in WHOLE.values():
        READERS[reader](name, item.encode())


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("reader", READERS)
def test_a_bent_record_ends_no_reader(reader: str, kind: str) -> None:
    name, item = WHOLE[kind]

    @settings(max_examples=EXAMPLES)
    @given(bent(item.encode()))
    def each(raw: bytes) -> None:
        READERS[reader](name, raw)

    each()


EXAMPLES: Final = 25


@pytest.mark.parametrize("odd", [None, 0, -1, 2.0, 1e308, 10**400, "", {}])
def test_whatever_a_forecast_lacks_or_says_its_release_ends_no_monitor(odd: object) -> None:
    """Every place of it, one after the other."""
    whole = json.loads(WHOLE["release"][1].encode())
    for path in places(whole["forecast"], ("forecast",)):
        for how in ("another", "gone"):
            document = json.loads(json.dumps(whole))
            bend(document, path, how, odd)
            raw = json.dumps(document).encode()
            followed(topics.RELEASES, raw)
            shown(topics.RELEASES, raw)
            traced(topics.RELEASES, raw)


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("side", ["observed", "forecast"])
def test_a_forecast_without_one_of_its_figures_is_refused_by_its_name(
    figure: str, side: str
) -> None:
    document = json.loads(WHOLE["release"][1].encode())
    del document["forecast"]["overall"][side][figure]
    with pytest.raises(DecodeError, match=f"has no figure {figure}"):
        Release.decode(json.dumps(document).encode())


@pytest.mark.parametrize("kind", ["report", "failure", "alarm", "checkpoint", "salt", "state"])
@pytest.mark.parametrize("name", ["partition", "offset", "start", "end"])
@pytest.mark.parametrize("number", [-1, 2**63, 2**70, 0.5])
def test_a_partition_or_an_offset_that_kafka_has_not_is_refused(
    kind: str, name: str, number: float
) -> None:
    whole = WHOLE[kind][1]
    for path in places(json.loads(whole.encode())):
        if path[-1] == name:
            document = json.loads(whole.encode())
            bend(document, path, "another", number)
            with pytest.raises(DecodeError, match=name):
                type(whole).decode(json.dumps(document).encode())
