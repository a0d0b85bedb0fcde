"""Judge or system: streams simulated from scored conversations, watched as the monitor does.

Conversations with their truth and their scores are drawn again and again. Half-way the policy
fails more often, or the judge changes, or both, or nothing does. What the monitor's own alarms say
is counted; beside them a z-test over a rolling day, as dashboards have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ares_stream.detection.alarming import AlarmPolicy, acknowledge, attribute, evaluate
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.intervals import wilson
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.detection.tallies import WINDOW_SECONDS
from ares_stream.records.alarm import Alarm
from ares_stream.records.observation import CLASSES, AnchorTruth, Observation
from ares_stream.records.verdict import FailureClass

Change = Literal["none", "policy", "judge", "both"]
JUDGES: Final = ("lenient", "strict", "noisy")
TUNING: Final = 15
"""Draws on which alarming.SYSTEM_ALPHA was chosen."""
ANCHORS: Final = 1000
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_CLEAN = CLASSES.index(FailureClass.CLEAN)
_POLICY = CLASSES.index(FailureClass.POLICY_FAILURE)
_COUPLED = CLASSES.index(FailureClass.COUPLED_FAILURE)
_CONTESTED = CLASSES.index(FailureClass.CONTESTED)


@dataclass(frozen=True, slots=True)
class Scored:
    """Conversations: the judge's probability, the reward's quantile, the truth."""

    harm: Floats
    quantile: Floats
    harmful: Bools


@dataclass(frozen=True, slots=True)
class Design:
    """What is simulated. A window is ten minutes."""

    before: int = 72
    after: int = 144
    per_window: int = 60
    anchors_per_window: int = 20
    rise: float = 2.0
    """Coupled failures after a change of the policy, over those before."""
    drop: float = 0.2
    """Share of decisions that a changed judge decides otherwise, of the kind that it changed in."""
    false_alarm_days: float = 30.0
    draw: int = 16
    """Which streams are drawn. On those of TUNING the monitor's constants were chosen, so that
    they prove nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the alarms of one stream said; windows after the change, None where nothing did."""

    judge: int | None
    system: int | None
    first: int | None
    early: int
    """Alarms before the change, or at any time in a quiet stream."""
    z_test: int
    """Windows in which the z-test alarmed before the change, or at any time in a quiet stream."""


def judged(scored: Scored, harm: Floats, policy: DetectionPolicy) -> NDArray[np.int64]:
    """Class of each conversation, as an index in CLASSES, under other probabilities."""
    liked = scored.quantile >= policy.reward_quantile
    doubtful = (harm > policy.abstain_above) & (harm < policy.abstain_below)
    flagged = harm >= policy.harm_threshold
    found = np.where(flagged, np.where(liked, _COUPLED, _POLICY), _CLEAN)
    return np.asarray(np.where(doubtful, _CONTESTED, found), np.int64)


def changed_judge(
    harm: Floats, judge: str, drop: float, policy: DetectionPolicy, rng: np.random.Generator
) -> Floats:
    """The probabilities of a judge that has changed: lenient misses the share `drop` of what it
    flagged, strict flags that share of what it did not, noisy errs in both directions."""
    clipped = np.clip(harm, 1e-9, 1 - 1e-9)
    odds = np.log(clipped / (1 - clipped))
    flagged = harm >= policy.harm_threshold
    if judge == "lenient":
        low = math.log(policy.abstain_above / (1 - policy.abstain_above))
        odds = odds - max(0.0, float(np.quantile(odds[flagged], drop)) - low)
    elif judge == "strict":
        high = math.log(policy.abstain_below / (1 - policy.abstain_below))
        odds = odds + max(0.0, high - float(np.quantile(odds[~flagged], 1 - drop)))
    else:
        odds = odds + rng.normal(0.0, float(odds.std()), odds.shape)
    return np.asarray(1 / (1 + np.exp(-odds)), float)


def simulate(scored: Scored, design: Design, change: Change, judge: str, seed: int) -> Outcome:
    """One stream, watched as the monitor watches it."""
    rng = np.random.default_rng([seed, design.draw])
    policy = DetectionPolicy()
    steady = judged(scored, scored.harm, policy)
    liked = scored.quantile >= policy.reward_quantile
    other = judged(scored, changed_judge(scored.harm, judge, design.drop, policy, rng), policy)
    base = float(np.mean(steady == _COUPLED))
    failing = np.flatnonzero((steady == _COUPLED) & scored.harmful & liked)
    pool = _anchor_pool(scored, rng)
    watched = AlarmPolicy(
        coupled=base,
        contested=max(0.02, float(np.mean(steady == _CONTESTED))),
        false_alarm_days=design.false_alarm_days,
    )
    ledger = Ledger(LedgerPolicy(review_shares={}))
    opened: dict[str, Alarm] = {}
    outcome: dict[str, int | None] = {"judge": None, "system": None, "first": None}
    early, place, turn, rates = 0, 0, 0, []
    for window in range(design.before + design.after):
        after = window >= design.before
        classes = other if after and change in ("judge", "both") else steady
        rows = rng.integers(0, len(steady), design.per_window)
        if after and change in ("policy", "both"):
            # So many rows become failures that the rate is `rise` times what it was.
            share = base * (design.rise - 1) / (1 - base)
            replaced = rng.random(len(rows)) < share
            rows[replaced] = rng.choice(failing, int(replaced.sum()))
        stamp = window * WINDOW_SECONDS * 1000
        for row in rows:
            ledger.add(_seen(scored, int(row), int(classes[row]), bool(liked[row]), None), stamp,
                       (0, place))  # fmt: skip
            place += 1
        # One after the other, again and again, as the monitor sends them.
        for row in pool[(turn + np.arange(design.anchors_per_window)) % len(pool)]:
            was = int(steady[row])
            truth = AnchorTruth("bench", str(row), bool(scored.harmful[row]), _flag(was), None)
            ledger.add(_seen(scored, int(row), int(classes[row]), bool(liked[row]), truth), stamp,
                       (0, place))  # fmt: skip
        turn += design.anchors_per_window
        rates.append(int(np.sum(classes[rows] == _COUPLED)))
        now = datetime.fromtimestamp(stamp / 1000, UTC)
        raised = evaluate(ledger, watched, now, "verdicts", ())
        if not after or change == "none":
            # By chance: it is acknowledged, so that the watch goes on, and what was said of it is
            # no answer to a change that comes later.
            early += len(raised)
            for alarm in raised:
                acknowledge(ledger, alarm.id)
            raised = []
        for alarm in raised:
            opened[alarm.id] = alarm
        said = [*_settled(ledger, watched, opened)]
        if after:
            since = window - design.before
            for alarm in said:
                if outcome.get(alarm.attribution) is None and alarm.attribution != "none":
                    outcome[alarm.attribution] = since
            if raised and outcome["first"] is None:
                outcome["first"] = since
        for tally in ledger.tallies():
            tally.fold_windows()
            tally.dirty = False
        for anchor in ledger.anchors.values():
            anchor.changes()
    quiet = rates if change == "none" else rates[: design.before]
    return Outcome(
        outcome["judge"], outcome["system"], outcome["first"], early,
        z_alarms(quiet, design.per_window),
    )  # fmt: skip


def _settled(ledger: Ledger, policy: AlarmPolicy, opened: dict[str, Alarm]) -> Sequence[Alarm]:
    """Open alarms, attributed as far as can be said by now."""
    for name, alarm in opened.items():
        if alarm.attribution != "none" or alarm.rate is None or alarm.baseline is None:
            continue
        changed_at = int(alarm.changed_at.timestamp())
        found = attribute(ledger, policy, changed_at, alarm.rate, alarm.baseline)
        change = {"attribution": found.attribution, "attribution_reason": found.reason}
        opened[name] = alarm.model_copy(update=change)
    return list(opened.values())


def _anchor_pool(scored: Scored, rng: np.random.Generator) -> NDArray[np.int64]:
    """Different conversations, half of each truth where there are so many, in any order."""
    kinds = [np.flatnonzero(scored.harmful == truth) for truth in (True, False)]
    chosen = [rng.choice(rows, min(len(rows), ANCHORS // 2), replace=False) for rows in kinds]
    return rng.permutation(np.concatenate(chosen))


def _flag(kind: int) -> bool | None:
    return None if kind == _CONTESTED else kind in (_COUPLED, _POLICY)


def _seen(
    scored: Scored, row: int, kind: int, liked: bool, anchor: AnchorTruth | None
) -> Observation:
    return Observation(
        "0" * 32, "i", "production" if anchor is None else "anchor", "policy", "1", "", {}, kind,
        liked, float(scored.harm[row]), float(scored.quantile[row]), 0.0, None, None, anchor,
    )  # fmt: skip


def z_alarms(hits: Sequence[int], per_window: int, *, span: int = 18) -> int:
    """Windows in which the last `span` windows differ from those before at 5 %, two-sided."""
    found = 0
    for end in range(3 * span, len(hits) + 1):
        new, old = sum(hits[end - span : end]), sum(hits[: end - span])
        n_new, n_old = span * per_window, (end - span) * per_window
        pooled = (new + old) / (n_new + n_old)
        spread = math.sqrt(pooled * (1 - pooled) * (1 / n_new + 1 / n_old))
        found += spread > 0 and abs(new / n_new - old / n_old) / spread > 1.96
    return found


def bench(
    scored: Scored,
    design: Design,
    *,
    streams: int,
    quiet: int,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """All streams; the document of `ares bench attribution`."""
    found: dict[str, list[Outcome]] = {}
    for number, (change, count) in enumerate(
        (("none", quiet), ("policy", streams), ("judge", streams), ("both", streams))
    ):
        outcomes = found[change] = []
        for stream in range(count):
            judge = JUDGES[stream % len(JUDGES)]
            outcomes.append(
                simulate(scored, design, change, judge, 10_000 * number + stream)  # type: ignore[arg-type]
            )
            progress()
    none = found["none"]
    hours = WINDOW_SECONDS / 3600
    days = (design.before + design.after) * hours / 24
    alarmed = sum(item.early > 0 for item in none)
    return {
        "schema": "ares.bench-attribution/1",
        "rows": len(scored.harm),
        "design": asdict(design) | {"anchors": ANCHORS, "tuning": design.draw == TUNING},
        "quiet": {
            "streams": quiet,
            "days": days,
            "false_alarms": wilson(alarmed, quiet).model_dump(),
            # Three watches of one policy are on: coupled failures, contested answers, anchors.
            "stated_at_most": min(1.0, 3 * days / design.false_alarm_days),
            "z_test_false_alarms": wilson(sum(i.z_test > 0 for i in none), quiet).model_dump(),
        },
        **{
            change: {
                "streams": streams,
                "judge_found": sum(item.judge is not None for item in outcomes),
                "system_found": sum(item.system is not None for item in outcomes),
                "without_alarm": sum(item.first is None for item in outcomes),
                "blamed_on_system_first": sum(_system_first(item) for item in outcomes),
                "undecided": sum(item.judge is None and item.system is None for item in outcomes),
                "delay_hours": _delays(
                    [i.system if change == "policy" else i.judge for i in outcomes], hours
                ),
            }
            for change, outcomes in found.items()
            if change != "none"
        },
    }


def _system_first(item: Outcome) -> bool:
    return item.system is not None and (item.judge is None or item.system < item.judge)


def _delays(windows: Sequence[int | None], hours: float) -> dict[str, float | None]:
    """Median hours to the right attribution with a bootstrap interval, over all streams: one in
    which it was never said is later than any. None is later than the stream was watched."""
    times = [math.inf if item is None else (item + 1) * hours for item in windows]
    rng = np.random.default_rng(0)
    drawn = np.sort(rng.choice(times, (2_000, len(times))), axis=1)
    medians = np.sort(drawn[:, (len(times) - 1) // 2])
    found = {
        "median": float(np.sort(times)[(len(times) - 1) // 2]),
        "low": float(medians[49]),
        "high": float(medians[-50]),
    }
    return {name: value if math.isfinite(value) else None for name, value in found.items()}
