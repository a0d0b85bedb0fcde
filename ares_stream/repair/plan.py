"""From found failures to what a repair trains on and is tested on. Pure: the same failures,
labels, replay and policy give the same plan, whatever their order, and its id is its content.

What is asked of each failure, in this order; what is left out is named with its reason:

    usable       decided, not refuted by a person, with an answer to teach, not too long
    one of many  near copies count once, so that a flood of one prompt weighs one prompt
    plausible    not an outlier of the batch in length, script or wording, unless confirmed
    within caps  no source gives more than a count and a share of the batch
    one side     a family of prompts is trained on or held out, never both

The caps, the collapse of copies and the quarantine answer poisoned feedback: 1 to 5 % of poisoned
preferences steer a model, and some 250 documents suffice whatever the size of the rest.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ares_stream.errors import IntegrityError, RepairError
from ares_stream.records.base import Identifier, Slice, digest
from ares_stream.records.interaction import Interaction, Message
from ares_stream.records.label import Label
from ares_stream.records.repair import CoupledFailure
from ares_stream.records.verdict import FailureClass
from ares_stream.repair.plan_policy import PlanPolicy
from ares_stream.repair.similarity import near_copies, normalised

SafeSource = Literal["reference", "resampled", "configured", "response"]
"""The record's reference; the policy, asked again; the settings' refusals; or the recorded answer,
where the policy was right and only the reward model was not."""
Reason = Literal[
    "refuted",
    "labels_contradict",
    "contested",
    "not_a_failure",
    "no_text",
    "too_long",
    "no_safe_answer",
    "near_copy",
    "copy_of_refuted",
    "outlier",
    "source_cap",
]
MAX_LABELLED: Final = 200
"""Conversations that people called harmless, of a plan: each is answered twice for the gate."""
ENOUGH_FOR_OUTLIERS: Final = 20
"""Below this a median and its spread say nothing of what is usual."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sample(_Part):
    """A failure: an answer to unlearn, an answer to learn, and where both came from."""

    id: Identifier
    prompt_messages: tuple[Message, ...] = Field(min_length=1)
    harmful: str = Field(min_length=1)
    safe: str = Field(min_length=1)
    safe_source: SafeSource
    weight: float = Field(gt=0.0, allow_inf_nan=False)
    family: Identifier
    attributes: dict[Slice, Slice]
    source: Identifier


class ReplaySample(_Part):
    """A conversation that is right as it is."""

    messages: tuple[Message, ...] = Field(min_length=1)
    response: str = Field(min_length=1)


class ValidatedPair(_Part):
    """Two answers whose order people stand by."""

    messages: tuple[Message, ...] = Field(min_length=1)
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)


class Replay(_Part):
    """What the repair must not change: benign conversations, harmless prompts that look harmful
    (with helpful answers), and validated preferences."""

    benign: tuple[ReplaySample, ...] = ()
    over_refusal: tuple[ReplaySample, ...] = ()
    validated: tuple[ValidatedPair, ...] = ()


_Entry = TypeVar("_Entry", ReplaySample, ValidatedPair)


class LeftOut(_Part):
    """A failure that is not in the plan, and why."""

    id: Identifier
    reason: Reason


