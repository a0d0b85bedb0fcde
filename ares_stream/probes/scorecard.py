"""A fixed, versioned set of probes, and the score card of a policy and its reward model on it.

Two teams that name the same set, judges and detection policy may compare their cards. The set
lies in a file (cfr_probes_1.jsonl) and its digest here, so that it cannot drift with the
taxonomy it was once drawn from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final, Protocol

from ares_stream.detection.assess import Scored, assess
from ares_stream.detection.decide import DetectionPolicy
from ares_stream.detection.intervals import wilson
from ares_stream.detection.ledger import Ledger, LedgerPolicy
from ares_stream.errors import IntegrityError, ScoringError, SettingsError, TargetError
from ares_stream.probes.targets import Answer, Query, Target
from ares_stream.records.base import digest
from ares_stream.records.interaction import Interaction, Message
from ares_stream.records.observation import CLASSES, observe
from ares_stream.records.verdict import FailureClass, SourceCoordinates, Verdict

SETS: Final = {"1": "35ad26492471fa876cb9ed636e2456379dbecbd2848ba62b5bc06b4a6b2ddaf6"}
"""Version → SHA-256 of the set's canonical JSON."""
SCHEMA: Final = "ares.cfr-card/1"
MAX_SILENT: Final = 0.05
"""More unanswered or unscored probes than this share make a card that compares with nothing."""
_AXES: Final = ("topic", "tactic", "persona", "goal")
_CHUNK: Final = 16


class Scorer(Protocol):
    """The panel of judges and the reward model."""

    async def score(self, interactions: Sequence[Interaction]) -> Sequence[Scored | ScoringError]:
        """One result per interaction, in order."""
        ...


@dataclass(frozen=True, slots=True)
class FixedProbe:
    """One probe of a set; `components` name its topic, persona, tactic and goal."""

    id: str
    messages: tuple[Message, ...]
    components: dict[str, str]


def load_set(version: str) -> tuple[FixedProbe, ...]:
    """The probes of a version. Raises SettingsError for an unknown one, IntegrityError when the
    installed file is not that version."""
    expected = SETS.get(version)
    if expected is None:
        raise SettingsError(f"probe set {version}: unknown; one of {', '.join(SETS)}")
    file = resources.files("ares_stream.probes").joinpath(f"cfr_probes_{version}.jsonl")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    if digest(rows) != expected:
        raise IntegrityError(f"cfr_probes_{version}.jsonl: not probe set {version}; install again")
    return tuple(
        FixedProbe(
            row["id"],
            tuple(Message(role=role, content=content) for role, content in row["messages"]),
            row["components"],
        )
        for row in rows
    )


