"""Which alarms the ledger gives cause for, and whether the system or the judge has changed. Pure.

Rates of false alarms, under no change and for one policy version:

    rise of coupled failures or of contested answers   one in `false_alarm_days` days on average,
    over a baseline, all slices together                at least (half for the whole, half split
                                                         evenly over the slices that may exist)
    rise over the previous version                      the same, where the previous version's rate
                                                         lies below its 99 % confidence sequence
    judge changed, dead letters rose                    the same, of the anchors (each counted once
                                                         from any moment on), of the stream
    reward drifted                                      none by chance: the anchors' text is fixed
    lane silent                                         `silent_seconds` says what is long
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from ares_stream.detection.anchors import AnchorTally, Answers
from ares_stream.detection.intervals import confidence_sequence
from ares_stream.detection.ledger import OLDER, Ledger
from ares_stream.detection.tallies import (
    KEPT_WINDOWS,
    WINDOW_SECONDS,
    SliceTally,
    WatchState,
)
from ares_stream.detection.watches import Counts, Peak, bounded, peak
from ares_stream.records.alarm import Alarm, AlarmKind, Attribution, EvidenceRecord
from ares_stream.records.base import Interval, OffsetRange, digest, instant
from ares_stream.records.interaction import Lane

DAY_WINDOWS: Final = 86_400 // WINDOW_SECONDS
PREVIOUS_ALPHA: Final = 0.01
MIN_PREVIOUS: Final = 100
"""Verdicts of a previous version below which it is no baseline."""
SYSTEM_ALPHA: Final = 0.001
"""Chance of saying `system` although the judge changed as much as the alarm shows. Chosen on the
streams of `ares bench attribution --draw 15`; figures are stated on others."""
DRIFT_ANCHORS: Final = 30
"""Different anchors below which a shift of their rewards says little."""
MAX_EVIDENCE: Final = 100
_KINDS: Final[Mapping[str, AlarmKind]] = {
    "coupled": "coupled_failures_rose",
    "coupled_previous": "coupled_failures_rose_over_previous",
    "contested": "contested_rose",
}


@dataclass(frozen=True, slots=True)
class AlarmPolicy:
    """What is bearable, and how rare a false alarm must be. None watches nothing."""

    coupled: float | None = None
    contested: float | None = 0.3
    dead_letters: float | None = 0.01
    judge_changed: float | None = 0.01
    reward_drift: float | None = 0.25
    """Root-mean-square shift of the anchors' rewards, in standard deviations."""
    false_alarm_days: float = 30.0
    silent_seconds: Mapping[Lane, float] = field(default_factory=dict)
    slices: int = 0
    """Slices that may exist beside the whole: what the multiplicity is paid for."""


class Judgement(NamedTuple):
    """Whether the system or the judge has changed, and what says so."""

    attribution: Attribution
    reason: str


def evaluate(
    ledger: Ledger,
    policy: AlarmPolicy,
    now: datetime,
    verdicts: str,
    covers: tuple[OffsetRange, ...],
) -> list[Alarm]:
    """Alarms that are new, of what was added since the last `changes`. `verdicts` is the name of
    the topic that evidence names offsets of."""
    found: list[Alarm] = []
    # The judge first: what it explains is not the system's.
    for anchor in ledger.anchors.values():
        found.extend(_anchor_alarms(anchor, policy, now, covers))
    for tally in ledger.tallies():
        if tally.dirty and tally.key.lane != "anchor" and tally.key.policy.version != OLDER:
            found.extend(_slice_alarms(ledger, tally, policy, now, verdicts, covers))
    found.extend(_dead_letter_alarms(ledger, policy, now, covers))
    found.extend(_silent(ledger, policy, now, covers))
    return found


def limit(policy: AlarmPolicy, weight: float = 1.0) -> float:
    """Log of the evidence at which an alarm is raised."""
    return math.log(policy.false_alarm_days * DAY_WINDOWS * weight)


def _weight(tally: SliceTally, policy: AlarmPolicy) -> float:
    if policy.slices == 0:
        return 1.0
    return 2.0 * policy.slices if tally.key.attribute else 2.0