class Plan(_Part):
    """What one repair trains on and is tested on. `id` is the digest of all the rest."""

    schema_: Literal["ares.plan/1"] = Field("ares.plan/1", alias="schema")
    id: Identifier
    train: tuple[Sample, ...] = Field(min_length=1)
    held_out: tuple[Sample, ...] = Field(min_length=1)
    benign: tuple[ReplaySample, ...] = Field(min_length=1)
    over_refusal: tuple[ReplaySample, ...] = Field(min_length=1)
    validated: tuple[ValidatedPair, ...] = Field(min_length=1)
    left_out: tuple[LeftOut, ...]
    labelled: tuple[ReplaySample, ...] = ()
    """What was flagged and people called harmless: held out, so that the gate sees whether the
    repair makes the policy refuse it."""
    policy: PlanPolicy

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True
    )

    @property
    def counts(self) -> dict[str, int]:
        """How many are in each part, have a safe answer of each source, and were left out for
        each reason."""
        parts = {
            "train": len(self.train),
            "held_out": len(self.held_out),
            "benign": len(self.benign),
            "over_refusal": len(self.over_refusal),
            "validated": len(self.validated),
        }
        if self.labelled:
            parts["labelled"] = len(self.labelled)
        sources = Counter(f"safe_{name}" for name in self.safe_sources)
        reasons = Counter(f"left_out_{item.reason}" for item in self.left_out)
        return parts | dict(sorted(sources.items())) | dict(sorted(reasons.items()))

    @property
    def safe_sources(self) -> tuple[SafeSource, ...]:
        """Where each failure's safe answer comes from."""
        return tuple(sample.safe_source for sample in (*self.train, *self.held_out))

    def content_id(self) -> str:
        """The id that this content has: 32 hexadecimal digits. Without labelled conversations it
        is that of a plan of before they were known."""
        aside = {"id"} if self.labelled else {"id", "labelled"}
        return digest(self.model_dump(mode="json", exclude=aside))[:32]

    def checked(self) -> Self:
        """Itself. Raises IntegrityError when its id is not its content's."""
        if self.content_id() != self.id:
            raise IntegrityError(f"plan {self.id}: its content is that of {self.content_id()}")
        return self


def settle_labels(labels: Iterable[Label]) -> tuple[dict[str, Label], frozenset[str]]:
    """Each interaction's label, and the interactions on which reviewers contradict each other.

    A reviewer's later label replaces their earlier one.
    """
    by_reviewer: dict[tuple[str, str], Label] = {}
    for label in labels:
        key = (label.interaction_id, label.reviewer)
        known = by_reviewer.get(key)
        if known is None or known.decided_at <= label.decided_at:
            by_reviewer[key] = label
    settled: dict[str, Label] = {}
    opinions: dict[str, set[bool]] = defaultdict(set)
    for (interaction, _), label in sorted(by_reviewer.items()):
        opinions[interaction].add(label.harmful)
        settled[interaction] = label
    contradicting = frozenset(name for name, held in opinions.items() if len(held) > 1)
    return settled, contradicting


def plan(
    failures: Sequence[CoupledFailure],
    labels: Mapping[str, Label],
    replay: Replay,
    policy: PlanPolicy,
    *,
    contradicting: Collection[str] = frozenset(),
    resampled: Mapping[str, str] | None = None,
) -> Plan:
    """Make the plan. `labels` and `contradicting` come from `settle_labels`; `resampled` maps an
    interaction's id to a safe answer that the policy itself gave when asked again.

    Raises RepairError when the replay lacks a kind (a repair without it learns to refuse
    everything), all failures are of one family, or too few are left to train on.
    """
    _refuse_missing_replay(replay)
    left_out: dict[str, Reason] = {}
    once = {failure.interaction.id: failure for failure in sorted(failures, key=_order)}
    samples: dict[str, Sample] = {}
    for name, failure in once.items():
        outcome = _sample(failure, labels, contradicting, resampled or {}, policy)
        if isinstance(outcome, Sample):
            samples[name] = outcome
        else:
            left_out[name] = outcome
    kept = _collapse(samples, once, labels, left_out, policy)
    kept = _quarantine(kept, labels, left_out, policy)
    kept = _cap(kept, left_out, policy)
    train, held_out = _split(_families(kept, policy), policy)
    if len(train) < policy.min_train:
        raise RepairError(
            f"{len(train)} failures are left to train on, min_train is {policy.min_train}; of "
            f"{len(once)} were left out: {_counted(left_out.values()) or 'none'}"
        )
    wanted = math.ceil(policy.replay_per_sample * (len(train) + len(held_out)))
    whole = Plan(
        id="-",
        train=tuple(train),
        held_out=tuple(held_out),
        benign=_mix(replay.benign, wanted, policy),
        over_refusal=_mix(replay.over_refusal, wanted, policy),
        validated=_mix(replay.validated, wanted, policy),
        left_out=tuple(LeftOut(id=name, reason=left_out[name]) for name in sorted(left_out)),
        labelled=_labelled(once, left_out, policy),
        policy=policy,
    )
    return whole.model_copy(update={"id": whole.content_id()})


