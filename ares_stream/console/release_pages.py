"""Pages of the safety engineer: releases, alarms, the loop live."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.responses import Response

from ares_stream.audit.forecast import errors_of
from ares_stream.console.web import Call, WrongError
from ares_stream.models.releases import Author
from ares_stream.records.alarm import AlarmAcknowledgement
from ares_stream.records.release import ReleaseState

PAIRS = 10
REFRESH_SECONDS = 5


async def releases(call: Call) -> Response:
    """Every release in its present state, newest first, candidates before all."""
    log = await call.desk.outside.log()
    rows = sorted(
        log.releases,
        key=lambda item: (item.state is not ReleaseState.CANDIDATE, -item.changed_at.timestamp()),
    )
    return call.page("releases", rows=rows)


async def release(call: Call) -> Response:
    """One release with those of its plan: gate, forecast, pairs of answers, what can be decided."""
    log = await call.desk.outside.log()
    found = log.select(call.request.path_params["id"])
    plan = found[0].plan_id
    report = call.desk.reports.get(plan or "")
    named = None if report is None else report.gate_report
    gate = None if plan is None else await call.desk.outside.gate(plan, named)
    pairs = [] if plan is None else await call.desk.outside.pairs(plan)
    history = [
        step
        for steps in log.steps
        for step in steps
        if any((step.model, step.digest) == (item.model, item.digest) for item in found)
    ]
    forecast = next((item.forecast for item in found if item.forecast is not None), None)
    is_candidate = all(item.state is ReleaseState.CANDIDATE for item in found)
    return call.page(
        "release",
        releases=found,
        selector=plan or found[0].digest,
        gate=gate,
        report=report,
        pairs=list(pairs)[:PAIRS],
        history=history,
        forecast=forecast,
        came=[]
        if forecast is None or is_candidate
        else errors_of(forecast, call.desk.rates.values()),
        is_candidate=is_candidate,
        is_active=any(item.state is ReleaseState.ACTIVE for item in found),
    )


async def repair(call: Call) -> Response:
    """How one repair ended, with what the gate said: of one that made no release as well."""
    report = call.desk.reports.get(call.request.path_params["id"])
    if report is None:
        raise WrongError(404, "no report of this repair is known here")
    gate = await call.desk.outside.gate(report.plan_id, report.gate_report)
    return call.page("repair", report=report, gate=gate)


async def decide(call: Call) -> Response:
    """Approve, reject or roll back, with the person as the author."""
    call.require_approver()
    verb, reason = call.field("decision"), call.field("reason")
    if verb not in ("approve", "reject", "rollback"):
        raise WrongError(400, "decision: expected approve, reject or rollback")
    if not reason:
        raise WrongError(400, "reason: is missing; it is kept with the release")
    selector = call.request.path_params["id"]
    author = Author(call.person.name, datetime.now(UTC), reason)
    await call.desk.outside.decide(verb, selector, author)
    call.site.told("release decided", {"verb": verb, "release": selector, "by": author.name})
    return call.see(f"/releases/{selector}")


async def alarms(call: Call) -> Response:
    """Open alarms with the records that raised them, and those that were seen."""
    seen = [item for item in reversed(call.desk.alarms.values()) if item.id in
            call.desk.acknowledged]  # fmt: skip
    return call.page("alarms", alarms=call.desk.open_alarms(), seen=seen[:50],
                     acknowledged=call.desk.acknowledged)  # fmt: skip


async def acknowledge(call: Call) -> Response:
    """Take note of an alarm: its watch begins anew."""
    call.require_approver()
    name = call.request.path_params["id"]
    note = call.field("note")
    if not note:
        raise WrongError(400, "note: is missing; say what was found")
    if name in call.desk.acknowledged or name not in call.desk.alarms:
        raise WrongError(409, "no open alarm has this id")
    record = AlarmAcknowledgement(
        alarm_id=name, by=call.person.name, at=datetime.now(UTC), note=note
    )
    # Before it is written: a second form finds no open alarm meanwhile.
    call.desk.acknowledged[name] = record
    try:
        await call.desk.outside.acknowledge(record)
    except BaseException:
        if call.desk.acknowledged.get(name) is record:
            del call.desk.acknowledged[name]
        raise
    call.site.told("alarm acknowledged", {"alarm": name, "by": call.person.name})
    return call.see("/alarms")


async def live(call: Call) -> Response:
    """The loop: what is counted now. A page that was asked to follow loads itself anew."""
    follows = call.request.query_params.get("follow") == "1"
    response = call.page(
        "live",
        follows=follows,
        seconds=REFRESH_SECONDS,
        waiting=call.desk.queue.waiting,
        alarms=call.desk.open_alarms(),
        rates=sorted(call.desk.rates.values(), key=lambda item: item.until, reverse=True)[:20],
        reports=list(reversed(call.desk.reports.values()))[:10],
        active=[item for item in (await call.desk.outside.log()).releases
                if item.state is ReleaseState.ACTIVE],
    )  # fmt: skip
    if follows:
        response.headers["refresh"] = str(REFRESH_SECONDS)
    return response