def _slice_alarms(
    ledger: Ledger,
    tally: SliceTally,
    policy: AlarmPolicy,
    now: datetime,
    verdicts: str,
    covers: tuple[OffsetRange, ...],
) -> Iterator[Alarm]:
    for kind, baseline in (
        ("coupled", policy.coupled),
        ("contested", policy.contested),
        ("coupled_previous", _previous_baseline(ledger, tally)),
    ):
        if baseline is None:
            continue
        watch = _watch(tally.watches, kind, bounded(baseline), tally.newest)
        windows = tally.series(watch.hits, watch.since)
        if watch.alarm or not any(item.hits for item in windows):
            continue
        top = peak(watch.before, windows, bounded(baseline))
        if top.log < limit(policy, _weight(tally, policy)):
            continue
        rate = _rate(windows, top)
        judgement = attribute(ledger, policy, top.changed_at, rate, baseline)
        alarm = Alarm(
            id=_identity(_KINDS[kind], tally.key.key.decode(), top.changed_at),
            kind=_KINDS[kind],
            slice=tally.key,
            raised_at=now,
            changed_at=_time(top.changed_at),
            rate=rate,
            baseline=baseline,
            baseline_source=_source(kind),
            attribution=judgement.attribution,
            attribution_reason=judgement.reason,
            false_alarm_days=policy.false_alarm_days,
            summary=f"{_WORDS[kind]}: {rate.value:.2%} of {rate.count:,} verdicts since "
            f"{_time(top.changed_at):%Y-%m-%d %H:%M} UTC, baseline {baseline:.2%}",
            evidence=_evidence(tally, verdicts, top) if kind != "contested" else (),
            covers=covers,
        )
        watch.alarm = alarm.id
        yield alarm


_WORDS: Final = {
    "coupled": "coupled failures rose",
    "coupled_previous": "coupled failures rose over the previous version",
    "contested": "contested answers rose",
}


def _source(kind: str) -> str:
    return "previous version" if kind == "coupled_previous" else "settings"


def _watch(watches: dict[str, WatchState], kind: str, baseline: float, newest: int) -> WatchState:
    """The watch of a kind; begun anew where its baseline was changed in the settings."""
    watch = watches.get(kind)
    if watch is None:
        watch = watches[kind] = WatchState(kind)
    elif watch.baseline is not None and watch.baseline != baseline:
        watch.restart(newest)
    watch.baseline = baseline
    return watch


def _previous_baseline(ledger: Ledger, tally: SliceTally) -> float | None:
    """The upper end of the previous version's rate before this one began, fixed once the slice
    is in its third window."""
    watch = tally.watches.get("coupled_previous")
    if watch is not None and watch.baseline is not None:
        return watch.baseline
    first = tally.first_ms // 1000 // WINDOW_SECONDS * WINDOW_SECONDS
    if tally.newest < first + 2 * WINDOW_SECONDS:
        return None
    previous = ledger.previous(tally)
    if previous is None:
        return None
    hits, total = previous.before(first)
    if total < MIN_PREVIOUS:
        return None
    return bounded(confidence_sequence(hits, total, PREVIOUS_ALPHA).high)


def _rate(windows: list[Counts], top: Peak) -> Interval:
    told = [item for item in windows if item.start >= top.changed_at]
    return confidence_sequence(sum(item.hits for item in told), sum(item.total for item in told))


def _evidence(tally: SliceTally, verdicts: str, top: Peak) -> tuple[EvidenceRecord, ...]:
    places = [
        place
        for start, item in sorted(tally.windows.items())
        if start >= top.changed_at
        for place in sorted(item.hits)
    ]
    return tuple(
        EvidenceRecord(topic=verdicts, partition=partition, offset=offset)
        for partition, offset in places[-MAX_EVIDENCE:]
    )


# Judge or system