def unanswered(
    failures: Sequence[CoupledFailure],
    labels: Mapping[str, Label],
    policy: PlanPolicy,
    *,
    contradicting: Collection[str] = frozenset(),
    most: int,
) -> tuple[CoupledFailure, ...]:
    """The failures for which a safe answer of the policy's own would be used: up to `most`,
    picked by a hash of their ids, so that the same failures give the same ones."""
    once = {failure.interaction.id: failure for failure in sorted(failures, key=_order)}
    wanted: list[CoupledFailure] = []
    for name in sorted(once, key=lambda name: _hash(policy.seed, "unanswered", name)):
        outcome = _sample(once[name], labels, contradicting, {name: "."}, policy)
        if isinstance(outcome, Sample) and outcome.safe_source == "resampled":
            wanted.append(once[name])
    return tuple(wanted[:most])


def _order(failure: CoupledFailure) -> tuple[str, str]:
    return failure.interaction.id, failure.verdict.id


def _refuse_missing_replay(replay: Replay) -> None:
    for kind in ("benign", "over_refusal", "validated"):
        if len(getattr(replay, kind)) < 2:
            raise RepairError(
                f"replay.{kind}: needs at least two entries, and better hundreds; a repair "
                "without them learns to refuse everything"
            )


def _sample(
    failure: CoupledFailure,
    labels: Mapping[str, Label],
    contradicting: Collection[str],
    resampled: Mapping[str, str],
    policy: PlanPolicy,
) -> Sample | Reason:
    interaction, verdict = failure.interaction, failure.verdict
    label = labels.get(interaction.id)
    if interaction.id in contradicting:
        return "labels_contradict"
    if label is not None and not label.harmful:
        return "refuted"
    if verdict.failure_class is FailureClass.CONTESTED and label is None:
        return "contested"
    if verdict.failure_class is FailureClass.CLEAN and label is None:
        return "not_a_failure"
    answers = _answers(failure, resampled, policy)
    if not answers[0].strip():
        return "no_text"
    if answers[1] is None:
        return "no_safe_answer"
    harmful, (safe, safe_source) = answers[0], answers[1]
    turns = "".join(message.content for message in interaction.messages)
    if len(turns) + max(len(harmful), len(safe)) > policy.max_characters:
        return "too_long"
    return Sample(
        id=interaction.id,
        prompt_messages=interaction.messages,
        harmful=harmful,
        safe=safe,
        safe_source=safe_source,
        weight=1.0 if label is None else policy.confirmed_weight,
        family="-",
        attributes=_attributes(interaction),
        source=_source(interaction, policy),
    )


def _answers(
    failure: CoupledFailure, resampled: Mapping[str, str], policy: PlanPolicy
) -> tuple[str, tuple[str, SafeSource] | None]:
    """The harmful answer, and the safe one with its source where there is one."""
    interaction = failure.interaction
    reference = interaction.reference
    if failure.verdict.failure_class is FailureClass.REWARD_FAILURE:
        # The policy was right; the reward model prefers the reference that is harmful.
        harmful = (reference.rejected if reference else None) or ""
        return harmful, (interaction.response, "response") if interaction.response else None
    if reference is not None and reference.chosen and reference.chosen.strip():
        return interaction.response, (reference.chosen, "reference")
    if resampled.get(interaction.id, "").strip():
        return interaction.response, (resampled[interaction.id], "resampled")
    if policy.refusals:
        pick = int(_hash(policy.seed, "refusal", interaction.id), 16) % len(policy.refusals)
        return interaction.response, (policy.refusals[pick], "configured")
    return interaction.response, None


def _attributes(interaction: Interaction) -> dict[str, str]:
    components = interaction.probe.components if interaction.probe else {}
    return dict(sorted({**interaction.attributes, **components}.items()))


def _source(interaction: Interaction, policy: PlanPolicy) -> str:
    if interaction.probe is not None:
        return "probe"
    return interaction.attributes.get(policy.source_attribute) or "unknown"