async def score_card(
    target: Target,
    scorer: Scorer,
    version: str,
    policy: DetectionPolicy,
    *,
    environment: dict[str, str],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Ask every probe once and decide as the stream does. JSON-ready, without any text.

    Raises TargetError when more than 5 % of the probes get no answer or no score, and what the
    target and the scorer raise.
    """
    probes = load_set(version)
    verdicts: list[Verdict] = []
    silent = 0
    for start in range(0, len(probes), _CHUNK):
        part = probes[start : start + _CHUNK]
        answers = await target.ask([Query(probe.messages) for probe in part])
        asked = [
            (start + place, _interaction(probe, answer, target))
            for place, (probe, answer) in enumerate(zip(part, answers, strict=True))
            if isinstance(answer, Answer)
        ]
        scores = await scorer.score([interaction for _, interaction in asked]) if asked else []
        for (offset, interaction), score in zip(asked, scores, strict=True):
            if isinstance(score, ScoringError):
                continue
            source = SourceCoordinates(
                topic=f"probe-set:{version}", partition=0, offset=offset, timestamp_ms=0
            )
            verdicts.append(assess(interaction, score, source, "probe", policy))
        silent = start + len(part) - len(verdicts)
        if silent > MAX_SILENT * len(probes):
            raise TargetError(
                f"{silent} of {start + len(part)} probes got no answer or no score; at most "
                f"{MAX_SILENT:.0%} may: mend the target and run again"
            )
        progress(start + len(part), len(probes))
    return _card(verdicts, version, policy, target, silent, environment)


def _interaction(probe: FixedProbe, answer: Answer, target: Target) -> Interaction:
    return Interaction(
        id=probe.id,
        occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
        messages=probe.messages,
        response=answer.text,
        policy=target.policy,
        attributes=probe.components,
    )


def _card(
    verdicts: Sequence[Verdict],
    version: str,
    policy: DetectionPolicy,
    target: Target,
    silent: int,
    environment: dict[str, str],
) -> dict[str, Any]:
    ledger = Ledger(LedgerPolicy(slices=_AXES, max_values=len(verdicts), review_shares={}))
    for item in verdicts:
        place = item.source.partition, item.source.offset
        ledger.add(observe(item, policy.scored_high_when), item.source.timestamp_ms, place)
    # One target and one panel: one group.
    (group,) = ledger.groups.values()
    classes = dict(zip(CLASSES, group.whole.classes, strict=True))
    total, coupled = group.whole.total, group.whole.coupled
    harmful = coupled + classes[FailureClass.POLICY_FAILURE]
    lift = group.whole.figures().lift
    judges = sorted({name for verdict in verdicts for name in verdict.harm.judges})
    agreeing = sum(
        len({value >= policy.harm_threshold for value in verdict.harm.judges.values()}) == 1
        for verdict in verdicts
    )
    return {
        "schema": SCHEMA,
        "probe_set": {"version": version, "sha256": SETS[version]},
        "target": target.policy.model_dump(),
        "releases": dict(verdicts[0].releases) if verdicts else {},
        "detection_policy": {"sha256": policy.digest, **policy.model_dump(mode="json")},
        "probes": total,
        "without_verdict": silent,
        "classes": {name.value: classes[name] for name in FailureClass},
        "coupled_failure_rate": wilson(coupled, total).model_dump(),
        "policy_harm": wilson(harmful, total).model_dump(),
        "reward_blind_rate": wilson(coupled, harmful).model_dump(),
        "coupling_lift": None if lift is None else lift.model_dump(),
        "judge_agreement": (
            wilson(agreeing, len(verdicts)).model_dump() if len(judges) > 1 else None
        ),
        "by_component": {
            axis: {
                value: wilson(item.coupled, item.total).model_dump()
                for value, item in sorted(group.values.get(axis, {}).items())
            }
            for axis in _AXES
        },
        "environment": environment,
    }


def as_markdown(card: dict[str, Any]) -> str:
    """The card as a page: the rates, then the topics from the worst down."""

    def interval(item: dict[str, Any] | None, form: str = ".1%") -> str:
        if item is None:
            return "–"
        return f"{item['value']:{form}} ({item['low']:{form}} to {item['high']:{form}})"

    rows = [
        ("coupled-failure rate", interval(card["coupled_failure_rate"])),
        ("harmful answers", interval(card["policy_harm"])),
        ("reward model blind to harm", interval(card["reward_blind_rate"])),
        ("coupling lift", interval(card["coupling_lift"], ".2f")),
        ("judges agree", interval(card["judge_agreement"])),
        ("contested", f"{card['classes']['contested']}"),
        ("probes", f"{card['probes']}, {card['without_verdict']} without a verdict"),
        ("probe set", f"{card['probe_set']['version']}, {card['probe_set']['sha256'][:12]}"),
        ("target", f"{card['target']['name']} {card['target']['version']}"),
        *((f"model {name}", value[:12]) for name, value in card["releases"].items()),
    ]
    topics = sorted(card["by_component"]["topic"].items(), key=lambda item: -item[1]["value"])
    lines = ["# Coupled failures: score card", "", "| figure | value (95 %) |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "| topic | coupled-failure rate |", "|---|---|"]
    lines += [f"| {name} | {interval(value)} |" for name, value in topics]
    return "\n".join(lines) + "\n"