def attribute(
    ledger: Ledger, policy: AlarmPolicy, changed_at: int, rate: Interval, baseline: float
) -> Judgement:
    """Whether what rose at `changed_at` is the system's doing or the judge's.

    `judge` where the anchors' own alarm is raised. `system` where the anchors since the change
    refute a judge that decides as many of them otherwise as the rise shows (a likelihood ratio
    against a tenth of that, which may be watched; at most SYSTEM_ALPHA wrong), each anchor counted
    once however often it was sent. Else `none`.
    """
    if not ledger.anchors:
        return Judgement("none", "no anchors are sent, so the judge is not watched")
    # A set that is not sent any more says nothing of the judge as it is now.
    anchors = [anchor for anchor in ledger.anchors.values() if anchor.newest >= changed_at]
    if not anchors:
        return Judgement("none", "no anchors have come since the change")
    for anchor in anchors:
        if anchor.watch.alarm or _anchor_peak(anchor, policy).log >= limit(policy):
            return Judgement("judge", f"anchors of {anchor.set} are decided otherwise than before")
    rise = rate.value - baseline
    if rise <= 0:
        return Judgement("none", "the rate since the change is not above the baseline")
    # A conversation that stands in two sets is one anchor.
    answers: dict[str, Answers] = {}
    for anchor in anchors:
        for name, answer in anchor.since(changed_at).items():
            if not answer.flagged:
                before = answers.get(name)
                answers[name] = answer if before is None else before.plus(answer)
    changed, came = sum(item.changed for item in answers.values()), len(answers)
    log = system_evidence([answers[name].share for name in sorted(answers)], rise)
    if log >= math.log(1 / SYSTEM_ALPHA):
        return Judgement(
            "system",
            f"{changed} of {came} different anchors decided otherwise since; a judge that "
            f"explained the rise would change {rise:.1%} of them",
        )
    needed = math.ceil(math.log(1 / SYSTEM_ALPHA) / system_evidence([0.0], rise))
    return Judgement(
        "none",
        f"{changed} of {came} different anchors decided otherwise since: too few to say of a rise "
        f"by {rise:.1%}, which takes {needed:,} unchanged ones that were not flagged",
    )


def system_evidence(shares: Sequence[float], rise: float) -> float:
    """Log likelihood ratio of a judge that changes a tenth of `rise` of its decisions against one
    that changes `rise` of them: evidence that the judge is not the cause. `shares` holds, of each
    anchor, how much of its answers is otherwise; the ratio is linear in it, so that its mean is at
    most 1 under a judge that changes `rise` of them on average."""
    rise = min(rise, 0.9)
    unchanged = (1 - rise / 10) / (1 - rise)
    return sum(math.log(unchanged + share * (0.1 - unchanged)) for share in shares)


def _anchor_peak(anchor: AnchorTally, policy: AlarmPolicy) -> Peak:
    if policy.judge_changed is None:
        return Peak(-math.inf, -1, 0)
    return anchor.peak(bounded(policy.judge_changed))


def _anchor_alarms(
    anchor: AnchorTally, policy: AlarmPolicy, now: datetime, covers: tuple[OffsetRange, ...]
) -> Iterator[Alarm]:
    if not anchor.dirty:
        return
    if policy.judge_changed is not None:
        _watch({"anchors": anchor.watch}, "anchors", bounded(policy.judge_changed), anchor.newest)
        if not anchor.watch.alarm and (top := _anchor_peak(anchor, policy)).log >= limit(policy):
            told = anchor.since(top.changed_at).values()
            rate = confidence_sequence(sum(item.changed for item in told), len(told))
            alarm = Alarm(
                id=_identity("judge_changed", anchor.set, top.changed_at),
                kind="judge_changed",
                raised_at=now,
                changed_at=_time(top.changed_at),
                rate=rate,
                baseline=policy.judge_changed,
                baseline_source="settings",
                attribution="judge",
                attribution_reason=f"anchors of {anchor.set} are decided otherwise than before",
                false_alarm_days=policy.false_alarm_days,
                summary=f"the judge has changed: {rate.value:.1%} of {rate.count:,} different "
                f"anchors of {anchor.set} are decided otherwise than when the set was made",
                covers=covers,
            )
            anchor.watch.alarm = alarm.id
            yield alarm
    if policy.reward_drift is not None:
        for reward in anchor.rewards:
            drift = anchor.drift(reward)
            if drift is None or drift[2] < DRIFT_ANCHORS or drift[1] < policy.reward_drift:
                continue
            if reward in anchor.drifted:
                continue
            anchor.drifted.add(reward)
            yield Alarm(
                id=_identity("reward_drifted", f"{anchor.set} {reward}", 0),
                kind="reward_drifted",
                raised_at=now,
                changed_at=now,
                baseline=policy.reward_drift,
                baseline_source="settings",
                attribution="system",
                attribution_reason="the anchors' text is fixed; the reward release scores it "
                "otherwise",
                false_alarm_days=0.0,
                summary=f"reward release {reward} scores the anchors of {anchor.set} otherwise: "
                f"{drift[1]:.2f} standard deviations (root mean square), mean {drift[0]:+.2f}",
                covers=covers,
            )