def _collapse(
    samples: Mapping[str, Sample],
    failures: Mapping[str, CoupledFailure],
    labels: Mapping[str, Label],
    left_out: dict[str, Reason],
    policy: PlanPolicy,
) -> list[Sample]:
    """One of each cluster of near copies: a confirmed one first. A copy of what a person called
    wrong is as wrong, and what people called both right and wrong is neither."""
    refuted = [name for name in failures if name in labels and not labels[name].harmful]
    names = [*samples, *refuted]
    clusters: dict[int, list[str]] = defaultdict(list)
    texts = [_text(samples[name]) if name in samples else _raw(failures[name]) for name in names]
    for name, cluster in zip(names, near_copies(texts, policy.near_copy), strict=True):
        clusters[cluster].append(name)
    kept: list[Sample] = []
    for members in clusters.values():
        live = [samples[name] for name in members if name in samples]
        if len(live) < len(members):
            contradicts = any(item.id in labels for item in live)
            for item in live:
                left_out[item.id] = "labels_contradict" if contradicts else "copy_of_refuted"
        elif live:
            best = min(live, key=lambda item: (-item.weight, _hash(policy.seed, item.id)))
            kept.append(best)
            left_out.update({item.id: "near_copy" for item in live if item is not best})
    return sorted(kept, key=lambda item: item.id)


def _labelled(
    failures: Mapping[str, CoupledFailure], left_out: Mapping[str, Reason], policy: PlanPolicy
) -> tuple[ReplaySample, ...]:
    """Conversations whose flag a person refuted, one of each prompt. Not those where the reward
    model alone was at fault: nobody flagged what the policy answered."""
    found: dict[str, ReplaySample] = {}
    for name, reason in sorted(left_out.items()):
        interaction = failures[name].interaction
        flagged = failures[name].verdict.failure_class is not FailureClass.REWARD_FAILURE
        if reason == "refuted" and flagged and interaction.response.strip():
            turns = "\n".join(turn.content for turn in interaction.messages)
            if len(turns) + len(interaction.response) <= policy.max_characters:
                row = ReplaySample(messages=interaction.messages, response=interaction.response)
                found.setdefault(normalised(turns), row)
    order = sorted(found, key=lambda turns: _hash(policy.seed, "labelled", turns))
    return tuple(found[turns] for turns in order[:MAX_LABELLED])


def _text(sample: Sample) -> str:
    return "\n".join([*(turn.content for turn in sample.prompt_messages), sample.harmful])


def _raw(failure: CoupledFailure) -> str:
    interaction = failure.interaction
    return "\n".join([*(turn.content for turn in interaction.messages), interaction.response])


def _quarantine(
    samples: Sequence[Sample],
    labels: Mapping[str, Label],
    left_out: dict[str, Reason],
    policy: PlanPolicy,
) -> list[Sample]:
    """Leave out what is unlike the batch in length, letters or wording. People know better: what
    they confirmed stays."""
    if len(samples) < ENOUGH_FOR_OUTLIERS:
        return list(samples)
    features = np.array(_features([_text(sample) for sample in samples]))
    centre = np.median(features, axis=0)
    # 1.4826 makes the median deviation a standard deviation under a normal law. A batch of equal
    # lengths has none: then a deviation counts against a tenth of a unit.
    spread = np.maximum(1.4826 * np.median(np.abs(features - centre), axis=0), 0.1)
    far = (np.abs(features - centre) / spread > policy.outlier_deviations).any(axis=1)
    kept: list[Sample] = []
    for sample, outlying in zip(samples, far, strict=True):
        if outlying and sample.id not in labels:
            left_out[sample.id] = "outlier"
        else:
            kept.append(sample)
    return kept


def _features(texts: Sequence[str]) -> list[tuple[float, float, float]]:
    """Per text: log length, log odds of letters of the batch's main script, and how usual its
    trigrams are (mean log of the share of texts that hold them)."""
    plain = [normalised(text) for text in texts]
    trigrams = [{text[start : start + 3] for start in range(len(text) - 2)} for text in plain]
    holders = Counter(piece for pieces in trigrams for piece in pieces)
    scripts = [Counter(map(_script, text)) for text in plain]
    main = sum(scripts, Counter()).most_common(1)[0][0]
    rows: list[tuple[float, float, float]] = []
    for text, pieces, letters in zip(plain, trigrams, scripts, strict=True):
        usual = sum(math.log(holders[piece] / len(texts)) for piece in sorted(pieces))
        rows.append(
            (
                math.log1p(len(text)),
                math.log((letters[main] + 1) / (len(text) - letters[main] + 1)),
                usual / max(1, len(pieces)),
            )
        )
    return rows


def _script(letter: str) -> int:
    """Coarse class of a letter: digits and signs, Latin, or a block of 1,024 code points."""
    if not letter.isalpha():
        return -1
    return 0 if ord(letter) < 0x0250 else 1 + ord(letter) // 1024


def _cap(
    samples: Sequence[Sample], left_out: dict[str, Reason], policy: PlanPolicy
) -> list[Sample]:
    """Hold every source to a count and to a share of what is kept. Confirmed ones stay first."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    free: list[Sample] = []
    for sample in samples:
        (free if sample.source in policy.uncapped_sources else groups[sample.source]).append(sample)
    for members in groups.values():
        members.sort(key=lambda item: (-item.weight, _hash(policy.seed, item.id)))
    cap = _largest_cap([len(members) for members in groups.values()], len(free), policy)
    kept = list(free)
    for members in groups.values():
        kept.extend(members[:cap])
        left_out.update({item.id: "source_cap" for item in members[cap:]})
    return sorted(kept, key=lambda item: item.id)


def _largest_cap(sizes: Sequence[int], free: int, policy: PlanPolicy) -> int:
    """The largest count per source that keeps each within its share of what is then kept.

    An equal part of all sources is always allowed: three sources cannot each be a quarter.
    """
    if not sizes:
        return policy.max_per_source
    share = max(policy.max_share, 1 / (len(sizes) + bool(free)))
    for cap in range(min(policy.max_per_source, max(sizes)), 1, -1):
        total = free + sum(min(size, cap) for size in sizes)
        if cap <= share * total:
            return cap
    return 1


def _families(samples: Sequence[Sample], policy: PlanPolicy) -> list[Sample]:
    """Name each sample's family: its axes, or without any its prompt's near copies."""
    named: list[Sample] = []
    nameless: list[Sample] = []
    for sample in samples:
        axes = [axis for axis in policy.family_axes if axis in sample.attributes]
        if axes:
            family = digest([[axis, sample.attributes[axis]] for axis in axes])[:16]
            named.append(sample.model_copy(update={"family": family}))
        else:
            nameless.append(sample)
    prompts = ["\n".join(turn.content for turn in item.prompt_messages) for item in nameless]
    clusters: dict[int, list[int]] = defaultdict(list)
    for index, cluster in enumerate(near_copies(prompts, policy.family_similarity)):
        clusters[cluster].append(index)
    for members in clusters.values():
        family = min(hashlib.sha256(prompts[index].encode()).hexdigest() for index in members)[:16]
        named.extend(nameless[index].model_copy(update={"family": family}) for index in members)
    return sorted(named, key=lambda item: item.id)


def _split(samples: Sequence[Sample], policy: PlanPolicy) -> tuple[list[Sample], list[Sample]]:
    """Whole families to either side, in the order of a hash, until enough are held out."""
    sizes = Counter(sample.family for sample in samples)
    if len(sizes) < 2:
        raise RepairError(
            f"{len(samples)} failures of {len(sizes)} family of prompts: one side of the split "
            "would be empty; wait for others, or name finer family_axes"
        )
    wanted = max(1, round(policy.held_out_share * len(samples)))
    aside: set[str] = set()
    count = 0
    for family in sorted(sizes, key=lambda name: _hash(policy.seed, "split", name)):
        # A family that would overshoot by more than is missing is trained on instead.
        if count + sizes[family] - wanted <= wanted - count and len(aside) < len(sizes) - 1:
            aside.add(family)
            count += sizes[family]
    if not aside:
        aside.add(min(sizes, key=lambda name: (sizes[name], _hash(policy.seed, "split", name))))
    train = [sample for sample in samples if sample.family not in aside]
    return train, [sample for sample in samples if sample.family in aside]


def _mix(entries: Sequence[_Entry], wanted: int, policy: PlanPolicy) -> tuple[_Entry, ...]:
    """Up to `wanted` different entries, picked by a hash of their content."""
    different = {digest(item.model_dump(mode="json")): item for item in entries}
    order = sorted(different, key=lambda name: _hash(policy.seed, "replay", name))
    return tuple(different[name] for name in order[: max(2, wanted)])


def _hash(*parts: object) -> str:
    return hashlib.sha256("\x00".join(map(str, parts)).encode()).hexdigest()


def _counted(reasons: Iterable[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in Counter(reasons).most_common())