# The stream


def _dead_letter_alarms(
    ledger: Ledger, policy: AlarmPolicy, now: datetime, covers: tuple[OffsetRange, ...]
) -> Iterator[Alarm]:
    if policy.dead_letters is None or not ledger.deadletters:
        return
    totals: dict[int, int] = dict(ledger.deadletters)
    for group in ledger.groups.values():
        for start, item in group.whole.windows.items():
            totals[start] = totals.get(start, 0) + item.total
    # A day and no more: a group's windows are let go a day before its newest.
    newest = max(totals)
    edge = newest - KEPT_WINDOWS * WINDOW_SECONDS
    for start in [start for start in ledger.deadletters if start < edge]:
        del ledger.deadletters[start]
    watch = _watch(ledger.watches, "dead_letters", bounded(policy.dead_letters), newest)
    kept = [
        Counts(start, totals[start], ledger.deadletters.get(start, 0))
        for start in sorted(totals)
        if start >= max(edge, watch.since)
    ]
    if not watch.alarm and (top := peak(watch.before, kept, bounded(policy.dead_letters))).log >= (
        limit(policy)
    ):
        rate = _rate(kept, top)
        alarm = Alarm(
            id=_identity("dead_letters_rose", "", top.changed_at),
            kind="dead_letters_rose",
            raised_at=now,
            changed_at=_time(top.changed_at),
            rate=rate,
            baseline=policy.dead_letters,
            baseline_source="settings",
            attribution="system",
            attribution_reason="what is refused is not judged",
            false_alarm_days=policy.false_alarm_days,
            summary=f"dead letters rose: {rate.value:.2%} of {rate.count:,} records since "
            f"{_time(top.changed_at):%Y-%m-%d %H:%M} UTC",
            covers=covers,
        )
        watch.alarm = alarm.id
        yield alarm


def _silent(
    ledger: Ledger, policy: AlarmPolicy, now: datetime, covers: tuple[OffsetRange, ...]
) -> Iterator[Alarm]:
    for lane, seconds in policy.silent_seconds.items():
        last = ledger.lanes.get(lane)
        if last is None:
            continue
        watch = ledger.watches.setdefault(f"silent {lane}", WatchState("silent"))
        quiet = now.timestamp() - last / 1000
        if quiet < seconds:
            watch.alarm = ""
        elif not watch.alarm:
            watch.alarm = _identity("lane_silent", lane, last)
            yield Alarm(
                id=watch.alarm,
                kind="lane_silent",
                raised_at=now,
                changed_at=_time(last // 1000),
                attribution="none",
                attribution_reason="nothing was judged",
                false_alarm_days=0.0,
                summary=f"lane {lane} is silent: no verdict for {quiet:,.0f} s",
                covers=covers,
            )


def acknowledge(ledger: Ledger, alarm: str) -> bool:
    """Begin the watch that raised an alarm anew; whether there was one."""
    for tally in ledger.tallies():
        for watch in tally.watches.values():
            if watch.alarm == alarm:
                watch.restart(tally.newest + WINDOW_SECONDS)
                tally.dirty = True
                return True
    for anchor in ledger.anchors.values():
        if anchor.watch.alarm == alarm:
            anchor.watch.restart(anchor.newest + WINDOW_SECONDS)
            anchor.dirty = True
            return True
    for watch in ledger.watches.values():
        if watch.alarm == alarm and watch.kind != "silent":
            watch.restart(max(ledger.deadletters, default=0) + WINDOW_SECONDS)
            return True
    return False


def _identity(kind: str, of: str, changed_at: int) -> str:
    return digest([kind, of, changed_at])[:16]


def _time(seconds: int) -> datetime:
    return instant(1000 * max(0, seconds))
